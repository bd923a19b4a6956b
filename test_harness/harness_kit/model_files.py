"""Small model files in the real formats, written byte by byte: GGUF and safetensors.

For tests of what reads them: an independent writer, by the formats' own specifications.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path

F32, F16, Q4_0 = 0, 1, 2
# Bytes of a row of 32 elements, of the types above.
ROW_BYTES = {F32: 128, F16: 64, Q4_0: 18}

Value = int | str | Sequence[int]
Tensor = tuple[str, tuple[int, ...], int]


def gguf_bytes(
    metadata: Mapping[str, Value],
    tensors: Sequence[Tensor] = (),
    *,
    with_data: bool = True,
) -> bytes:
    """A GGUF file, version 3; `tensors` are name, dimensions (the first a multiple of 32), type."""
    out = bytearray(b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(metadata)))
    for key, value in metadata.items():
        out += _text(key)
        if isinstance(value, str):
            out += struct.pack("<I", 8) + _text(value)
        elif isinstance(value, int):
            out += struct.pack("<IQ", 10, value)
        else:
            out += struct.pack("<IIQ", 9, 4, len(value)) + struct.pack(f"<{len(value)}I", *value)
    offset = 0
    for name, dimensions, kind in tensors:
        out += _text(name) + struct.pack(f"<I{len(dimensions)}Q", len(dimensions), *dimensions)
        out += struct.pack("<IQ", kind, offset)
        offset += -(-_tensor_bytes(dimensions, kind) // 32) * 32
    out += bytes(-len(out) % 32)
    if with_data:
        out += bytes(offset)
    return bytes(out)


def llama_metadata(layers: int = 2, more: Mapping[str, Value] | None = None) -> dict[str, Value]:
    """A small model: 64 wide, four heads of 16, two of them for K and V, 128 of feed-forward."""
    metadata: dict[str, Value] = {
        "general.architecture": "llama",
        "llama.block_count": layers,
        "llama.context_length": 4096,
        "llama.embedding_length": 64,
        "llama.feed_forward_length": 128,
        "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2,
    }
    return metadata | {f"llama.{key}": value for key, value in (more or {}).items()}


def llama_tensors(layers: int = 2, vocab: int = 96) -> list[Tensor]:
    """Embeddings, one Q4_0 matrix of 64 x 64 and one F32 norm a layer, a norm and an output."""
    found: list[Tensor] = [("token_embd.weight", (64, vocab), F16)]
    for number in range(layers):
        found.append((f"blk.{number}.attn_q.weight", (64, 64), Q4_0))
        found.append((f"blk.{number}.attn_norm.weight", (64,), F32))
    return [*found, ("output_norm.weight", (64,), F32), ("output.weight", (64, vocab), F16)]


def safetensors_bytes(
    tensors: Mapping[str, tuple[str, Sequence[int], int]], *, with_data: bool = True
) -> bytes:
    """A safetensors file; `tensors` are dtype, shape and bytes by name."""
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, (dtype, shape, size_bytes) in tensors.items():
        header[name] = {
            "dtype": dtype,
            "shape": list(shape),
            "data_offsets": [offset, offset + size_bytes],
        }
        offset += size_bytes
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + (bytes(max(0, offset)) if with_data else b"")


def write_hugging_face_model(
    folder: Path, config: Mapping[str, object], shards: Sequence[bytes], names: Sequence[str]
) -> None:
    """A directory as `save_pretrained` leaves it; `names` are those of the shards' tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if len(shards) == 1:
        (folder / "model.safetensors").write_bytes(shards[0])
        return
    files = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    for file, shard in zip(files, shards, strict=True):
        (folder / file).write_bytes(shard)
    weight_map = {name: files[number % len(files)] for number, name in enumerate(names)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value.encode())) + value.encode()


def _tensor_bytes(dimensions: Sequence[int], kind: int) -> int:
    rows = 1
    for length in dimensions[1:]:
        rows *= length
    return dimensions[0] // 32 * ROW_BYTES[kind] * rows
