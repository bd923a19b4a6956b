"""The journal in one SQLite file: write-ahead log, one writer thread, group commit.

On a task's path: admission appends a record and answers 202 when its future resolves; everything
that waits while a commit is under way goes into the next one, as one row. Invariants: a resolved
future means the record survives SIGKILL (and power loss with `sync="full"`); replay gives records
in the order of the append calls; a row number is never used twice. A failed commit fails its own
group only; the next group is tried afresh. Requirements: ORCH-3203.

One row per group, not one per record: a row costs the interpreter lock once per row.

Above 400 lines because both sides of the two threads' hand-over stand in one place, where a race
would show.
"""

from __future__ import annotations

import asyncio
import os
import queue
import sqlite3
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from orchestratord.ports.journal import JournalError

SyncMode = Literal["full", "normal", "off"]

SCHEMA_VERSION = 1
APPLICATION_ID = 0x4C4C4F4A  # "LLOJ": tells our file from any other SQLite file
# One commit's row stays far below SQLite's 1 GB limit and keeps the latency of a group bounded.
GROUP_BYTES = 16 * 1024 * 1024
# Bodies are at most a few MiB; a backlog beyond this means that the disk stands still.
BACKLOG_BYTES = 256 * 1024 * 1024
BACKLOG_RECORDS = 65_536
# Deletions ride on the next append; without one for this long they get a commit of their own.
FORGET_LINGER_S = 1.0
# When the last group had company, the next one waits this long for more: a commit costs the same
# for one record as for fifty (PostgreSQL's commit_delay and commit_siblings, for the same reason).
GATHER_S = 0.001
GATHER_RECORDS = 64
# A record that nobody waits for takes the next commit, or one of its own after this long.
LAZY_LINGER_S = 0.05
# Free pages are reused; only a file that is mostly empty is made smaller, in the idle moments.
SHRINK_FREE_PAGES = 1024
SHRINK_STEP_PAGES = 512
REPLAY_CHUNK_ROWS = 128
WAL_LIMIT_BYTES = 64 * 1024 * 1024

_log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class JournalStats:
    """Figures for metrics; counters since the journal was opened."""

    bytes_on_disk: int
    commits: int
    records: int
    failed_commits: int
    waiting_records: int
    last_commit_ms: float


@dataclass(slots=True)
class _Group:
    """What one commit takes: records with who waits for them, and rows to delete."""

    records: list[bytes]
    futures: list[asyncio.Future[int]]
    forgotten: list[int]
    row: int = 0
    error: JournalError | None = None
    commit_ms: float = 0.0


