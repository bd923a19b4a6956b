"""The durable record of what was promised (ORCH-3203).

A record is opaque bytes to the journal. Appends that wait together are committed together in one
row; `row` numbers grow and are never reused. A row is forgotten as a whole, when nothing in it is
needed any more.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator
from typing import Protocol


class JournalError(Exception):
    """The journal cannot take or give records (disk full, damage); says which file and why."""


class Journal(Protocol):
    @property
    def failing(self) -> bool:
        """The last commit failed: admissions would fail too."""
        ...

    def append(self, record: bytes, *, urgent: bool = True) -> asyncio.Future[int]:
        """Queue a record; the future gives its row once it is durable, or raises `JournalError`.

        Records become durable in the order of the calls. One that is not urgent waits a little
        for others to share a commit with. Must be called from the event loop.
        """
        ...

    def replay(self) -> Iterator[tuple[int, list[bytes]]]:
        """All rows in order, each with its records; before the first append only."""
        ...

    async def read(self, row: int) -> list[bytes]:
        """The records of a durable row; none for one that is forgotten or never was.

        Raises `JournalError` where it cannot be read, also after `close`.
        """
        ...

    def forget(self, rows: Iterable[int]) -> None:
        """These rows are not needed after a restart; they disappear with a later commit."""
        ...

    async def close(self) -> None:
        """Commit what waits, then close. Idempotent."""
        ...
