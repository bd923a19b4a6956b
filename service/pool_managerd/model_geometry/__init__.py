"""What a model's files say of its size: read for real, before an engine loads them.

Off a task's path: asked before a launch and by `pools plan`. Invariant: files that are cut, foreign
or hostile raise `ModelFileError`, nothing else. Requirements: ORCH-3003, ORCH-3020.
"""

from __future__ import annotations

from pathlib import Path

from pool_managerd.model_geometry.geometry import (
    LayerGeometry,
    ModelFileBroken,
    ModelFileError,
    ModelGeometry,
)
from pool_managerd.model_geometry.gguf_model import gguf_geometry
from pool_managerd.model_geometry.safetensors_model import safetensors_geometry

__all__ = [
    "LayerGeometry",
    "ModelFileBroken",
    "ModelFileError",
    "ModelGeometry",
    "gguf_geometry",
    "read_geometry",
]


def read_geometry(path: Path) -> ModelGeometry:
    """The geometry of a GGUF file, of a safetensors file, or of a directory with either.

    Reads headers only. Raises `ModelFileError`, also for a file that cannot be read.
    """
    try:
        if path.suffix == ".safetensors" or path.is_dir():
            return safetensors_geometry(path)
        return gguf_geometry(path)
    except OSError as error:
        raise ModelFileError(
            f"model file {error.filename or path}: {error.strerror or error}"
        ) from error
