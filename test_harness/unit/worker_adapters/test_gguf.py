"""GGUF metadata out of files written by hand here, byte for byte."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_adapters.llamacpp_http.gguf import (
    GgufError,
    kv_bytes_per_token,
    parse_metadata,
    read_metadata,
)

pytestmark = [pytest.mark.req("ORCH-3032", partial="all but the metadata beside the digest")]


def text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def pair(key: str, kind: int, raw: bytes) -> bytes:
    return text(key) + struct.pack("<I", kind) + raw


def u32(key: str, value: int) -> bytes:
    return pair(key, 4, struct.pack("<I", value))


def array(key: str, kind: int, items: list[bytes]) -> bytes:
    return pair(key, 9, struct.pack("<IQ", kind, len(items)) + b"".join(items))


def gguf(*pairs: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, 0, len(pairs)) + b"".join(pairs)


# SmolLM2-135M: 30 layers, 9 heads, 3 of them for K and V, 576 wide. A head is 64 wide; K and V in
# f16 take 30 * 3 * (64 + 64) * 2 = 23040 bytes a token.
SMOLLM2 = gguf(
    pair("general.architecture", 8, text("llama")),
    u32("llama.block_count", 30),
    u32("llama.embedding_length", 576),
    u32("llama.attention.head_count", 9),
    u32("llama.attention.head_count_kv", 3),
    array("tokenizer.ggml.tokens", 8, [text("a"), text("bc")]),
    array("tokenizer.ggml.token_type", 5, [struct.pack("<i", 1)] * 5000),
    pair("general.quantized", 7, b"\x01"),
    pair("general.scale", 6, struct.pack("<f", 0.5)),
)


def test_scalars_are_read_and_vocabularies_skipped() -> None:
    metadata = parse_metadata(SMOLLM2)

    assert metadata["llama.block_count"] == 30
    assert metadata["general.quantized"] is True
    assert metadata["general.scale"] == 0.5
    assert not any(key.startswith("tokenizer") for key in metadata)


def test_kv_bytes_follow_from_layers_heads_and_width() -> None:
    assert kv_bytes_per_token(parse_metadata(SMOLLM2)) == 23040


def test_kv_bytes_follow_explicit_widths_and_heads_per_layer() -> None:
    metadata = parse_metadata(
        gguf(
            pair("general.architecture", 8, text("gemma3")),
            u32("gemma3.block_count", 2),
            u32("gemma3.attention.key_length", 256),
            u32("gemma3.attention.value_length", 128),
            array("gemma3.attention.head_count_kv", 4, [struct.pack("<I", n) for n in (1, 4)]),
        )
    )

    assert kv_bytes_per_token(metadata) == (1 + 4) * (256 + 128) * 2


def test_a_missing_figure_is_named() -> None:
    metadata = parse_metadata(gguf(pair("general.architecture", 8, text("llama"))))

    with pytest.raises(GgufError, match=r"llama\.block_count"):
        kv_bytes_per_token(metadata)


def test_a_file_that_is_cut_anywhere_is_refused() -> None:
    small = gguf(
        pair("general.architecture", 8, text("llama")),
        array("a", 4, [struct.pack("<I", 1)] * 3),
        array("b", 8, [text("x"), text("yz")]),
    )

    for length in range(len(small)):
        with pytest.raises(GgufError):
            parse_metadata(small[:length])


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"GGML" + SMOLLM2[4:], "magic"),
        (gguf(version=1), "version 1"),
        (gguf(pair("a", 99, b"")), "type 99"),
        (gguf(pair("a", 8, struct.pack("<Q", 2**63))), "cut"),
        (gguf(pair("a", 9, struct.pack("<IQ", 10, 2**61))), "cut"),
        (b"GGUF" + struct.pack("<IQQ", 3, 0, 2**40), "keys"),
    ],
)
def test_what_no_reader_should_believe_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(GgufError, match=why):
        parse_metadata(data)


@given(st.binary(max_size=200))
def test_random_bytes_end_in_a_typed_error_or_metadata(noise: bytes) -> None:
    try:
        metadata = parse_metadata(b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + noise)
    except GgufError:
        return
    assert len(metadata) <= 1


def test_an_empty_file_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.gguf"
    empty.touch()

    with pytest.raises(GgufError):
        read_metadata(empty)
