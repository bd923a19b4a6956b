"""Leases of one machine: a locked file per lease in the state directory.

Before a task's path: the orchestrator takes the lease of its state directory before it opens the
journal, so two processes never write one journal. The lock (flock) goes with the process, however
it dies; the file stays and carries the revision on. Invariant: a lease's revision is larger than
every earlier one of its name, over any number of restarts. Requirements: ORCH-3203.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import msgspec

from orchestratord.ports.coordinator import Lease, LeaseHeld, LeaseLost


class LeaseFileDamaged(Exception):
    """A lease's file cannot be read, so its last revision is unknown; names the file."""


class _Holder(msgspec.Struct, frozen=True):
    """What the file says: the last or present holder."""

    pid: int
    owner: str
    revision: int


@dataclass(frozen=True, slots=True)
class _Held:
    lease: Lease
    descriptor: int
    path: Path
    lost: asyncio.Event


class LocalCoordinator:
    """`Coordinator` over the files `<name>.lease` in `state_dir`, which is created if absent."""

    def __init__(self, state_dir: Path) -> None:
        self._state_dir = state_dir
        self._held: dict[str, _Held] = {}

    async def acquire(self, name: str, owner: str) -> Lease:
        """Take a free lease. Raises `LeaseHeld` (names the holder's pid), `LeaseFileDamaged`, and
        OSError where the directory cannot be written."""
        if name in self._held:
            raise LeaseHeld(f"lease {name!r} is already held by this process (pid {os.getpid()})")
        path = self._state_dir / f"{quote(name, safe='')}.lease"
        self._state_dir.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            lease = _lock_and_sign(descriptor, path, name, owner)
        except BaseException:
            os.close(descriptor)
            raise
        self._held[name] = _Held(lease, descriptor, path, asyncio.Event())
        return lease

    async def renew(self, lease: Lease) -> Lease:
        """Keep it. Raises `LeaseLost` where its file was removed or replaced under us."""
        held = self._ours(lease)
        if held is None:
            raise LeaseLost(f"lease {lease.name!r} at revision {lease.revision} is not ours")
        try:
            in_place = os.path.samestat(os.fstat(held.descriptor), held.path.stat())
        except FileNotFoundError:
            in_place = False
        if not in_place:
            self._let_go(held)
            held.lost.set()
            raise LeaseLost(f"lease {lease.name!r}: {held.path} was removed or replaced")
        return lease

    async def release(self, lease: Lease) -> None:
        """Give it up; a lease that is not ours any more is left alone."""
        held = self._ours(lease)
        if held is not None:
            self._let_go(held)

    def lost(self, lease: Lease) -> asyncio.Event:
        """Set when the lease is gone without our doing; set already for one that is not ours."""
        held = self._ours(lease)
        if held is not None:
            return held.lost
        gone = asyncio.Event()
        gone.set()
        return gone

    async def close(self) -> None:
        """Give up every lease. Idempotent."""
        for held in list(self._held.values()):
            self._let_go(held)

    def _ours(self, lease: Lease) -> _Held | None:
        held = self._held.get(lease.name)
        return held if held is not None and held.lease == lease else None

    def _let_go(self, held: _Held) -> None:
        del self._held[held.lease.name]
        os.close(held.descriptor)  # which ends the lock


def _lock_and_sign(descriptor: int, path: Path, name: str, owner: str) -> Lease:
    """Lock the open file and write the next revision into it."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = _read(descriptor)
        who = f"pid {holder.pid} ({holder.owner})" if holder is not None else "another process"
        raise LeaseHeld(f"lease {name!r} in {path.parent} is held by {who}") from None
    if not path.exists() or not os.path.samestat(os.fstat(descriptor), path.stat()):
        raise LeaseHeld(f"lease {name!r}: {path} was replaced while it was being taken")
    last = _read(descriptor)
    if last is None and os.fstat(descriptor).st_size > 0:
        raise LeaseFileDamaged(
            f"{path} cannot be read; remove it if no llama-orch runs on {path.parent}"
        )
    revision = 1 if last is None else last.revision + 1
    # One write well below a sector: it is there as a whole or not at all.
    line = msgspec.json.encode(_Holder(os.getpid(), owner[:128], revision)) + b"\n"
    os.pwrite(descriptor, line, 0)
    os.ftruncate(descriptor, len(line))
    os.fsync(descriptor)
    return Lease(name, owner, revision)


def _read(descriptor: int) -> _Holder | None:
    try:
        return msgspec.json.decode(os.pread(descriptor, 1024, 0), type=_Holder)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
