"""The journal in one SQLite file: write-ahead log, one writer thread, group commit.

On a task's path: admission appends a record and answers 202 when its future resolves; everything
that waits while a commit is under way goes into the next one, as one row. Invariants: a resolved
future means the record survives SIGKILL (and power loss with `sync="full"`); replay gives records
in the order of the append calls; a row number is never used twice. A failed commit fails its own
group only; the next group is tried afresh. Requirements: ORCH-3203.

One row per group, not one per record: a row costs the interpreter lock once per row.
"""

from __future__ import annotations

import asyncio
import os
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


@dataclass(frozen=True, slots=True)
class _Waiting:
    record: bytes
    durable: asyncio.Future[int]


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
        self._changed = threading.Condition()
        # All below is guarded by `_changed`.
        self._waiting: list[_Waiting] = []
        self._waiting_bytes = 0
        self._forgotten: list[int] = []
        self._urgent = False
        self._closing = False
        # The connection is used by the replaying thread and the writer, never at once.
        self._database_lock = threading.Lock()
        self._writer: threading.Thread | None = None
        self._appended = False
        self._commits = 0
        self._records = 0
        self._failed_commits = 0
        self._last_commit_ms = 0.0
        self._database = _open(path, sync)

    def append(self, record: bytes, *, urgent: bool = True) -> asyncio.Future[int]:
        """Queue a record; the future gives its row, or raises `JournalError` (ports.journal).

        A future that raised after an I/O error leaves open whether the record is on disk.
        Raises `JournalError` at once after `close`.
        """
        durable: asyncio.Future[int] = self._loop.create_future()
        with self._changed:
            if self._closing:
                raise JournalError(f"journal {self._path} is closed")
            behind = (
                len(self._waiting) >= self._backlog_records
                or self._waiting_bytes + len(record) > self._backlog_bytes
            )
            if not behind:
                self._appended = True
                self._waiting.append(_Waiting(record, durable))
                self._waiting_bytes += len(record)
                self._start_writer()
                first = len(self._waiting) == 1
                if first or (urgent and not self._urgent):
                    self._changed.notify()
                self._urgent = self._urgent or urgent
        if behind:
            durable.set_exception(
                JournalError(
                    f"journal {self._path} is behind: {len(self._waiting)} records "
                    f"({self._waiting_bytes} bytes) wait for the disk"
                )
            )
        return durable

    def replay(self) -> Iterator[tuple[int, list[bytes]]]:
        """All rows in order, each with its records; raises `JournalError` after the first append
        or where a row cannot be read."""
        if self._appended or self._closing:
            raise JournalError(f"journal {self._path}: replay comes before the first append")
        return self._rows()

    def forget(self, rows: Iterable[int]) -> None:
        """These rows are not needed any more; deleted with a later commit, on disk within about
        a second. Unknown rows are ignored, and so is everything after `close`."""
        with self._changed:
            self._forgotten.extend(rows)
            if self._forgotten and not self._closing:
                self._start_writer()
                self._changed.notify()

    def stats(self) -> JournalStats:
        """Figures for metrics; costs two `stat` calls."""
        return JournalStats(
            bytes_on_disk=_size(self._path) + _size(Path(f"{self._path}-wal")),
            commits=self._commits,
            records=self._records,
            failed_commits=self._failed_commits,
            waiting_records=len(self._waiting),
            last_commit_ms=self._last_commit_ms,
        )

    async def close(self) -> None:
        """Commit what waits, then close the file. Idempotent."""
        with self._changed:
            self._closing = True
            self._changed.notify()
            writer = self._writer
        if writer is not None:
            await asyncio.to_thread(writer.join)
        with self._database_lock:
            self._database.close()

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

    def _start_writer(self) -> None:
        if self._writer is None:
            self._writer = threading.Thread(target=self._write, name="journal", daemon=True)
            self._writer.start()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._forgotten or self._closing)
                if not self._urgent:
                    linger_s = LAZY_LINGER_S if self._waiting else FORGET_LINGER_S
                    self._changed.wait_for(lambda: self._urgent or self._closing, linger_s)
                group = self._take_group()
                forgotten, self._forgotten = self._forgotten, []
                if not group and not forgotten and self._closing:
                    return
                last_round = self._closing and not self._waiting
            if not self._commit(group, forgotten):
                if last_round:
                    return  # what could not be deleted now is deleted after the next replay
                with self._changed:
                    self._forgotten.extend(forgotten)

    def _take_group(self) -> list[_Waiting]:
        """The longest prefix of what waits that fits one commit; at least one record."""
        size = 0
        count = 0
        for waiting in self._waiting:
            size += len(waiting.record)
            if count and size > GROUP_BYTES:
                size -= len(waiting.record)
                break
            count += 1
        group = self._waiting[:count]
        self._waiting = self._waiting[count:]
        self._urgent = bool(self._waiting)
        self._waiting_bytes -= size
        return group

    def _commit(self, group: list[_Waiting], forgotten: list[int]) -> bool:
        started = time.perf_counter()
        row = 0
        packed = self._encoder.encode([waiting.record for waiting in group])
        try:
            with self._database_lock:
                # Every statement gives the interpreter lock away and waits to get it back, so the
                # usual group is one statement that commits itself.
                if forgotten:
                    self._database.execute("BEGIN IMMEDIATE")
                    self._database.execute(
                        "DELETE FROM journal WHERE row IN (SELECT value FROM json_each(?))",
                        (msgspec.json.encode(forgotten).decode(),),
                    )
                if group:
                    cursor = self._database.execute(
                        "INSERT INTO journal (records) VALUES (?)", (packed,)
                    )
                    row = cursor.lastrowid or 0
                if forgotten:
                    self._database.execute("COMMIT")
                if not group:
                    self._shrink()
        except sqlite3.Error as error:
            # Rolling back on the same connection makes the next commit overwrite what was half
            # written; a new connection could find it and bring refused records back.
            with suppress(sqlite3.Error), self._database_lock:
                self._database.execute("ROLLBACK")
            self._failed_commits += 1
            message = f"cannot write to journal {self._path}: {error}"
            _log.error("journal.commit_failed", file=str(self._path), reason=str(error))
            self._tell(group, error=JournalError(message))
            return False
        self._last_commit_ms = (time.perf_counter() - started) * 1000
        self._commits += 1
        self._records += len(group)
        self._tell(group, row=row)
        return True

    def _shrink(self) -> None:
        """Give free pages back to the file system while nobody waits."""
        free = int(self._database.execute("PRAGMA freelist_count").fetchone()[0])
        pages = int(self._database.execute("PRAGMA page_count").fetchone()[0])
        if free > SHRINK_FREE_PAGES and free * 2 > pages:
            # As a script: `execute` steps a statement without columns once, which frees one page.
            self._database.executescript(f"PRAGMA incremental_vacuum({SHRINK_STEP_PAGES})")

    def _tell(
        self, group: list[_Waiting], *, row: int = 0, error: JournalError | None = None
    ) -> None:
        if not group:
            return
        try:
            self._loop.call_soon_threadsafe(
                _settle, group, row, error, self._on_commit, self._last_commit_ms
            )
        except RuntimeError:
            # The loop was closed first: nobody can hear it, and the records are safe all the same.
            _log.warning("journal.nobody_listens", file=str(self._path), records=len(group))


def _settle(
    group: list[_Waiting],
    row: int,
    error: JournalError | None,
    on_commit: Callable[[float], None] | None,
    commit_ms: float,
) -> None:
    if on_commit is not None and error is None:
        on_commit(commit_ms)
    for waiting in group:
        if waiting.durable.done():  # the one who asked has gone away
            continue
        if error is None:
            waiting.durable.set_result(row)
        else:
            waiting.durable.set_exception(error)


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
