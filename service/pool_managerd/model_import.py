"""Imports of models into the store: from a file of this machine, or from an HTTP(S) mirror.

Off a task's path: `llama-orch models import`. What came so far lies under `partial` and an import
that was cut, killed or out of disk goes on from there. Invariants: content is published under the
digest that was computed from it, and under no other; a partial stays unless its content is known
to be wrong; nobody writes what could not be within the quota. Requirements: ORCH-3042, ORCH-3037.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import IO

from pool_managerd.http_mirror import (
    TIMEOUT_S,
    MirrorFailed,
    NotThere,
    mirror_body,
    mirror_url,
    shown,
)
from pool_managerd.model_store import ModelStore, StoredModel, hex_digits, model_name
from pool_managerd.model_store_errors import (
    BadModelReference,
    DigestMismatch,
    ModelStoreError,
    store_errors,
)
from pool_managerd.store_files import open_partial, partial_about, read_about, write_about

CHUNK_BYTES = 1 << 20
# Where the size is not known before, it is asked for room in such steps.
ROOM_STEP_BYTES = 64 << 20
# ioctl of btrfs, XFS and others that share blocks between files (linux/fs.h).
_FICLONE = 0x40049409

# Bytes there so far, and bytes in all or None where that is not known.
Progress = Callable[[int, int | None], None]


class ImportCut(ModelStoreError):
    """The source ended early or was not reached; `kept_bytes` of it are kept for another try."""

    def __init__(self, message: str, kept_bytes: int) -> None:
        super().__init__(
            f"{message}; {kept_bytes} bytes are kept: run the same command again to go on"
        )
        self.kept_bytes = kept_bytes


class _Partial:
    """The file of an import that goes on, and the digest of what it has."""

    def __init__(self, store: ModelStore, path: Path, file: IO[bytes], progress: Progress) -> None:
        self.path = path
        self.done_bytes = 0
        self.total_bytes: int | None = None
        self._store = store
        self._file = file
        self._hash = hashlib.sha256()
        self._progress = progress
        self._room_bytes = 0

    def take_up(self) -> None:
        """Read what is there already."""
        self._file.seek(0)
        while chunk := self._file.read(CHUNK_BYTES):
            self._count(chunk)

    def restart(self) -> None:
        """What is there is of no use."""
        self._file.truncate(0)
        self._file.seek(0)
        self.done_bytes = 0
        self._hash = hashlib.sha256()

    def expect(self, total_bytes: int | None) -> None:
        """There is room for the whole. Raises `QuotaExceeded`, `StoreDiskFull`."""
        self.total_bytes = total_bytes
        if total_bytes is not None:
            self._store.prove_room(total_bytes, self.path)
            self._room_bytes = total_bytes

    def write(self, chunk: bytes) -> None:
        if self.done_bytes + len(chunk) > self._room_bytes:
            needed_bytes = self.done_bytes + len(chunk)
            quota_bytes = self._store.quota_bytes
            self._room_bytes = needed_bytes + ROOM_STEP_BYTES
            if quota_bytes is not None:
                self._room_bytes = max(needed_bytes, min(self._room_bytes, quota_bytes))
            self._store.prove_room(self._room_bytes, self.path)
        view = memoryview(chunk)
        while view:
            view = view[self._file.write(view) :]
        self._count(chunk)

    def finish(self) -> str:
        """What was written is on the disk; returns its digest, 64 hex digits."""
        os.fsync(self._file.fileno())
        return self._hash.hexdigest()

    @property
    def digest(self) -> str:
        return self._hash.hexdigest()

    def drop(self) -> None:
        self.path.unlink(missing_ok=True)
        partial_about(self.path).unlink(missing_ok=True)

    def _count(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self.done_bytes += len(chunk)
        self._progress(self.done_bytes, self.total_bytes)


def _silent(done_bytes: int, total_bytes: int | None) -> None:
    """Nobody looks."""


def import_file(
    store: ModelStore,
    source: Path,
    sha256: str | None = None,
    *,
    name: str | None = None,
    progress: Progress = _silent,
) -> StoredModel:
    """Copy a file into the store, sharing its blocks where the file system can; it may be changed
    or deleted afterwards. With `sha256` it must have that digest.

    Raises `BadModelReference` for what is no regular file, `DigestMismatch`, `QuotaExceeded`,
    `StoreDiskFull`, `ModelInUse` while another process imports it, `ModelStoreError`.
    """
    expected = None if sha256 is None else hex_digits(sha256)
    label = None if name is None else model_name(name)
    said = str(source.absolute())
    store.prepare()
    if expected is not None and (known := store.known(expected, label, said)) is not None:
        progress(known.size_bytes, known.size_bytes)
        return known
    if source.is_dir():
        raise BadModelReference(
            f"{source} is a folder: the store keeps single files; a pool names a folder by "
            f"model: file:{source.absolute()}"
        )
    # O_NONBLOCK: a pipe that nobody writes to must not keep us waiting.
    with store_errors(source):
        content = os.fdopen(
            os.open(source, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb", buffering=0
        )
    with content:
        before = os.fstat(content.fileno())
        if not stat.S_ISREG(before.st_mode):
            raise BadModelReference(f"{source} is no regular file: the store keeps single files")
        if before.st_size == 0:
            raise BadModelReference(f"{source} is empty")
        path = store.partials / f"file-{_identity(before)}"
        with open_partial(path) as file, store_errors(path):
            partial = _Partial(store, path, file, progress)
            partial.expect(before.st_size)
            if not os.fstat(file.fileno()).st_size:
                _share_blocks(content, file)
            partial.take_up()
            content.seek(partial.done_bytes)
            while chunk := content.read(CHUNK_BYTES):
                partial.write(chunk)
            if partial.done_bytes != before.st_size or _identity(
                os.fstat(content.fileno())
            ) != _identity(before):
                partial.drop()
                raise ModelStoreError(f"{source} changed while it was read: import it again")
            return _published(store, partial, expected, label, said, "it is another file, or cut")


def import_url(
    store: ModelStore,
    url: str,
    sha256: str,
    *,
    name: str | None = None,
    progress: Progress = _silent,
    timeout_s: float = TIMEOUT_S,
) -> StoredModel:
    """Fetch the file with digest `sha256` from an HTTP(S) mirror, going on where an earlier import
    of that digest ended, also one from another mirror. `timeout_s` bounds each wait for the mirror.

    Raises `BadModelReference`, `ImportCut` where another try may go on, and as `import_file`.
    """
    expected = hex_digits(sha256)
    label = None if name is None else model_name(name)
    try:
        mirror_url(url)
    except ValueError as error:
        raise BadModelReference(str(error)) from None
    said = shown(url)
    store.prepare()
    if (known := store.known(expected, label, said)) is not None:
        progress(known.size_bytes, known.size_bytes)
        return known
    path = store.partials / expected
    with open_partial(path) as file, store_errors(path):
        partial = _Partial(store, path, file, progress)
        partial.take_up()
        try:
            if partial.digest != expected:
                try:
                    _fetch(partial, url, timeout_s)
                except NotThere:
                    partial.restart()
                    _fetch(partial, url, timeout_s)
        except MirrorFailed as error:
            os.fsync(file.fileno())
            if not partial.done_bytes:
                partial.drop()
            if error.cut:
                raise ImportCut(str(error), partial.done_bytes) from None
            raise ModelStoreError(f"{error}: try another mirror") from None
        except ValueError as error:  # a redirect to what is no URL
            raise ModelStoreError(f"{said} redirects: {error}") from None
        advice = "the mirror has another file, or a damaged one; what was fetched is deleted"
        return _published(store, partial, expected, label, said, advice)


def _fetch(partial: _Partial, url: str, timeout_s: float) -> None:
    about = read_about(partial_about(partial.path))
    identity = hashlib.sha256(url.encode()).hexdigest()  # the URL may hold a secret
    validator = about.get("validator") if about.get("url_sha256") == identity else None
    if not isinstance(validator, str):
        validator = None
    with mirror_body(url, partial.done_bytes, validator, timeout_s) as body:
        if body.offset != partial.done_bytes:
            partial.restart()
        partial.expect(body.total_bytes)
        write_about(
            partial_about(partial.path), {"url_sha256": identity, "validator": body.validator}
        )
        for chunk in body.chunks():
            partial.write(chunk)
    if body.total_bytes is not None and partial.done_bytes < body.total_bytes:
        missing_bytes = body.total_bytes - partial.done_bytes
        raise MirrorFailed(f"{shown(url)} ended {missing_bytes} bytes early", cut=True)


def _published(
    store: ModelStore,
    partial: _Partial,
    expected: str | None,
    name: str | None,
    source: str,
    advice: str,
) -> StoredModel:
    digest = partial.finish()
    if expected is not None and digest != expected:
        partial.drop()
        raise DigestMismatch(source, digest, expected, f"{advice}: not imported")
    return store.publish(partial.path, digest, name, source)


def _share_blocks(source: IO[bytes], target: IO[bytes]) -> None:
    """A copy that takes no time and no room, where both are on a file system that can."""
    try:
        fcntl.ioctl(target, _FICLONE, source.fileno())
    except OSError:
        return  # copied byte by byte then


def _identity(status: os.stat_result) -> str:
    said = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    return hashlib.sha256(repr(said).encode()).hexdigest()[:32]
