"""The faults that the fake journal plays."""

from __future__ import annotations

import asyncio

import pytest

from orchestratord.infra.memory_journal import MemoryJournal
from orchestratord.ports.journal import JournalError


def test_a_held_journal_acknowledges_nothing_until_it_moves_again() -> None:
    async def scenario() -> tuple[bool, int]:
        journal = MemoryJournal()
        journal.hold()
        waiting = journal.append(b"x")
        await journal.append(b"y") if waiting.done() else None
        before = waiting.done()
        journal.resume()
        return before, await waiting

    assert asyncio.run(scenario()) == (False, 1)


def test_a_crash_loses_what_was_not_acknowledged_and_nothing_else() -> None:
    async def scenario() -> list[tuple[int, list[bytes]]]:
        journal = MemoryJournal()
        await journal.append(b"kept")
        journal.append(b"lost")
        disk = journal.crash()
        with pytest.raises(JournalError, match="closed"):
            journal.append(b"dead")
        return list(MemoryJournal(disk).replay())

    assert asyncio.run(scenario()) == [(1, [b"kept"])]


def test_a_failing_journal_refuses_with_its_reason_and_recovers() -> None:
    async def scenario() -> int:
        journal = MemoryJournal()
        journal.fail("disk full")
        with pytest.raises(JournalError, match="disk full"):
            await journal.append(b"x")
        journal.fail(None)
        return await journal.append(b"y")

    assert asyncio.run(scenario()) == 1
