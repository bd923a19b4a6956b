"""The journal's port without a disk: the fake that ships, for tests and throw-away runs.

Keeps every promise of `ports.journal` within one process: what waits in one turn of the event loop
becomes one row; futures resolve after that. `crash` says what a disk would still hold.
Requirements: ORCH-3203 (the tests of the services run on it).
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from orchestratord.ports.journal import JournalError


@dataclass(slots=True)
class MemoryDisk:
    """What outlives a `MemoryJournal`: the committed rows and the next row's number."""

    rows: dict[int, list[bytes]] = field(default_factory=dict)
    next_row: int = 1


class MemoryJournal:
    """`Journal` on a `MemoryDisk`: a fresh one, or what an earlier journal left."""

    def __init__(
        self, disk: MemoryDisk | None = None, *, loop: asyncio.AbstractEventLoop | None = None
    ) -> None:
        self._loop = loop if loop is not None else asyncio.get_running_loop()
        self._disk = disk if disk is not None else MemoryDisk()
        self._waiting: list[tuple[bytes, asyncio.Future[int]]] = []
        self._forgotten: set[int] = set()
        self._commit_due = False
        self._appended = False
        self._closed = False
        self._held = False
        self._failure: str | None = None

    @property
    def failing(self) -> bool:
        """Told to fail."""
        return self._failure is not None

    def append(self, record: bytes, *, urgent: bool = True) -> asyncio.Future[int]:
        """Queue a record; the future gives its row (ports.journal). Raises `JournalError` after
        `close` or `crash`."""
        if self._closed:
            raise JournalError("journal in memory is closed")
        self._appended = True
        durable: asyncio.Future[int] = self._loop.create_future()
        self._waiting.append((record, durable))
        self._ask_for_commit()
        return durable

    def replay(self) -> Iterator[tuple[int, list[bytes]]]:
        """All rows in order; raises `JournalError` after the first append."""
        if self._appended or self._closed:
            raise JournalError("journal in memory: replay comes before the first append")
        rows = self._disk.rows
        return iter([(row, list(rows[row])) for row in sorted(rows)])

    async def read(self, row: int) -> list[bytes]:
        """The records of one row; raises `JournalError` after `close` or `crash`."""
        if self._closed:
            raise JournalError("journal in memory is closed")
        return list(self._disk.rows.get(row, ()))

    def forget(self, rows: Iterable[int]) -> None:
        """These rows disappear with the next commit."""
        self._forgotten.update(rows)
        if not self._closed:
            self._ask_for_commit()

    async def close(self) -> None:
        """Commit what waits, then refuse. Idempotent."""
        if not self._closed:
            self._closed = True
            self._commit()

    def hold(self) -> None:
        """The disk stands still: nothing is committed until `resume`."""
        self._held = True

    def resume(self) -> None:
        """The disk moves again."""
        self._held = False
        self._ask_for_commit()

    def fail(self, reason: str | None) -> None:
        """Every commit fails for this reason until called with None."""
        self._failure = reason

    def crash(self) -> MemoryDisk:
        """The process dies now: what waits is lost, its futures never resolve. Returns what is
        durable."""
        self._closed = True
        self._waiting.clear()
        self._forgotten.clear()
        return self._disk

    def _ask_for_commit(self) -> None:
        if not self._commit_due and not self._held:
            self._commit_due = True
            self._loop.call_soon(self._commit_when_due)

    def _commit_when_due(self) -> None:
        self._commit_due = False
        if not self._held and not self._closed:
            self._commit()

    def _commit(self) -> None:
        group, self._waiting = self._waiting, []
        if self._failure is not None:
            error = JournalError(f"cannot write to journal in memory: {self._failure}")
            for _, durable in group:
                if not durable.done():
                    durable.set_exception(error)
            return
        for row in self._forgotten:
            self._disk.rows.pop(row, None)
        self._forgotten.clear()
        if not group:
            return
        row = self._disk.next_row
        self._disk.next_row += 1
        self._disk.rows[row] = [record for record, _ in group]
        for _, durable in group:
            if not durable.done():
                durable.set_result(row)
