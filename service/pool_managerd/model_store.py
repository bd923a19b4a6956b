"""The model store: files by the SHA-256 of their content, within a quota.

Off a task's path: filled by `llama-orch models import` (see `model_import`), read when an engine is
launched. On disk, and nowhere else: `blobs/sha256/HEX` (read-only; its name is its digest),
`about/HEX.json` (names, source; its mtime is the last use), `partial/ID` (imports that go on or
that can go on) and `lock`. Invariants: a file gets its name under `blobs` by a rename, after its
digest was proved; what an engine holds is never evicted, also not by another process (an engine's
supervisor keeps a shared flock on the blob, eviction takes an exclusive one); nothing is evicted
for content that was not proved: while an import runs, the store may be over its quota by what that
import has written, and after it it is within it. Trust (signatures, policy) is not decided here.
Requirements: ORCH-3042, ORCH-3037.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pool_managerd.model_files import ModelFile, ModelMissing, ModelUnavailable, verified_digest
from pool_managerd.model_store_errors import (
    BadModelReference,
    DigestMismatch,
    ModelInUse,
    ModelStoreError,
    QuotaExceeded,
    StoreDiskFull,
    store_errors,
)
from pool_managerd.store_files import (
    OPEN_ATTEMPTS,
    exclusive,
    is_at,
    partial_about,
    read_about,
    sync_folder,
    write_about,
)

_HEX = re.compile(r"[0-9a-f]{64}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:/+-]{0,127}")
NAMES_MAX = 16


@dataclass(frozen=True, slots=True)
class StoredModel:
    """A model in the store; `digest` is 64 hex digits, times are wall-clock milliseconds."""

    digest: str
    path: Path
    size_bytes: int
    names: tuple[str, ...]
    source: str | None
    last_used_ms: int


class ModelUse:
    """While it is held, its file is not evicted. Released by `release`, at the latest with the
    object: a launch that is called off drops it."""

    def __init__(self, file: ModelFile, descriptor: int) -> None:
        self.file = file
        self.release: Callable[[], object] = weakref.finalize(self, os.close, descriptor)


@dataclass(frozen=True, slots=True)
class _Entry:
    """A blob or a partial, as eviction sees it."""

    path: Path
    about: Path
    size_bytes: int
    used_ns: int


class ModelStore:
    """The store in folder `path`, made at the first import. `quota_bytes` None: nothing is evicted.
    `clock_ns` gives wall-clock nanoseconds."""

    def __init__(
        self, path: Path, quota_bytes: int | None, clock_ns: Callable[[], int] = time.time_ns
    ) -> None:
        self.path = path.absolute()
        self.quota_bytes = quota_bytes
        self._clock_ns = clock_ns
        self._blobs = self.path / "blobs" / "sha256"
        self._abouts = self.path / "about"
        self.partials = self.path / "partial"

    # --- what is there -----------------------------------------------------------------------

    def models(self) -> list[StoredModel]:
        """All models, the one used last first. Raises `ModelStoreError`."""
        with store_errors(self.path):
            entries = sorted(self._entries(self._blobs), key=lambda entry: -entry.used_ns)
            return [self._described(entry) for entry in entries]

    def total_bytes(self) -> int:
        """What counts against the quota: models and unfinished imports. Raises
        `ModelStoreError`."""
        with store_errors(self.path):
            return sum(entry.size_bytes for entry in self._all())

    def find(self, digest: str) -> ModelFile:
        """The file of `digest` (`sha256:HEX` or HEX), not yet verified. Raises `ModelMissing` and
        `BadModelReference`."""
        wanted = hex_digits(digest)
        path = self._blobs / wanted
        if path.is_symlink() or not path.is_file():
            raise ModelMissing(
                f"model sha256:{wanted} is not in the store {self.path}; import it with: "
                f"llama-orch models import FILE-OR-URL --sha256 {wanted} --store {self.path}"
            )
        return ModelFile(path, wanted)

    def resolve(self, beginning: str) -> str:
        """The digest of the one model whose digest begins so, or that has this name. Raises
        `BadModelReference` where several do, `ModelMissing` where none does."""
        wanted = beginning.removeprefix("sha256:").lower()
        named = [model.digest for model in self.models() if beginning in model.names]
        found = named or [m.digest for m in self.models() if wanted and m.digest.startswith(wanted)]
        if len(found) > 1:
            raise BadModelReference(f"{beginning!r} is {len(found)} models: give the whole digest")
        if not found:
            raise ModelMissing(
                f"no model {beginning!r} in the store {self.path}: `llama-orch models list` shows "
                "what is there"
            )
        return found[0]

    def verify(self, digest: str) -> None:
        """Prove the content of a model, reading all of it. Raises `DigestMismatch`,
        `ModelMissing`."""
        file = self.find(digest)
        assert file.sha256 is not None
        actual = verified_digest(ModelFile(file.path, None)).removeprefix("sha256:")
        if actual != file.sha256:
            advice = "damaged on disk, not loaded; import it again, which replaces it"
            raise DigestMismatch(f"model {file.path}", actual, file.sha256, advice)

    def in_use(self, digest: str) -> bool:
        """Whether some process holds it now."""
        with contextlib.suppress(OSError), exclusive(self._blobs / hex_digits(digest)) as free:
            return not free
        return False

    # --- use ---------------------------------------------------------------------------------

    def use(self, digest: str) -> ModelUse:
        """Hold a model, so that it is not evicted before `release`. May wait for an eviction that
        is under way. Raises `ModelMissing`, `ModelStoreError`."""
        file = self.find(digest)
        with store_errors(file.path):
            for _ in range(OPEN_ATTEMPTS):
                try:
                    descriptor = os.open(file.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
                except FileNotFoundError:
                    break
                fcntl.flock(descriptor, fcntl.LOCK_SH)
                if is_at(descriptor, file.path):
                    return ModelUse(file, descriptor)
                os.close(descriptor)
        self.find(digest)
        raise ModelStoreError(f"model {file.path} is being replaced again and again")

    def used(self, digest: str) -> None:
        """It was used now: it is evicted later than all that were used before. A store that is
        read-only here keeps its order."""
        with contextlib.suppress(OSError):
            about = self._about(hex_digits(digest))
            about.touch()
            now_ns = self._clock_ns()
            os.utime(about, ns=(now_ns, now_ns))

    def remove(self, digest: str) -> int:
        """Delete a model; returns its bytes. Raises `ModelInUse`, `ModelMissing`."""
        file = self.find(digest)
        with self._locked(), store_errors(file.path), exclusive(file.path) as free:
            if not free:
                raise ModelInUse(
                    f"model sha256:{file.sha256} is in use: stop the pools that have it loaded"
                )
            size_bytes = file.path.stat().st_size
            file.path.unlink()
            self._about(hex_digits(digest)).unlink(missing_ok=True)
            return size_bytes

    # --- imports -----------------------------------------------------------------------------

    def prepare(self) -> None:
        """Make the folders. Raises `ModelStoreError`."""
        with store_errors(self.path):
            for folder in (self._blobs, self._abouts, self.partials):
                folder.mkdir(parents=True, exist_ok=True, mode=0o755)

    def prove_room(self, needed_bytes: int, partial: Path) -> None:
        """A model of that size, of which `partial` is the beginning, can be written now and will be
        within the quota once it is published and others are evicted; none is yet. Raises
        `QuotaExceeded`, `StoreDiskFull`."""
        with self._locked(), store_errors(self.path):
            with self._victims(needed_bytes, partial):
                pass
            there_bytes = partial.stat().st_size if partial.exists() else 0
            free_bytes = shutil.disk_usage(self.path).free
            if free_bytes < needed_bytes - there_bytes:
                raise StoreDiskFull(
                    f"the import needs {needed_bytes - there_bytes} more bytes and the disk of "
                    f"{self.path} has {free_bytes} free: free some, or remove models"
                )

    def publish(self, partial: Path, digest: str, name: str | None, source: str) -> StoredModel:
        """Give a whole file, whose digest was proved, its name, and evict what was used longest ago
        where the quota needs it; one that is there already stays where it is not damaged. Raises
        `QuotaExceeded`, with the partial left for another try."""
        blob = self._blobs / hex_digits(digest)
        keep = False
        with contextlib.suppress(ModelUnavailable):
            self.verify(digest)  # not under the lock: it reads all of it
            keep = True
        with self._locked(), store_errors(partial):
            if keep and blob.exists():
                partial.unlink()
            else:
                with self._victims(partial.stat().st_size, partial) as victims:
                    for victim in victims:
                        victim.path.unlink(missing_ok=True)
                        victim.about.unlink(missing_ok=True)
                partial.chmod(0o444)
                partial.replace(blob)
                sync_folder(self._blobs)
            partial_about(partial).unlink(missing_ok=True)
            return self._note(blob, name, source)

    def known(self, digest: str, name: str | None, source: str) -> StoredModel | None:
        """The model where it is there and undamaged, with another name; None where it is not."""
        try:
            self.verify(digest)
        except ModelUnavailable:
            return None
        with self._locked(), store_errors(self.path):
            blob = self._blobs / hex_digits(digest)
            return self._note(blob, name, source) if blob.exists() else None

    # --- inside ------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _victims(self, needed_bytes: int, partial: Path) -> Iterator[Sequence[_Entry]]:
        """What has to go for a model of that size, held meanwhile. Raises `QuotaExceeded`."""
        if self.quota_bytes is None:
            yield ()
            return
        others = sorted(
            (entry for entry in self._all() if entry.path != partial),
            key=lambda entry: (entry.used_ns, entry.path),
        )
        excess_bytes = sum(entry.size_bytes for entry in others) + needed_bytes - self.quota_bytes
        in_use_bytes = 0
        victims: list[_Entry] = []
        with contextlib.ExitStack() as held:
            for entry in others:
                if excess_bytes <= 0:
                    break
                if held.enter_context(exclusive(entry.path)):
                    victims.append(entry)
                    excess_bytes -= entry.size_bytes
                else:
                    in_use_bytes += entry.size_bytes
            if excess_bytes > 0:
                raise QuotaExceeded(needed_bytes, self.quota_bytes, in_use_bytes)
            yield victims

    def _all(self) -> Iterator[_Entry]:
        yield from self._entries(self._blobs)
        yield from self._entries(self.partials)

    def _entries(self, folder: Path) -> Iterator[_Entry]:
        is_blobs = folder == self._blobs
        try:
            listing = list(os.scandir(folder))
        except FileNotFoundError:
            return
        for item in listing:
            # What somebody else put here is neither counted nor touched.
            if item.name.endswith(".json") or (is_blobs and not _HEX.fullmatch(item.name)):
                continue
            path = Path(item.path)
            try:
                if not item.is_file(follow_symlinks=False):
                    continue
                status = item.stat(follow_symlinks=False)
            except FileNotFoundError:
                continue  # another process was faster
            about = self._about(item.name) if is_blobs else partial_about(path)
            used_ns = status.st_mtime_ns
            if is_blobs:
                with contextlib.suppress(OSError):
                    used_ns = about.stat().st_mtime_ns
            yield _Entry(path, about, status.st_size, used_ns)

    def _described(self, entry: _Entry) -> StoredModel:
        about = read_about(entry.about)
        names, source = about.get("names"), about.get("source")
        return StoredModel(
            entry.path.name,
            entry.path,
            entry.size_bytes,
            tuple(n for n in names if isinstance(n, str)) if isinstance(names, list) else (),
            source if isinstance(source, str) else None,
            entry.used_ns // 1_000_000,
        )

    def _note(self, blob: Path, name: str | None, source: str) -> StoredModel:
        about = self._about(blob.name)
        status = blob.stat()
        before = self._described(_Entry(blob, about, status.st_size, status.st_mtime_ns))
        names = dict.fromkeys((*before.names, *([name] if name else ())))
        write_about(about, {"names": list(names)[-NAMES_MAX:], "source": source})
        self.used(blob.name)
        used_ns = about.stat().st_mtime_ns
        return self._described(_Entry(blob, about, status.st_size, used_ns))

    def _about(self, digest: str) -> Path:
        return self._abouts / f"{digest}.json"

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """One at a time changes what is there, over all processes."""
        self.prepare()
        with store_errors(self.path):
            descriptor = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            with store_errors(self.path):
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def hex_digits(digest: str) -> str:
    """The 64 digits of `sha256:HEX` or HEX, lower case. Raises `BadModelReference`."""
    digits = digest.removeprefix("sha256:").lower()
    if not _HEX.fullmatch(digits):
        raise BadModelReference(f"{digest!r} is no digest: sha256: and 64 hex digits")
    return digits


def model_name(name: str) -> str:
    """`name`, where it can be one. Raises `BadModelReference`."""
    if not _NAME.fullmatch(name) or _HEX.fullmatch(name):
        raise BadModelReference(
            f"{name!r} is no name for a model: letters, digits and . _ : / + -, at most 128, "
            "a letter or digit first, and no digest"
        )
    return name
