"""What every journal promises (ports.journal), whatever it is made of."""

from __future__ import annotations

import asyncio

import pytest

from harness_kit.port_stores import JournalStore
from orchestratord.ports.journal import Journal, JournalError

pytestmark = pytest.mark.req("ORCH-3203", partial="all but the journal")


def replayed(journal: Journal) -> list[bytes]:
    return [record for _, records in journal.replay() for record in records]


def test_a_new_journal_has_nothing_to_replay(journal_store: JournalStore) -> None:
    async def scenario() -> list[bytes]:
        journal = journal_store.open()
        found = replayed(journal)
        await journal.close()
        return found

    assert asyncio.run(scenario()) == []


def test_what_was_acknowledged_survives_a_crash_in_the_order_of_the_appends(
    journal_store: JournalStore,
) -> None:
    records = [b"record %d" % number for number in range(300)]

    async def scenario() -> tuple[list[int], list[tuple[int, list[bytes]]]]:
        journal = journal_store.open()
        rows = list(await asyncio.gather(*[journal.append(record) for record in records]))
        await journal_store.crash()
        journal = journal_store.open()
        replay = list(journal.replay())
        await journal.close()
        return rows, replay

    rows, replay = asyncio.run(scenario())

    assert [record for _, kept in replay for record in kept] == records
    assert [row for row, kept in replay for _ in kept] == rows
    assert [row for row, _ in replay] == sorted({row for row, _ in replay})


def test_records_of_any_content_come_back_byte_by_byte(journal_store: JournalStore) -> None:
    records = [b"", b"\x00\xff\xfe", "schön ✓".encode(), bytes(range(256)) * 1000]

    async def scenario() -> list[bytes]:
        journal = journal_store.open()
        await asyncio.gather(*[journal.append(record) for record in records])
        await journal.close()
        journal = journal_store.open()
        found = replayed(journal)
        await journal.close()
        return found

    assert asyncio.run(scenario()) == records


def test_a_forgotten_row_is_gone_after_a_restart_and_no_other(journal_store: JournalStore) -> None:
    async def scenario() -> list[bytes]:
        journal = journal_store.open()
        await journal.append(b"first")
        second = await journal.append(b"second")
        await journal.append(b"third")
        journal.forget([second])
        await journal.close()
        journal = journal_store.open()
        found = replayed(journal)
        await journal.close()
        return found

    assert asyncio.run(scenario()) == [b"first", b"third"]


def test_a_row_number_is_never_used_again(journal_store: JournalStore) -> None:
    async def scenario() -> tuple[int, int]:
        journal = journal_store.open()
        before = await journal.append(b"to be forgotten")
        journal.forget([before])
        await journal.close()
        journal = journal_store.open()
        after = await journal.append(b"later")
        await journal.close()
        return before, after

    before, after = asyncio.run(scenario())

    assert after > before


def test_rows_may_be_forgotten_while_they_are_replayed(journal_store: JournalStore) -> None:
    async def scenario() -> tuple[list[bytes], list[bytes]]:
        journal = journal_store.open()
        for number in range(5):
            await journal.append(b"%d" % number)
        await journal.close()
        journal = journal_store.open()
        first: list[bytes] = []
        for row, records in journal.replay():
            first += records
            journal.forget([row])
        await journal.close()
        journal = journal_store.open()
        second = replayed(journal)
        await journal.close()
        return first, second

    assert asyncio.run(scenario()) == ([b"0", b"1", b"2", b"3", b"4"], [])


def test_replay_after_the_first_append_is_refused(journal_store: JournalStore) -> None:
    async def scenario() -> None:
        journal = journal_store.open()
        await journal.append(b"x")
        try:
            journal.replay()
        finally:
            await journal.close()

    with pytest.raises(JournalError, match="before the first append"):
        asyncio.run(scenario())


def test_closing_commits_what_waits_and_may_be_done_twice(journal_store: JournalStore) -> None:
    async def scenario() -> tuple[bool, list[bytes]]:
        journal = journal_store.open()
        waiting = journal.append(b"just in time")
        await journal.close()
        await journal.close()
        await waiting
        journal = journal_store.open()
        found = replayed(journal)
        await journal.close()
        return waiting.done(), found

    assert asyncio.run(scenario()) == (True, [b"just in time"])


def test_a_closed_journal_refuses_records(journal_store: JournalStore) -> None:
    async def scenario() -> None:
        journal = journal_store.open()
        await journal.close()
        await journal.append(b"too late")

    with pytest.raises(JournalError, match="closed"):
        asyncio.run(scenario())


def test_one_who_stopped_waiting_does_not_hold_up_the_others(journal_store: JournalStore) -> None:
    async def scenario() -> list[bytes]:
        journal = journal_store.open()
        futures = [journal.append(b"%d" % number) for number in range(3)]
        futures[1].cancel()
        await futures[0]
        await futures[2]
        await journal.close()
        journal = journal_store.open()
        found = replayed(journal)
        await journal.close()
        return found

    assert asyncio.run(scenario()) == [b"0", b"1", b"2"]


def test_a_row_can_be_read_by_its_number_until_it_is_forgotten(journal_store: JournalStore) -> None:
    async def scenario() -> tuple[list[list[bytes]], list[bytes]]:
        journal = journal_store.open()
        first, second = await journal.append(b"first"), await journal.append(b"second")
        read = [await journal.read(row) for row in (first, second, second + 1000)]
        journal.forget([first])
        await journal.close()
        journal = journal_store.open()
        forgotten = await journal.read(first)
        await journal.close()
        return read, forgotten

    read, forgotten = asyncio.run(scenario())

    assert read == [[b"first"], [b"second"], []]
    assert forgotten == []


def test_a_closed_journal_cannot_be_read(journal_store: JournalStore) -> None:
    async def scenario() -> None:
        journal = journal_store.open()
        row = await journal.append(b"first")
        await journal.close()
        await journal.read(row)

    with pytest.raises(JournalError):
        asyncio.run(scenario())
