"""Whatever a model's file holds: an answer or the typed error, nothing else."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness_kit.model_files import (
    gguf_bytes,
    llama_metadata,
    llama_tensors,
    safetensors_bytes,
    write_hugging_face_model,
)
from pool_managerd.model_geometry import ModelFileError, ModelGeometry, read_geometry

pytestmark = [pytest.mark.req("ORCH-3003", partial="the estimate and what follows from it")]

GGUF = gguf_bytes(
    llama_metadata(2, {"attention.sliding_window": 64, "feed_forward_length": [128, 256]}),
    llama_tensors(),
)
GGUF_HEADER_BYTES = len(gguf_bytes(llama_metadata(), llama_tensors(), with_data=False))
SAFETENSORS = safetensors_bytes(
    {
        "model.embed_tokens.weight": ("BF16", [96, 64], 128),
        "model.layers.0.q.weight": ("F32", [64, 64], 64),
    }
)
CONFIG = {
    **{"num_hidden_layers": 2, "hidden_size": 64, "num_attention_heads": 4, "vocab_size": 96},
    **{"sliding_window": 16, "layer_types": ["full_attention", "sliding_attention"]},
}

# Where and what: most of them hit lengths, counts, types and offsets.
edits = st.lists(
    st.tuples(st.integers(0, 2**16), st.binary(min_size=1, max_size=9)), min_size=1, max_size=4
)


def edited(content: bytes, header_bytes: int, changes: list[tuple[int, bytes]], cut: int) -> bytes:
    out = bytearray(content)
    for place, new in changes:
        at = place % header_bytes
        out[at : at + len(new)] = new
    return bytes(out[: len(out) - cut % (len(out) + 1)])


def read(path: Path) -> ModelGeometry | None:
    try:
        return read_geometry(path)
    except ModelFileError:
        return None


@given(edits, st.one_of(st.just(0), st.integers(0, 2**16)))
def test_a_mutated_or_cut_gguf_file_gives_an_answer_or_the_typed_error(
    changes: list[tuple[int, bytes]], cut: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(edited(GGUF, GGUF_HEADER_BYTES, changes, cut))

        geometry = read(path)

    assert geometry is None or geometry.weights_bytes <= len(GGUF)


@given(st.integers(1, len(GGUF)))
def test_every_cut_of_a_gguf_file_is_found(cut: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.gguf"
        path.write_bytes(GGUF[:-cut])

        assert read(path) is None


@given(edits, st.one_of(st.just(0), st.integers(0, 2**16)))
def test_a_mutated_or_cut_safetensors_file_gives_an_answer_or_the_typed_error(
    changes: list[tuple[int, bytes]], cut: int
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "m"
        shard = edited(SAFETENSORS, len(SAFETENSORS), changes, cut)
        write_hugging_face_model(model, CONFIG, [shard], [])

        geometry = read(model)

    assert geometry is None or geometry.weights_bytes <= len(SAFETENSORS)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=5,
)


@given(st.dictionaries(st.sampled_from(sorted({*CONFIG, "text_config", "head_dim"})), json_values))
def test_any_configuration_beside_good_weights_gives_an_answer_or_the_typed_error(
    more: dict[str, object],
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder) / "m"
        write_hugging_face_model(model, CONFIG | more, [SAFETENSORS], [])

        geometry = read(model)

    assert geometry is None or min(layer.kv_bytes_per_token for layer in geometry.layers) >= 0
