"""Readers of event logs: from the log to a writer, at the writer's pace.

On the token path: the log calls `StreamReader.pump`, which asks the log for the bytes from its own
place and writes them at once, in the same turn of the event loop. A reader that cannot take more
only falls behind in the log: it costs no memory beyond its socket buffer and slows nobody
(architecture: hot path rules). Requirements: ORCH-2002, ORCH-3100, ORCH-3202, OC-CTRL-2020.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from orchestratord.services.event_log import STARTED_ID
from orchestratord.services.jobs import Job, Phase
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.sessions import remaining_budgets

KEEP_ALIVE = b": keep-alive\n\n"
KEEP_ALIVE_S = 15.0
# Replays are encoded in steps of this many tokens (about 300 KiB).
REPLAY_TOKENS = 4096
# Beyond this many open streams new readers are refused: each costs a socket and some buffers.
MAX_READERS = 16_384


class EventWriter(Protocol):
    """Where a stream's bytes go. `write` never blocks; `congested` says that it should wait."""

    @property
    def congested(self) -> bool: ...

    def write(self, data: bytes) -> None: ...

    def finish(self, last: bytes = b"") -> None:
        """Write `last`, and the response ends with it. Called once."""
        ...


class StreamReader:
    """One client's place in one log."""

    __slots__ = (
        "_hub",
        "_metrics_due",
        "_open",
        "job",
        "next_id",
        "quiet_s",
        "writer",
    )

    def __init__(self, hub: ReaderHub, job: Job, next_id: int, writer: EventWriter) -> None:
        self._hub = hub
        self.job = job
        self.next_id = next_id
        self.writer = writer
        self.quiet_s = 0.0
        self._metrics_due = False
        self._open = True
        job.log.listen(self.pump)

    def pump(self) -> None:
        """Write what the log has beyond this reader's place, as far as the writer takes it."""
        log = self.job.log
        while self._open and not self.writer.congested:
            before = self.next_id
            data, self.next_id = log.encode(before, REPLAY_TOKENS)
            if data:
                if before <= STARTED_ID < self.next_id and log.started is not None:
                    self._metrics_due = True
                if self._metrics_due and log.terminal is None:
                    data += self._hub.metrics_event(self.job)
                    self._metrics_due = False
                self.quiet_s = 0.0
            if log.terminal is not None and self.next_id > log.last_id:
                self.close()
                self.writer.finish(data)
                return
            if not data:
                return
            self.writer.write(data)
            if self.next_id > log.last_id:
                return

    def tick(self, metrics_due: bool, elapsed_s: float) -> None:
        """Metrics that no token carried since the last tick, or a sign of life."""
        if self._metrics_due and not self.writer.congested and self.next_id > STARTED_ID:
            self.quiet_s = 0.0
            self.writer.write(self._hub.metrics_event(self.job))
            self._metrics_due = False
        elif metrics_due and self.job.phase is Phase.RUNNING and self.next_id > STARTED_ID:
            self._metrics_due = True
        self.quiet_s += elapsed_s
        if self.quiet_s >= KEEP_ALIVE_S and not self.writer.congested:
            self.quiet_s = 0.0
            self.writer.write(KEEP_ALIVE)

    def notice(self) -> None:
        """Something the client plans with has happened (failover, preemption): metrics now."""
        if self.next_id > STARTED_ID and not self.writer.congested:
            self.writer.write(self._hub.metrics_event(self.job))

    def close(self) -> None:
        """Stop listening; idempotent."""
        if self._open:
            self._open = False
            self.job.log.unlisten(self.pump)
            self._hub.forget(self)


class ReaderHub:
    """All open streams; ticks them and writes their metrics events."""

    def __init__(self, scheduling: SchedulingService, metrics_s: float) -> None:
        self._scheduling = scheduling
        self._metrics_s = metrics_s
        self._since_metrics_s = 0.0
        self._readers: dict[StreamReader, None] = {}
        self._of_job: dict[Job, dict[StreamReader, None]] = {}
        self.on_abandoned: Callable[[Job], None] | None = None

    def __len__(self) -> int:
        return len(self._readers)

    @property
    def full(self) -> bool:
        return len(self._readers) >= MAX_READERS

    def attach(self, job: Job, last_event_id: int, writer: EventWriter) -> StreamReader:
        """A reader that goes on right after `last_event_id` (0: from the start)."""
        reader = StreamReader(self, job, last_event_id + 1, writer)
        self._readers[reader] = None
        self._of_job.setdefault(job, {})[reader] = None
        return reader

    def forget(self, reader: StreamReader) -> None:
        self._readers.pop(reader, None)
        readers = self._of_job.get(reader.job, {})
        readers.pop(reader, None)
        if not readers:
            self._of_job.pop(reader.job, None)

    def gone(self, reader: StreamReader) -> None:
        """The client went away before the end."""
        reader.close()
        if self.on_abandoned is not None and not reader.job.log.listened:
            self.on_abandoned(reader.job)

    def tick(self, elapsed_s: float) -> None:
        """Call about once a second."""
        self._since_metrics_s += elapsed_s
        due = self._since_metrics_s >= self._metrics_s
        if due:
            self._since_metrics_s = 0.0
        for reader in tuple(self._readers):
            reader.tick(due, elapsed_s)

    def notice(self, job: Job) -> None:
        """Its readers get metrics now; readers of other tasks cost nothing."""
        for reader in tuple(self._of_job.get(job, ())):
            reader.notice()

    def close_all(self, *, waiting_only: bool) -> None:
        """Shutdown: end responses without a terminal event; their tasks come back."""
        for reader in tuple(self._readers):
            if not waiting_only or reader.job.phase is Phase.WAITING:
                reader.close()
                reader.writer.finish()

    def metrics_event(self, job: Job) -> bytes:
        """A `metrics` event without id: what a client can plan with (ORCH-3100)."""
        scheduler = self._scheduling.scheduler
        now_ms = self._scheduling.clock_ms()
        data: dict[str, Any] = {
            "on_time_probability": round(scheduler.on_time_probability(job.task.key, now_ms), 3),
            "queue_depth": scheduler.queue_depth(job.pool_id, job.task.priority),
            "kv_warmth": job.kv_warm,
            "kv_migrated": False,
            "failovers": job.failovers,
            "preempted": job.preempted,
            "tokens_out": job.log.tokens,
            "replica_id": job.replica_id,
            "engine_version": job.engine_version,
            "model_digest": job.model_digest,
        }
        if job.preempted:
            data["resumable"] = True  # only such tasks are interrupted (ORCH-3086)
        session = scheduler.session(job.task.session_key, now_ms)
        if session is not None:
            data |= remaining_budgets(session)
        return b"event: metrics\ndata: %b\n\n" % msgspec.json.encode(data)
