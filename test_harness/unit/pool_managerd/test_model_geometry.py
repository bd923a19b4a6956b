"""Sizes of models, out of real files and of files written here."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness_kit.model_files import (
    gguf_bytes,
    llama_metadata,
    llama_tensors,
    safetensors_bytes,
    write_hugging_face_model,
)
from pool_managerd.model_files import find_model
from pool_managerd.model_geometry import LayerGeometry, ModelFileError, read_geometry

pytestmark = [pytest.mark.req("ORCH-3003", partial="the estimate and what follows from it")]

MIB = 1024 * 1024
CONFIG = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 96,
    "max_position_embeddings": 4096,
}
# Name -> dtype, shape, bytes.
TENSORS: dict[str, tuple[str, list[int], int]] = {
    "model.embed_tokens.weight": ("BF16", [96, 64], 12288),
    "model.layers.0.self_attn.q_proj.weight": ("BF16", [64, 64], 8192),
    "model.layers.1.self_attn.q_proj.weight": ("F32", [64, 64], 16384),
    "model.norm.weight": ("F16", [64], 128),
    "lm_head.weight": ("F8_E4M3", [96, 64], 6144),
}


def gguf(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def test_the_real_model_has_the_size_that_llama_cpp_reports() -> None:
    geometry = read_geometry(find_model("builtin:smollm2").path)

    # llama.cpp's log: "CPU_Mapped model buffer size = 92.10 MiB", and a KV buffer of 180.00 MiB for
    # 8192 cells.
    assert round(geometry.weights_bytes / MIB, 2) == 92.10
    assert geometry.kv_bytes_per_token * 8192 == 180 * MIB
    assert (len(geometry.layers), geometry.vocab, geometry.ctx_trained) == (30, 49152, 8192)
    assert (geometry.embedding, geometry.feed_forward) == (576, 1536)
    assert geometry.tied


def test_a_gguf_model_is_added_up_layer_by_layer(tmp_path: Path) -> None:
    path = gguf(tmp_path / "m.gguf", gguf_bytes(llama_metadata(), llama_tensors()))

    geometry = read_geometry(path)

    # A Q4_0 matrix of 64 x 64 has 128 blocks of 18 bytes; a norm 64 x 4 bytes; K and V of two heads
    # of 16 in f16 take 2 x 2 x 16 x 2.
    assert geometry.layers == (LayerGeometry(128 * 18 + 256, 128),) * 2
    assert geometry.embedding_bytes == 96 * 64 * 2
    assert geometry.output_bytes == 96 * 64 * 2 + 256
    assert geometry.vocab == 96
    assert not geometry.tied


def test_the_parts_of_a_split_gguf_are_one_model(tmp_path: Path) -> None:
    tensors = llama_tensors()
    first = gguf(tmp_path / "m-00001-of-00002.gguf", gguf_bytes(llama_metadata(), tensors[:3]))
    gguf(tmp_path / "m-00002-of-00002.gguf", gguf_bytes({}, tensors[3:]))
    whole = gguf(tmp_path / "whole.gguf", gguf_bytes(llama_metadata(), tensors))

    assert read_geometry(first).weights_bytes == read_geometry(whole).weights_bytes


def test_a_missing_part_and_the_wrong_part_are_refused(tmp_path: Path) -> None:
    first = gguf(tmp_path / "m-00001-of-00002.gguf", gguf_bytes(llama_metadata()))
    second = gguf(tmp_path / "n-00002-of-00002.gguf", gguf_bytes(llama_metadata()))

    with pytest.raises(ModelFileError, match="No such file"):
        read_geometry(first)
    with pytest.raises(ModelFileError, match="name part 1"):
        read_geometry(second)


def test_a_cut_download_is_told_from_a_whole_file(tmp_path: Path) -> None:
    content = gguf_bytes(llama_metadata(), llama_tensors())
    path = gguf(tmp_path / "m.gguf", content[:-1000])

    with pytest.raises(ModelFileError, match=rf"m.gguf: cut at byte {len(content) - 1000}: tensor"):
        read_geometry(path)


@pytest.mark.parametrize(
    ("more", "windows"),
    [
        ({}, [None, None, None, None]),
        ({"attention.sliding_window": 512}, [None, None, None, None]),  # no pattern is known
        (
            {"attention.sliding_window": 512, "attention.sliding_window_pattern": 2},
            [512, None, 512, None],
        ),
        (
            {"attention.sliding_window": 512, "attention.sliding_window_pattern": [0, 1, 1, 0]},
            [None, 512, 512, None],
        ),
    ],
)
def test_a_gguf_models_windows_are_where_its_pattern_says(
    tmp_path: Path, more: dict[str, int | list[int]], windows: list[int | None]
) -> None:
    metadata = llama_metadata(4, more)

    geometry = read_geometry(gguf(tmp_path / "m.gguf", gguf_bytes(metadata)))

    assert [layer.window_tokens for layer in geometry.layers] == windows


def test_heads_and_feed_forward_may_differ_by_layer(tmp_path: Path) -> None:
    metadata = llama_metadata(
        2, {"attention.head_count_kv": [2, 0], "feed_forward_length": [128, 512]}
    )

    geometry = read_geometry(gguf(tmp_path / "m.gguf", gguf_bytes(metadata)))

    assert [layer.kv_bytes_per_token for layer in geometry.layers] == [128, 0]
    assert geometry.feed_forward == 512


def test_experts_that_are_used_at_once_are_as_wide_as_all_of_them(tmp_path: Path) -> None:
    metadata = llama_metadata(2, {"expert_used_count": 8, "expert_feed_forward_length": 96})

    geometry = read_geometry(gguf(tmp_path / "m.gguf", gguf_bytes(metadata)))

    assert geometry.feed_forward == 768


@pytest.mark.parametrize("shards", [1, 2])
def test_a_safetensors_model_is_added_up_as_it_is_loaded(tmp_path: Path, shards: int) -> None:
    names = list(TENSORS)
    parts = [
        safetensors_bytes({name: TENSORS[name] for name in names[part::shards]})
        for part in range(shards)
    ]
    write_hugging_face_model(tmp_path / "m", CONFIG, parts, names)

    geometry = read_geometry(tmp_path / "m")

    # The layer of 32 bits is loaded with 16. K and V of two heads of 16: 128 bytes a token.
    assert geometry.layers == (LayerGeometry(8192, 128), LayerGeometry(8192, 128))
    assert (geometry.embedding_bytes, geometry.output_bytes) == (12288, 6144)
    assert geometry.other_bytes == 128
    assert (geometry.vocab, geometry.feed_forward, geometry.ctx_trained) == (96, 128, 4096)


@pytest.mark.parametrize(
    ("more", "kv", "windows"),
    [
        ({"head_dim": 32}, [256, 256], [None, None]),
        ({"kv_lora_rank": 48, "qk_rope_head_dim": 16}, [128, 128], [None, None]),
        ({"sliding_window": 512}, [128, 128], [512, 512]),
        ({"sliding_window": 512, "use_sliding_window": False}, [128, 128], [None, None]),
        ({"sliding_window": 512, "max_window_layers": 1}, [128, 128], [None, None]),
        (
            {"sliding_window": 512, "layer_types": ["sliding_attention", "full_attention"]},
            [128, 128],
            [512, None],
        ),
        ({"layer_types": ["linear_attention", "full_attention"]}, [0, 128], [None, None]),
    ],
)
def test_a_hugging_face_configuration_says_what_a_token_takes(
    tmp_path: Path, more: dict[str, object], kv: list[int], windows: list[int | None]
) -> None:
    shard = safetensors_bytes(TENSORS)
    write_hugging_face_model(tmp_path / "m", {"text_config": CONFIG | more}, [shard], [])

    geometry = read_geometry(tmp_path / "m" / "model.safetensors")

    assert [layer.kv_bytes_per_token for layer in geometry.layers] == kv
    assert [layer.window_tokens for layer in geometry.layers] == windows


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("config.json", b"{", "config.json"),
        ("config.json", b"[]", "is not a JSON object"),
        ("config.json", b"{}", "has no num_hidden_layers"),
        ("config.json", b"[" * 200_000, "config.json"),
        (
            "config.json",
            json.dumps(CONFIG | {"num_hidden_layers": 10**6}).encode(),
            "1000000 layers",
        ),
        ("model.safetensors", b"", "has 0 bytes and announces a header of 0"),
        ("model.safetensors", b"\xff" * 8 + b"{}", "announces a header of 18446744073709551615"),
        ("model.safetensors", (2).to_bytes(8, "little") + b"[]", "is not a JSON object"),
        ("model.safetensors", safetensors_bytes({"a": ("F16", [8], 16)})[:-1], "is cut or wrong"),
        ("model.safetensors", safetensors_bytes({"a": ("F16", [8], -16)}), "is cut or wrong"),
        ("model.safetensors.index.json", b"{}", "has no weight_map"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../x.safetensors"}}', "no file"),
    ],
)
def test_broken_hugging_face_files_are_refused_with_their_numbers(
    tmp_path: Path, file: str, content: bytes, problem: str
) -> None:
    folder = tmp_path / "m"
    write_hugging_face_model(folder, CONFIG, [safetensors_bytes(TENSORS)], [])
    (folder / file).write_bytes(content)

    with pytest.raises(ModelFileError, match=problem):
        read_geometry(folder)


def test_a_directory_without_a_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="holds 0 safetensors files"):
        read_geometry(tmp_path)
