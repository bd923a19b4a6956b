"""The geometry of a GGUF model, also of one that is split over several files.

Off a task's path. Known sliding windows: those whose pattern the file or llama.cpp's source
(src/llama-model.cpp, `set_swa_pattern`) says; all others count as full attention. Layers that keep
a recurrent state instead of KV count with what the file says of their KV heads. Invariant: see
`geometry`. Requirements: ORCH-3003.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

from pool_managerd.model_geometry.geometry import (
    LayerGeometry,
    ModelFileBroken,
    ModelFileError,
    ModelGeometry,
)
from worker_adapters.llamacpp_http.gguf import (
    GgufBroken,
    GgufError,
    Value,
    figure,
    kv_bytes_per_layer,
)
from worker_adapters.llamacpp_http.gguf_tensors import GgufFile, TensorInfo, read_file

PARTS_MAX = 1_024
_PART = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf\Z")
_LAYER = re.compile(r"blk\.(\d{1,6})\.")
# Every n-th layer looks at everything, the others through the window.
_WINDOW_PATTERNS = {"cohere2": 4, "gemma2": 2, "gemma3": 6, "gpt-oss": 2}


def gguf_geometry(path: Path) -> ModelGeometry:
    """The model in `path`, the first or only file of it.

    Raises `ModelFileError`; it is `ModelFileBroken` for a file that cannot be read, or is cut.
    """
    files = [_read(part) for part in _parts(path)]
    metadata = files[0].metadata
    try:
        return _geometry(path, metadata, [tensor for file in files for tensor in file.tensors])
    except GgufError as error:
        raise ModelFileError(f"model file {path}: {error}") from error


def _read(path: Path) -> GgufFile:
    try:
        return read_file(path)
    except OSError as error:
        raise ModelFileBroken(f"model file {path}: {error.strerror or error}") from error
    except GgufBroken as error:
        raise ModelFileBroken(f"model file {path}: {error}") from error
    except GgufError as error:
        raise ModelFileError(f"model file {path}: {error}") from error


def _parts(path: Path) -> list[Path]:
    named = _PART.fullmatch(path.name)
    if named is None:
        return [path]
    count = int(named["count"])
    if not 1 <= count <= PARTS_MAX or int(named["number"]) != 1:
        raise ModelFileError(f"model file {path}: name part 1 of at most {PARTS_MAX}")
    return [
        path.with_name(f"{named['stem']}-{number:05}-of-{count:05}.gguf")
        for number in range(1, count + 1)
    ]


def _geometry(
    path: Path, metadata: Mapping[str, Value], tensors: list[TensorInfo]
) -> ModelGeometry:
    kv_layers = kv_bytes_per_layer(metadata)
    weights = [0] * len(kv_layers)
    embedding_bytes = output_bytes = other_bytes = vocab = 0
    for tensor in tensors:
        layer = _LAYER.match(tensor.name)
        if layer is not None and int(layer[1]) < len(weights):
            weights[int(layer[1])] += tensor.size_bytes
        elif tensor.name.startswith("token_embd."):
            embedding_bytes += tensor.size_bytes
            vocab = tensor.dimensions[-1] if len(tensor.dimensions) == 2 else vocab
        elif tensor.name.startswith("output"):
            output_bytes += tensor.size_bytes
        else:
            other_bytes += tensor.size_bytes
    architecture = str(metadata["general.architecture"])
    windows = _windows(metadata, architecture, len(weights))
    trained = metadata.get(f"{architecture}.context_length")
    return ModelGeometry(
        name=path.name,
        architecture=architecture,
        layers=tuple(map(LayerGeometry, weights, kv_layers, windows)),
        embedding_bytes=embedding_bytes,
        output_bytes=output_bytes,
        other_bytes=other_bytes,
        vocab=vocab,
        embedding=figure(metadata, "embedding_length"),
        feed_forward=_feed_forward(metadata, architecture),
        ctx_trained=trained if isinstance(trained, int) and trained > 0 else 0,
    )


def _feed_forward(metadata: Mapping[str, Value], architecture: str) -> int:
    """The widest feed-forward part of a layer: one dense, or all experts that are used at once."""

    def number(name: str) -> int:
        value = metadata.get(f"{architecture}.{name}")
        values = value if isinstance(value, list) else [value]
        return max((v for v in values if isinstance(v, int) and v > 0), default=0)

    experts = number("expert_used_count") * number("expert_feed_forward_length")
    return max(number("feed_forward_length"), experts)


def _windows(metadata: Mapping[str, Value], architecture: str, layers: int) -> list[int | None]:
    window = metadata.get(f"{architecture}.attention.sliding_window")
    if not isinstance(window, int) or window <= 0:
        return [None] * layers
    pattern = metadata.get(f"{architecture}.attention.sliding_window_pattern")
    if isinstance(pattern, list) and len(pattern) == layers:
        return [window if is_windowed else None for is_windowed in pattern]
    period = pattern if isinstance(pattern, int) else _WINDOW_PATTERNS.get(architecture, 0)
    if period <= 0:
        return [None] * layers
    return [window if number % period < period - 1 else None for number in range(layers)]
