"""The engines that run, on disk: `engines.json`, so that a next start ends what a killed one left.

Engines die with their parent (`parent_death`); this is for what an engine started on its own and
for engines that shook that off. Invariant: a process is killed only when it carries the random
marker of the run that the file belongs to, or has a pid and a time of start that stand there: some
workers overwrite the environment that holds the marker. Requirements: OC-POOL-3010.
"""

from __future__ import annotations

import os
from pathlib import Path

import msgspec
import structlog

from pool_managerd.processes import kill_carriers, kill_started_at, marker_of, start_ticks

MARKER_LENGTH = 32  # hexadecimal digits; anything else in the file is not ours

_log = structlog.get_logger(__name__)


class Entry(msgspec.Struct, frozen=True):
    """One running engine; `start_ticks` tells it from a later process of the same pid. `workers`
    are what it had started when it became Ready, by pid and start."""

    pool_id: str
    replica_id: str
    pid: int
    start_ticks: int
    workers: list[tuple[int, int]] = []


class _Ledger(msgspec.Struct):
    marker: str
    engines: list[Entry]


class EngineLedger:
    """The file at `path`, for the run with this random `marker` (32 hex digits)."""

    def __init__(self, path: Path, marker: str) -> None:
        self._path = path
        self._ledger = _Ledger(marker, [])

    def reap_leftovers(self) -> list[int]:
        """End what the last run left; returns the pids. A file that cannot be read is reported and
        left behind."""
        try:
            last = msgspec.json.decode(self._path.read_bytes(), type=_Ledger)
        except FileNotFoundError:
            return []
        except (OSError, msgspec.DecodeError) as error:
            _log.warning("engines.ledger_unreadable", file=str(self._path), reason=str(error))
            return []
        marker = last.marker
        if len(marker) != MARKER_LENGTH or not all(digit in "0123456789abcdef" for digit in marker):
            _log.warning("engines.ledger_unreadable", file=str(self._path), reason="bad marker")
            return []
        killed = kill_carriers(marker)
        for engine in last.engines:
            for pid, ticks in [(engine.pid, engine.start_ticks), *engine.workers]:
                if pid not in killed and kill_started_at(pid, ticks):
                    killed.append(pid)
        if killed:
            _log.warning("engines.leftovers_killed", pids=killed)
        self._path.unlink(missing_ok=True)
        return killed

    def add(self, pool_id: str, replica_id: str, pid: int) -> None:
        """An engine runs. A disk that refuses is reported, and the engine runs all the same."""
        self._ledger.engines.append(Entry(pool_id, replica_id, pid, start_ticks(pid) or 0))
        self._save()

    def note_workers(self, pid: int, workers: list[tuple[int, int]]) -> None:
        """An engine is up, with all that it starts (see `started_by`)."""
        self._ledger.engines = [
            msgspec.structs.replace(entry, workers=workers) if entry.pid == pid else entry
            for entry in self._ledger.engines
        ]
        self._save()

    @property
    def engines(self) -> tuple[Entry, ...]:
        """Those that run; from any thread."""
        return tuple(self._ledger.engines)

    def owner_of(self, pid: int) -> tuple[str, str] | None:
        """The (pool id, replica id) whose engine or a process of it this is; from any thread.

        By its marker, else by its session, which an engine leads: a program that renames itself
        (vLLM's workers do) overwrites the environment that /proc shows.
        """
        prefix = f"{self._ledger.marker}:"
        marker = marker_of(pid)
        if marker is not None and marker.startswith(prefix):
            pool_id, _, replica_id = marker.removeprefix(prefix).removesuffix(";").partition("/")
            return pool_id, replica_id
        try:
            session = os.getsid(pid)
        except OSError:
            return None
        led = (entry for entry in self.engines if entry.pid == session)
        return next(((entry.pool_id, entry.replica_id) for entry in led), None)

    def remove(self, pid: int) -> None:
        """An engine and all it started have ended."""
        self._ledger.engines = [entry for entry in self._ledger.engines if entry.pid != pid]
        self._save()

    def clear(self) -> None:
        """Nothing runs any more."""
        self._path.unlink(missing_ok=True)

    def _save(self) -> None:
        try:
            self._write()
        except OSError as error:
            _log.warning("engines.ledger_failed", file=str(self._path), reason=error.strerror)

    def _write(self) -> None:
        beside = self._path.with_name(self._path.name + ".new")
        descriptor = os.open(beside, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.json.encode(self._ledger))
        beside.replace(self._path)
