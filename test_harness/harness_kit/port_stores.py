"""Every implementation of the ports, as the conformance suites open them.

A store is the place that outlives one orchestrator: a file, a broker, a memory. The suites take
each registry below as it is; the NATS implementations (ORCH-3204) only have to be added.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

from orchestratord.infra.local_bus import LocalBus
from orchestratord.infra.local_coordinator import LocalCoordinator
from orchestratord.infra.memory_journal import MemoryDisk, MemoryJournal
from orchestratord.infra.sqlite_journal import SqliteJournal
from orchestratord.ports.bus import Bus
from orchestratord.ports.coordinator import Coordinator
from orchestratord.ports.journal import Journal


class JournalStore(Protocol):
    """One journal's place. Used within one event loop; one journal is open at a time."""

    def open(self) -> Journal: ...

    async def crash(self) -> None:
        """The process that has the journal open dies at this instant."""
        ...


class SqliteJournalStore:
    """Crash: what is on disk at that instant is copied, and the copy is opened next."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._generation = 0
        self._open: SqliteJournal | None = None

    def open(self) -> Journal:
        self._open = SqliteJournal(self._path())
        return self._open

    async def crash(self) -> None:
        before = self._path()
        self._generation += 1
        after = self._path()
        after.parent.mkdir(parents=True)
        shutil.copy(before, after)
        shutil.copy(f"{before}-wal", f"{after}-wal")
        if self._open is not None:
            await self._open.close()

    def _path(self) -> Path:
        return self._folder / str(self._generation) / "journal.sqlite3"


class MemoryJournalStore:
    def __init__(self, folder: Path) -> None:
        del folder  # nothing of it is on a disk
        self._disk = MemoryDisk()
        self._open: MemoryJournal | None = None

    def open(self) -> Journal:
        self._open = MemoryJournal(self._disk)
        return self._open

    async def crash(self) -> None:
        assert self._open is not None
        self._disk = self._open.crash()


JOURNAL_STORES: Mapping[str, Callable[[Path], JournalStore]] = {
    "memory": MemoryJournalStore,
    "sqlite": SqliteJournalStore,
}

# Each call opens one more participant of the same deployment.
COORDINATORS: Mapping[str, Callable[[Path], Coordinator]] = {"local": LocalCoordinator}
BUSES: Mapping[str, Callable[[], Bus]] = {"local": LocalBus}
