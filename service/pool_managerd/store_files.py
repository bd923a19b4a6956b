"""The files of the model store beside its models: who holds one, unfinished imports, sidecars.

Between the store and the file system. Invariants: a lock counts only on the file that has the name
now; a sidecar is written whole or not at all, and nothing depends on one. Requirements: ORCH-3042.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from pool_managerd.model_store_errors import ModelInUse, ModelStoreError, store_errors

ABOUT_BYTES_MAX = 64 * 1024
# Each attempt means that somebody evicted or replaced the file in that very moment.
OPEN_ATTEMPTS = 8


@contextlib.contextmanager
def open_partial(path: Path) -> Iterator[IO[bytes]]:
    """The partial, held by this import alone; made where it is not there. Raises `ModelInUse`."""
    with store_errors(path):
        for _ in range(OPEN_ATTEMPTS):
            flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
            file = os.fdopen(os.open(path, flags, 0o644), "r+b", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                file.close()
                raise ModelInUse(f"another import writes {path} now: wait for it") from None
            if is_at(file.fileno(), path):
                break
            file.close()
        else:
            raise ModelStoreError(f"{path} is being replaced again and again")
    with file:
        yield file


def partial_about(partial: Path) -> Path:
    """Where an import keeps what it needs to go on."""
    return partial.with_name(f"{partial.name}.json")


def read_about(path: Path) -> dict[str, Any]:
    """A sidecar; empty where it is missing or damaged: nothing in it is needed."""
    try:
        with path.open("rb") as file:
            content = json.loads(file.read(ABOUT_BYTES_MAX))
    except (OSError, ValueError, RecursionError):
        return {}
    return content if isinstance(content, dict) else {}


def write_about(path: Path, content: dict[str, Any]) -> None:
    """Write a sidecar, whole or not at all. Raises OSError."""
    draft = path.with_name(f".{path.name}.{os.getpid()}.json")
    draft.write_text(json.dumps(content), encoding="utf-8")
    draft.replace(path)


def sync_folder(path: Path) -> None:
    """A rename in it survives a crash of the machine. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[bool]:
    """Whether nobody else holds the file; nobody gets to hold it meanwhile."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        yield True
        return
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether the open file is still the one of that name."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False
