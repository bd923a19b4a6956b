"""What only the SQLite journal can get wrong: its file, its groups, its disk."""

from __future__ import annotations

import asyncio
import re
import sqlite3
import stat
from pathlib import Path

import pytest

from harness_kit.waiting import wait_until_async
from orchestratord.infra.sqlite_journal import SCHEMA_VERSION, SqliteJournal
from orchestratord.ports.journal import JournalError

pytestmark = pytest.mark.req("ORCH-3203", partial="all but the journal")


async def fill(path: Path, records: list[bytes]) -> list[int]:
    journal = SqliteJournal(path)
    rows = list(await asyncio.gather(*[journal.append(record) for record in records]))
    await journal.close()
    return rows


def test_what_waits_together_is_committed_together(tmp_path: Path) -> None:
    async def scenario() -> tuple[int, int]:
        journal = SqliteJournal(tmp_path / "journal")
        await asyncio.gather(*[journal.append(b"x" * 600) for _ in range(1000)])
        stats = journal.stats()
        await journal.close()
        return stats.records, stats.commits

    records, commits = asyncio.run(scenario())

    assert records == 1000
    # The loop thread appends a thousand in milliseconds, and each commit waits for the disk.
    assert commits < 500


def test_nothing_is_acknowledged_before_its_commit(tmp_path: Path) -> None:
    async def scenario() -> bool:
        journal = SqliteJournal(tmp_path / "journal")
        # Holding the database stands for a commit that is still under way.
        with journal._database_lock:
            durable = journal.append(b"x")
            await wait_until_async(lambda: journal.stats().waiting_records == 0, 5)
            turn_over = asyncio.Event()
            asyncio.get_running_loop().call_soon(turn_over.set)
            await turn_over.wait()
            early = durable.done()
        await durable
        await journal.close()
        return early

    assert not asyncio.run(scenario())


def test_a_group_is_one_row(tmp_path: Path) -> None:
    rows = asyncio.run(fill(tmp_path / "journal", [b"x" * 600] * 1000))

    with sqlite3.connect(tmp_path / "journal") as database:
        stored = database.execute("SELECT count(*) FROM journal").fetchone()[0]
    database.close()

    assert stored == len(set(rows)) < 500


def test_the_file_can_be_read_by_its_owner_only(tmp_path: Path) -> None:
    asyncio.run(fill(tmp_path / "state" / "journal", [b"prompt"]))

    mode = stat.S_IMODE((tmp_path / "state" / "journal").stat().st_mode)

    assert mode == 0o600


@pytest.mark.parametrize(("sync", "level"), [("off", 0), ("normal", 1), ("full", 2)])
def test_the_sync_mode_reaches_sqlite(tmp_path: Path, sync: str, level: int) -> None:
    async def scenario() -> int:
        journal = SqliteJournal(tmp_path / "journal", sync)  # type: ignore[arg-type]
        found = int(journal._database.execute("PRAGMA synchronous").fetchone()[0])
        await journal.close()
        return found

    assert asyncio.run(scenario()) == level


def test_a_journal_in_use_is_refused_to_a_second_opener(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = SqliteJournal(tmp_path / "journal")
        await journal.append(b"x")
        try:
            SqliteJournal(tmp_path / "journal")
        finally:
            await journal.close()

    with pytest.raises(JournalError, match="database is locked"):
        asyncio.run(scenario())


def test_a_file_that_is_no_database_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"not a database, but long enough to look at" * 100)

    with pytest.raises(JournalError, match=r"damaged .* move it and journal-wal away"):
        asyncio.run(fill(tmp_path / "journal", []))