class SqliteJournal:
    """`Journal` in the file at `path`, which is created (mode 0600) with its folder if absent.

    Raises `JournalError` where the file is damaged, in use, foreign, or from a newer version.
    """

    def __init__(
        self,
        path: Path,
        sync: SyncMode = "full",
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        backlog_records: int = BACKLOG_RECORDS,
        backlog_bytes: int = BACKLOG_BYTES,
        on_commit: Callable[[float], None] | None = None,
    ) -> None:
        """`on_commit(ms)` hears from the event loop how long each group of appends took."""
        self._on_commit = on_commit
        self._path = path
        self._loop = loop if loop is not None else asyncio.get_running_loop()
        self._backlog_records = backlog_records
        self._backlog_bytes = backlog_bytes
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder = msgspec.msgpack.Decoder(list[bytes])
        # What waits for the next group; touched by the event loop only.
        self._records: list[bytes] = []
        self._futures: list[asyncio.Future[int]] = []
        self._waiting_bytes = 0
        self._forgotten: list[int] = []
        self._urgent = 0
        self._company = False
        self._busy = False  # a group is with the writer
        self._timer: asyncio.Handle | None = None
        self._due_s = 0.0
        self._turn = asyncio.Event()
        self._closing = False
        self._appended = False
        # One group at a time crosses to the writer: one wake-up there, one back.
        self._groups: queue.SimpleQueue[_Group | None] = queue.SimpleQueue()
        self._writer: threading.Thread | None = None
        # The connection is used by the replaying thread and the writer, never at once.
        self._database_lock = threading.Lock()
        self.failing = False  # since the last commit
        self._commits = 0
        self._committed_records = 0
        self._failed_commits = 0
        self._last_commit_ms = 0.0
        self._database = _open(path, sync)

    def append(self, record: bytes, *, urgent: bool = True) -> asyncio.Future[int]:
        """Queue a record; the future gives its row, or raises `JournalError` (ports.journal).

        A future that raised after an I/O error leaves open whether the record is on disk.
        Raises `JournalError` at once after `close`.
        """
        if self._closing:
            raise JournalError(f"journal {self._path} is closed")
        durable: asyncio.Future[int] = self._loop.create_future()
        if (
            len(self._records) >= self._backlog_records
            or self._waiting_bytes + len(record) > self._backlog_bytes
        ):
            durable.set_exception(
                JournalError(
                    f"journal {self._path} is behind: {len(self._records)} records "
                    f"({self._waiting_bytes} bytes) wait for the disk"
                )
            )
            return durable
        self._appended = True
        self._records.append(record)
        self._futures.append(durable)
        self._waiting_bytes += len(record)
        self._urgent += urgent
        if not self._busy:
            self._plan()
        return durable

    def replay(self) -> Iterator[tuple[int, list[bytes]]]:
        """All rows in order, each with its records; raises `JournalError` after the first append
        or where a row cannot be read."""
        if self._appended or self._closing:
            raise JournalError(f"journal {self._path}: replay comes before the first append")
        return self._rows()

    async def read(self, row: int) -> list[bytes]:
        """The records of one row; in a thread: the writer may have the file (ports.journal)."""
        return await asyncio.to_thread(self._read, row)

    def forget(self, rows: Iterable[int]) -> None:
        """These rows are not needed any more; deleted with a later commit, on disk within about
        a second. Unknown rows are ignored, and so is everything after `close`."""
        if not self._closing:
            self._forgotten.extend(rows)
            if not self._busy:
                self._plan()

    def stats(self) -> JournalStats:
        """Figures for metrics; costs two `stat` calls."""
        return JournalStats(
            bytes_on_disk=_size(self._path) + _size(Path(f"{self._path}-wal")),
            commits=self._commits,
            records=self._committed_records,
            failed_commits=self._failed_commits,
            waiting_records=len(self._records),
            last_commit_ms=self._last_commit_ms,
        )

    async def close(self) -> None:
        """Commit what waits, then close the file. Idempotent."""
        self._closing = True
        while self._busy or self._records or self._forgotten:
            if not self._busy:
                self._hand_over()
            self._turn.clear()
            await self._turn.wait()
        writer, self._writer = self._writer, None
        if writer is not None:
            self._groups.put(None)
            await asyncio.to_thread(writer.join)
        with self._database_lock:
            self._database.close()

    def _read(self, row: int) -> list[bytes]:
        try:
            with self._database_lock:
                found = self._database.execute(
                    "SELECT records FROM journal WHERE row = ?", (row,)
                ).fetchone()
            return [] if found is None else self._decoder.decode(found[0])
        except (sqlite3.Error, msgspec.DecodeError, TypeError) as error:
            raise JournalError(_damaged(self._path, f"row {row}: {error}")) from error

    def _rows(self) -> Iterator[tuple[int, list[bytes]]]:
        last = 0
        while True:
            try:
                with self._database_lock:
                    chunk: list[tuple[int, bytes]] = self._database.execute(
                        "SELECT row, records FROM journal WHERE row > ? ORDER BY row LIMIT ?",
                        (last, REPLAY_CHUNK_ROWS),
                    ).fetchall()
            except sqlite3.Error as error:
                raise JournalError(_damaged(self._path, str(error))) from error
            if not chunk:
                return
            for row, packed in chunk:
                try:
                    records = self._decoder.decode(packed)
                except (msgspec.DecodeError, TypeError) as error:
                    raise JournalError(_damaged(self._path, f"row {row}: {error}")) from error
                yield row, records
                last = row

    def _plan(self) -> None:
        """When the next group leaves; nothing while one is with the writer."""
        if self._urgent:
            gather = self._company and len(self._records) < GATHER_RECORDS
            delay_s = GATHER_S if gather else 0.0
        elif self._records:
            delay_s = LAZY_LINGER_S
        elif self._forgotten:
            delay_s = FORGET_LINGER_S
        else:
            return
        due_s = self._loop.time() + delay_s
        if self._timer is not None:
            if self._due_s <= due_s:
                return
            self._timer.cancel()
        self._due_s = due_s
        # Not at once even without delay: what this turn of the loop appends goes along.
        self._timer = (
            self._loop.call_later(delay_s, self._hand_over)
            if delay_s
            else self._loop.call_soon(self._hand_over)
        )

    def _hand_over(self) -> None:
        """Give the writer the longest prefix that fits one commit, and what to delete."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._busy:
            return
        count = self._fitting()
        group = _Group(self._records[:count], self._futures[:count], self._forgotten)
        self._records = self._records[count:]
        self._futures = self._futures[count:]
        self._forgotten = []
        self._waiting_bytes -= sum(map(len, group.records))
        self._company = self._urgent > 1
        self._urgent = len(self._records)
        self._busy = True
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
            self._writer.start()
        self._groups.put(group)

    def _fitting(self) -> int:
        if self._waiting_bytes <= GROUP_BYTES:
            return len(self._records)
        size = 0
        for count, record in enumerate(self._records):
            size += len(record)
            if count and size > GROUP_BYTES:
                return count
        return len(self._records)

    def _settle(self, group: _Group) -> None:
        """The writer is done with a group."""
        self._busy = False
        self._turn.set()
        if group.error is None:
            self._commits += 1
            self.failing = False
            self._committed_records += len(group.records)
            self._last_commit_ms = group.commit_ms
        else:
            self._failed_commits += 1
            self.failing = True
            if not self._closing:  # after a close the next replay finds them again
                self._forgotten = group.forgotten + self._forgotten
        for durable in group.futures:
            if durable.done():  # the one who asked has gone away
                continue
            if group.error is None:
                durable.set_result(group.row)
            else:
                durable.set_exception(group.error)
        if not self._closing and not self._busy:
            self._plan()
        if self._on_commit is not None and group.records and group.error is None:
            self._on_commit(group.commit_ms)

    # --- the writer's thread -------------------------------------------------------------------

    def _write(self) -> None:
        for group in iter(self._groups.get, None):
            self._commit(group)
            try:
                self._loop.call_soon_threadsafe(self._settle, group)
            except RuntimeError:
                # The loop was closed first: nobody can hear it, and the records are safe.
                _log.warning(
                    "journal.nobody_listens", file=str(self._path), records=len(group.records)
                )

    def _commit(self, group: _Group) -> None:
        started = time.perf_counter()
        try:
            with self._database_lock:
                # Every statement gives the interpreter lock away and waits to get it back, so the
                # usual group is one statement that commits itself.
                if group.forgotten:
                    self._database.execute("BEGIN IMMEDIATE")
                    self._database.execute(
                        "DELETE FROM journal WHERE row IN (SELECT value FROM json_each(?))",
                        (msgspec.json.encode(group.forgotten).decode(),),
                    )
                if group.records:
                    packed = self._encoder.encode(group.records)
                    cursor = self._database.execute(
                        "INSERT INTO journal (records) VALUES (?)", (packed,)
                    )
                    group.row = cursor.lastrowid or 0
                if group.forgotten:
                    self._database.execute("COMMIT")
                    if not group.records:
                        self._shrink()
        except Exception as error:  # noqa: BLE001 - whatever it is, somebody waits for an answer
            # Rolling back on the same connection makes the next commit overwrite what was half
            # written; a new connection could find it and bring refused records back.
            with suppress(sqlite3.Error), self._database_lock:
                self._database.execute("ROLLBACK")
            group.error = JournalError(f"cannot write to journal {self._path}: {error}")
            _log.error("journal.commit_failed", file=str(self._path), reason=str(error))
        group.commit_ms = (time.perf_counter() - started) * 1000

    def _shrink(self) -> None:
        """Give free pages back to the file system while nobody waits."""
        free = int(self._database.execute("PRAGMA freelist_count").fetchone()[0])
        pages = int(self._database.execute("PRAGMA page_count").fetchone()[0])
        if free > SHRINK_FREE_PAGES and free * 2 > pages:
            # As a script: `execute` steps a statement without columns once, which frees one page.
            self._database.executescript(f"PRAGMA incremental_vacuum({SHRINK_STEP_PAGES})")


def _open(path: Path, sync: SyncMode) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        # Prompts are in it: the file is created readable by its owner only; -wal inherits that.
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise JournalError(f"cannot open journal {path}: {error.strerror or error}") from error
    database = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
    try:
        _prepare(database, path, sync)
    except sqlite3.DatabaseError as error:
        database.close()
        if error.sqlite_errorname in ("SQLITE_CORRUPT", "SQLITE_NOTADB"):
            raise JournalError(_damaged(path, str(error))) from error
        raise JournalError(f"cannot open journal {path}: {error}") from error
    except JournalError:
        database.close()
        raise
    return database


def _prepare(database: sqlite3.Connection, path: Path, sync: SyncMode) -> None:
    """Set the connection up; create or check the schema."""
    # Exclusive: a second process gets "database is locked", and no shared-memory file is needed.
    database.execute("PRAGMA locking_mode=EXCLUSIVE")
    version = int(database.execute("PRAGMA user_version").fetchone()[0])
    application = int(database.execute("PRAGMA application_id").fetchone()[0])
    tables = int(database.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0])
    if tables and application != APPLICATION_ID:
        raise JournalError(f"{path} is a SQLite file but not a journal of llama-orch; left alone")
    if version > SCHEMA_VERSION:
        raise JournalError(
            f"journal {path} has version {version}, this program reads up to {SCHEMA_VERSION}: "
            "it was written by a newer llama-orch; use that one, or another server.state_dir"
        )
    database.execute("PRAGMA secure_delete=ON")  # what is forgotten holds prompts
    database.execute("PRAGMA auto_vacuum=INCREMENTAL")
    database.execute("PRAGMA journal_mode=WAL")
    database.execute(f"PRAGMA synchronous={sync.upper()}")
    database.execute(f"PRAGMA journal_size_limit={WAL_LIMIT_BYTES}")
    if not tables:
        database.executescript(
            "BEGIN IMMEDIATE;"
            "CREATE TABLE journal (row INTEGER PRIMARY KEY AUTOINCREMENT, records BLOB NOT NULL);"
            f"PRAGMA application_id={APPLICATION_ID};"
            f"PRAGMA user_version={SCHEMA_VERSION};"
            "COMMIT;"
        )
    findings = [str(finding) for (finding,) in database.execute("PRAGMA quick_check(1)")]
    if findings != ["ok"]:
        raise JournalError(_damaged(path, findings[0]))


def _damaged(path: Path, reason: str) -> str:
    return (
        f"journal {path} is damaged ({reason}): restore it from a backup, or move it and "
        f"{path.name}-wal away to start with an empty journal, which forgets accepted tasks"
    )


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
