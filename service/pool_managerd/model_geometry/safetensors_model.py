"""The geometry of a Hugging Face model: safetensors headers and `config.json`.

Off a task's path; headers only, no tensor is read. Weights of 32 and 64 bits count as 16, because
vLLM and TGI load them so. Known besides plain attention: grouped heads, sliding windows by
`layer_types`, and latent attention (`kv_lora_rank`). Invariant: see `geometry`; every length is
checked against the file before it is used.
Source: the safetensors format (huggingface/safetensors, README, "Format"). Requirements: ORCH-3003.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pool_managerd.model_geometry.geometry import (
    LayerGeometry,
    ModelFileBroken,
    ModelFileError,
    ModelGeometry,
)

HEADER_BYTES_MAX = 100_000_000  # the format's own limit
JSON_BYTES_MAX = 64 * 1024 * 1024  # config.json has kilobytes, the index of a huge model megabytes
FILES_MAX = 4_096
LAYERS_MAX = 4_096
NUMBER_MAX = 2**40
INDEX = "model.safetensors.index.json"
KV_ELEMENT_BYTES = 2
# vLLM and TGI load these with 16 bits.
_NARROWED = {"F32": 2, "F64": 4}
_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d{1,6})\.")
_EMBEDDING = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|tok_embeddings)\.")
_OUTPUT = re.compile(r"(?:^|\.)(?:lm_head|embed_out|output)\.")


def safetensors_geometry(path: Path) -> ModelGeometry:
    """The model in a directory, or of the file `path` with the `config.json` beside it.

    Raises `ModelFileError`; OSError where a file cannot be read.
    """
    folder = path if path.is_dir() else path.parent
    sizes: dict[str, int] = {}
    for file in _files(path):
        sizes |= _tensor_bytes(file)
    config = _json(folder / "config.json")
    inner = config.get("text_config")
    return _geometry(path, inner if isinstance(inner, dict) else config, sizes)


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    index = path / INDEX
    if not index.is_file():
        files = sorted(path.glob("*.safetensors"))[: FILES_MAX + 1]
        if not files or len(files) > FILES_MAX:
            raise ModelFileError(f"{path} holds {len(files)} safetensors files and no {INDEX}")
        return files
    weight_map = _json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index} has no weight_map")
    names = {str(name) for name in weight_map.values()}
    if len(names) > FILES_MAX:
        raise ModelFileError(f"{index} names {len(names)} files, more than {FILES_MAX}")
    for name in names:
        if Path(name).name != name or not name.endswith(".safetensors") or "\0" in name:
            raise ModelFileError(f"{index} names {name[:80]!r}, which is no file beside it")
    return [path / name for name in sorted(names)]


def _tensor_bytes(path: Path) -> dict[str, int]:
    """Name to bytes in memory, of one file."""
    if not path.exists():
        raise ModelFileBroken(f"model file {path} does not exist")
    with path.open("rb") as file:
        prefix = file.read(8)
        total_bytes = file.seek(0, 2)
        length_bytes = int.from_bytes(prefix, "little")
        if len(prefix) < 8 or not 2 <= length_bytes <= min(HEADER_BYTES_MAX, total_bytes - 8):
            raise ModelFileBroken(
                f"{path} has {total_bytes} bytes and announces a header of {length_bytes}"
            )
        file.seek(8)
        header = _decoded(path, file.read(length_bytes))
    room_bytes = total_bytes - 8 - length_bytes
    sizes = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            begin, end = entry["data_offsets"]
            dtype = entry["dtype"]
            narrowed = _NARROWED.get(dtype, 1)
            whole = isinstance(begin, int) and isinstance(end, int) and 0 <= begin <= end
        except (KeyError, TypeError, ValueError):
            raise ModelFileError(f"{path}: tensor {name[:80]!r} is not described") from None
        if not whole or end > room_bytes:
            raise ModelFileBroken(
                f"{path} is cut or wrong: tensor {name[:80]!r} takes bytes {str(begin)[:20]} to "
                f"{str(end)[:20]} of {room_bytes}"
            )
        sizes[name] = (end - begin) // narrowed
    return sizes


def _json(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return _decoded(path, file.read(JSON_BYTES_MAX))


def _decoded(path: Path, text: bytes) -> dict[str, Any]:
    try:
        decoded = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ModelFileError(f"{path}: {str(error)[:120] or 'is nested too deeply'}") from None
    if not isinstance(decoded, dict):
        raise ModelFileError(f"{path}: is not a JSON object")
    return decoded


def _geometry(path: Path, config: Mapping[str, Any], sizes: Mapping[str, int]) -> ModelGeometry:
    def number(*names: str) -> int:
        for name in names:
            value = config.get(name)
            if isinstance(value, int) and 0 < value <= NUMBER_MAX:
                return value
        return 0

    def needed(*names: str) -> int:
        value = number(*names)
        if not value:
            raise ModelFileError(f"{path}: config.json has no {names[0]}")
        return value

    layers = needed("num_hidden_layers", "n_layer")
    if layers > LAYERS_MAX:
        raise ModelFileError(f"{path}: {layers} layers are more than {LAYERS_MAX}")
    weights = [0] * layers
    embedding_bytes = output_bytes = other_bytes = 0
    for name, size_bytes in sizes.items():
        layer = _LAYER.search(name)
        if layer is not None and int(layer[1]) < layers:
            weights[int(layer[1])] += size_bytes
        elif _EMBEDDING.search(name):
            embedding_bytes += size_bytes
        elif _OUTPUT.search(name):
            output_bytes += size_bytes
        else:
            other_bytes += size_bytes
    hidden = needed("hidden_size", "n_embd")
    heads = needed("num_attention_heads", "n_head")
    latent = number("kv_lora_rank")
    if latent:
        kv_elements = latent + number("qk_rope_head_dim")
    else:
        head_width = number("head_dim") or hidden // heads
        kv_elements = 2 * (number("num_key_value_heads") or heads) * head_width
    window = number("sliding_window") if config.get("use_sliding_window", True) else 0
    kinds = config.get("layer_types")
    if not isinstance(kinds, list) or len(kinds) != layers:
        # Without a list the window holds for all layers, except where a pattern mixes them.
        mixed = "sliding_window_pattern" in config or "max_window_layers" in config
        kinds = ["full_attention" if mixed else "sliding_attention"] * layers
    experts = number("num_experts_per_tok") * number("moe_intermediate_size")
    return ModelGeometry(
        name=path.name,
        architecture=str(config.get("model_type", "unknown"))[:80],
        layers=tuple(
            LayerGeometry(
                size_bytes,
                # A linear layer keeps a state of fixed size instead of KV.
                0 if kind == "linear_attention" else kv_elements * KV_ELEMENT_BYTES,
                window if window and kind == "sliding_attention" else None,
            )
            for size_bytes, kind in zip(weights, kinds, strict=True)
        ),
        embedding_bytes=embedding_bytes,
        output_bytes=output_bytes,
        other_bytes=other_bytes,
        vocab=needed("vocab_size"),
        embedding=hidden,
        feed_forward=max(number("intermediate_size", "n_inner") or 4 * hidden, experts),
        ctx_trained=number("max_position_embeddings", "n_positions"),
    )