def test_a_journal_with_a_torn_page_is_refused_with_advice(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    asyncio.run(fill(path, [bytes([number]) * 5000 for number in range(200)]))
    content = bytearray(path.read_bytes())
    # Page 5 and all after it: where the rows are, whatever their layout.
    content[4 * 4096 :] = b"\xff" * (len(content) - 4 * 4096)
    path.write_bytes(content)

    with pytest.raises(JournalError, match="damaged"):
        asyncio.run(fill(path, []))


def test_a_row_that_is_not_a_list_of_records_stops_the_replay(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    asyncio.run(fill(path, [b"fine"]))
    with sqlite3.connect(path) as database:
        database.execute("INSERT INTO journal (records) VALUES (?)", (b"\xc1",))
    database.close()

    async def scenario() -> list[tuple[int, list[bytes]]]:
        journal = SqliteJournal(path)
        try:
            return list(journal.replay())
        finally:
            await journal.close()

    with pytest.raises(JournalError, match=r"damaged \(row 2"):
        asyncio.run(scenario())


def test_a_journal_of_a_newer_version_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    asyncio.run(fill(path, [b"x"]))
    with sqlite3.connect(path) as database:
        database.execute(f"PRAGMA user_version={SCHEMA_VERSION + 1}")
    database.close()
    before = path.read_bytes()

    with pytest.raises(JournalError, match="newer llama-orch"):
        asyncio.run(fill(path, []))

    assert path.read_bytes() == before


def test_another_programs_database_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE somebody (elses TEXT)")
    database.close()
    before = path.read_bytes()

    with pytest.raises(JournalError, match="not a journal of llama-orch"):
        asyncio.run(fill(path, []))

    assert path.read_bytes() == before


def test_a_path_that_cannot_be_created_names_path_and_reason(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    with pytest.raises(JournalError, match=r"cannot open journal .*/file/journal: "):
        asyncio.run(fill(tmp_path / "file" / "journal", []))


@pytest.mark.parametrize(
    ("backlog_records", "backlog_bytes"), [(3, 10**6), (10**6, 30)], ids=["records", "bytes"]
)
def test_a_journal_that_is_behind_fails_at_once_and_recovers(
    tmp_path: Path, backlog_records: int, backlog_bytes: int
) -> None:
    async def scenario() -> tuple[list[str], list[bytes]]:
        journal = SqliteJournal(
            tmp_path / "journal", backlog_records=backlog_records, backlog_bytes=backlog_bytes
        )
        # Holding the database stands for a disk that does not answer. The writer takes one to
        # three records on its way there; the bound counts the three that wait behind them.
        with journal._database_lock:
            futures = [journal.append(b"ten bytes." if n else b"first") for n in range(10)]
            failed_at_once = [f for f in futures if f.done()]
            refusals = [str(future.exception()) for future in failed_at_once]
        accepted = [future for future in futures if future not in failed_at_once]
        await asyncio.gather(*accepted)
        await journal.append(b"recovered")
        await journal.close()
        journal = SqliteJournal(tmp_path / "journal")
        kept = [record for _, records in journal.replay() for record in records]
        await journal.close()
        assert len(kept) == len(accepted) + 1
        return refusals, kept

    refusals, kept = asyncio.run(scenario())

    assert 4 <= len(refusals) <= 7
    assert all("is behind" in refusal for refusal in refusals)
    assert kept[0] == b"first"
    assert kept[-1] == b"recovered"


def test_a_record_larger_than_a_group_still_gets_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestratord.infra.sqlite_journal.GROUP_BYTES", 100)
    records = [b"a" * 60, b"b" * 60, b"c" * 500, b"d"]

    async def scenario() -> tuple[list[int], list[bytes]]:
        rows = await fill(tmp_path / "journal", records)
        journal = SqliteJournal(tmp_path / "journal")
        kept = [record for _, group in journal.replay() for record in group]
        await journal.close()
        return rows, kept

    rows, kept = asyncio.run(scenario())

    assert kept == records
    assert len(set(rows)) == 4


def test_a_journal_whose_rows_are_forgotten_gets_smaller(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("orchestratord.infra.sqlite_journal.SHRINK_FREE_PAGES", 16)
    path = tmp_path / "journal"

    async def scenario() -> tuple[int, int]:
        journal = SqliteJournal(path, "off")
        rows = await asyncio.gather(*[journal.append(b"x" * 100_000) for _ in range(20)])
        await journal.close()
        full = path.stat().st_size
        journal = SqliteJournal(path, "off")
        journal.forget(rows)
        await journal.close()
        return full, path.stat().st_size

    full, empty = asyncio.run(scenario())

    assert full > 2_000_000
    assert empty < full / 4


def test_what_is_forgotten_is_not_left_in_the_file(tmp_path: Path) -> None:
    path = tmp_path / "journal"

    async def scenario() -> None:
        journal = SqliteJournal(path, "off")
        rows = [await journal.append(b"prompt %d" % number * 1000) for number in range(8)]
        journal.forget(rows[1:])
        await journal.close()

    asyncio.run(scenario())

    assert b"prompt 0" in path.read_bytes()
    assert not re.search(b"prompt [1-7]", path.read_bytes())


def test_stats_count_what_happened(tmp_path: Path) -> None:
    async def scenario() -> None:
        journal = SqliteJournal(tmp_path / "journal")
        await journal.append(b"x" * 10_000)
        await journal.append(b"y")
        stats = journal.stats()
        await journal.close()

        assert stats.records == 2
        assert stats.commits == 2
        assert stats.failed_commits == 0
        assert stats.waiting_records == 0
        assert stats.bytes_on_disk > 10_000
        assert stats.last_commit_ms > 0

    asyncio.run(scenario())
