"""The tasks this process knows: waiting, running, and finished ones whose log is still kept.

A job joins what the core knows (`Task`) with what only services need: the prompt, the promise, the
log, the journal rows. Invariant: a job leaves the table only after its terminal event and its
retention (ORCH-3024: until then its id admits nothing new).
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum

from orchestrator_core.task import Task
from orchestrator_core.value import Value
from orchestratord.services.decisions import DECISION_BYTES, Decision, note
from orchestratord.services.event_log import TaskLog
from worker_adapters.adapter_api.types import Decode, Sampling

# What a finished task costs in memory beside its text (measured with tracemalloc: about 1.6 KiB);
# counted against `streams.retain_bytes` so that a flood of short tasks is bounded too.
JOB_OVERHEAD_BYTES = 2048
# One block hash of a prompt: an integer object and its place in a tuple.
BLOCK_BYTES = 40
# Rows kept only because a session in them still lives; beyond this the oldest are given up.
MAX_DEFERRED_ROWS = 100_000


class Phase(Enum):
    """Where a job is; it only moves down, but for a restart or a failover (running to waiting)."""

    WAITING = "waiting"
    RUNNING = "running"
    ENDING = "ending"  # decided, its terminal event is on the way to the disk
    ENDED = "ended"


class Promise(Value, frozen=True):
    """The numbers of the 202; `started` repeats them (ORCH-3029)."""

    queue_position: int
    predicted_start_ms: int
    backoff_ms: int

    def started_data(self) -> bytes:
        return b'{"queue_position":%d,"predicted_start_ms":%d}' % (
            self.queue_position,
            self.predicted_start_ms,
        )


# Until the core has decided.
NO_PROMISE = Promise(0, 0, 0)


class Payload(Value, frozen=True):
    """What the engine gets; dropped when the task ends."""

    prompt: str
    inputs: tuple[str, ...]
    sampling: Sampling
    seed: int


@dataclass(slots=True, eq=False)
class Job:
    """One task with everything around it. `payload` is None once it has ended."""

    task: Task
    task_id: str
    session_id: str
    correlation_id: str
    body_digest: bytes
    payload: Payload | None
    log: TaskLog = field(default_factory=TaskLog)
    phase: Phase = Phase.WAITING
    promise: Promise = NO_PROMISE
    pool_id: str = ""
    replica_id: str = ""
    engine_version: str = ""
    model_digest: str = ""
    admitted: asyncio.Future[int] | None = None
    begun: asyncio.Future[int] | None = None
    ended: asyncio.Future[int] | None = None
    decode: Decode | None = None
    rows: list[int] = field(default_factory=list)
    # On the wall clock, 0: not yet; and the same instants on the monotonic one.
    first_dispatch_ms: int = 0
    first_dispatch_s: float = 0.0
    first_token_ms: int = 0
    first_token_s: float = 0.0
    ended_ms: int = 0
    attempts: int = 0
    failovers: int = 0  # that it changed its replica, be it for a loss or a drain
    # On the monotonic clock: when its worker was lost; 0 as soon as its stream goes on.
    lost_s: float = 0.0
    # Workers lost since its stream last went on.
    losses_in_a_row: int = 0
    # Interrupted for a more urgent task and not running yet again; how often that happened; and
    # whether it was removed for one while it waited.
    preempted: bool = False
    preemptions: int = 0
    made_way: bool = False
    # Its worker was drained under it: so often, and it is not running yet again.
    drains: int = 0
    displaced: bool = False
    # Of the time since its first dispatch: what preemption and drains cost it.
    excused_s: float = 0.0
    session_until_ms: int = 0
    refused: bool = False  # its admission could not be written: it never was
    tokens_in: int = 0
    # Of `log.tokens`: what the measure of throughput has counted.
    metered_tokens: int = 0
    kv_warm: bool = False
    # Of KV in the replica that it ran on last, as it left it; None: it has not run, or it is gone.
    eviction_events: int | None = None
    # Came back with a restart: clients may have seen more of it than its log holds.
    recovered: bool = False
    # What was decided about it, in this order; of too many the first and the newest.
    decisions: list[Decision] = field(default_factory=list)
    # The W3C header of its submission; "" where there was none, or a restart lay between.
    traceparent: str = ""
    line: bytes = b""  # what its log lines have in common, while it lives (`task_lines`)

    def note(self, decision: Decision) -> None:
        """Something was decided about it. O(1)."""
        note(self.decisions, decision)

    @property
    def retained_bytes(self) -> int:
        result_bytes = len(self.log.terminal[1]) if self.log.terminal is not None else 0
        blocks_bytes = BLOCK_BYTES * len(self.task.prefix_blocks)
        decisions_bytes = DECISION_BYTES * len(self.decisions)
        own_bytes = JOB_OVERHEAD_BYTES + result_bytes + blocks_bytes + decisions_bytes
        return own_bytes + self.log.text_bytes


class JobTable:
    """All jobs by task key, the finished ones in the order they ended, and who needs which row."""

    def __init__(self, retain_ms: int, retain_bytes: int) -> None:
        self.retain_ms = retain_ms
        self.retain_bytes = retain_bytes
        self._jobs: dict[str, Job] = {}
        self._ended: OrderedDict[str, Job] = OrderedDict()
        self._ended_bytes = 0
        self._expired_ms = 0
        self._row_users: Counter[int] = Counter()
        self._dependents: dict[int, list[int]] = {}
        # (when its session ends, rows): a session's turns are read back from its tasks' records.
        self._deferred: list[tuple[int, list[int]]] = []

    def get(self, key: str) -> Job | None:
        return self._jobs.get(key)

    def add(self, job: Job) -> None:
        self._jobs[job.task.key] = job

    def replace(self, known: Job, job: Job) -> None:
        """The id was used again after the retention of its first task (replay only).

        The new task is admitted now, behind those before it; the rows of the old one are given up
        by themselves, its end never before its admission."""
        heapq.heappush(self._deferred, (known.session_until_ms, known.rows))
        del self._jobs[known.task.key]
        self._jobs[job.task.key] = job

    def discard(self, job: Job) -> None:
        """Forget a job at once: it was never admitted, or its retention is over."""
        if self._jobs.get(job.task.key) is job:
            del self._jobs[job.task.key]

    def live(self) -> Iterator[Job]:
        """Jobs without a visible terminal event, in admission order."""
        return (job for job in tuple(self._jobs.values()) if job.phase is not Phase.ENDED)

    def __len__(self) -> int:
        return len(self._jobs)

    @property
    def ended_bytes(self) -> int:
        return self._ended_bytes

    def use_row(self, job: Job, row: int) -> None:
        """The journal row `row` holds a record of this job; the first one admits it."""
        if row in job.rows:
            return
        self._row_users[row] += 1
        if self._jobs.get(job.task.key) is job:
            job.rows.append(row)
        elif job.rows and job.rows[0] in self._row_users:
            # Its task is forgotten already: it goes after the admission, as in `_release`.
            self._dependents.setdefault(job.rows[0], []).append(row)
        else:
            heapq.heappush(self._deferred, (0, [row]))

    def retain(self, job: Job, now_ms: int) -> None:
        """The job has ended: keep its log, drop its request and what only a live job needs."""
        job.phase = Phase.ENDED
        job.ended_ms = min(job.ended_ms or now_ms, now_ms)  # no later, whoever set the clock back
        job.payload = None
        job.decode = None
        job.begun = None
        job.line = b""
        if self._jobs.get(job.task.key) is job:
            self._ended[job.task.key] = job
            self._ended_bytes += job.retained_bytes

    def expire(self, now_ms: int) -> list[int]:
        """Forget finished jobs beyond time or bytes; returns the journal rows nobody needs now."""
        free: list[int] = []
        if now_ms < self._expired_ms:  # the clock was set back: none ended in the future
            for job in self._ended.values():
                job.ended_ms = min(job.ended_ms, now_ms)
        self._expired_ms = now_ms
        while self._deferred and (
            self._deferred[0][0] <= now_ms or len(self._deferred) > MAX_DEFERRED_ROWS
        ):
            free += self._release(heapq.heappop(self._deferred)[1])
        while self._ended:
            key, job = next(iter(self._ended.items()))
            if job.ended_ms + self.retain_ms > now_ms and self._ended_bytes <= self.retain_bytes:
                break
            del self._ended[key]
            self.discard(job)
            self._ended_bytes -= job.retained_bytes
            if job.session_until_ms > now_ms:
                heapq.heappush(self._deferred, (job.session_until_ms, job.rows))
            else:
                free += self._release(job.rows)
        return free

    def hold_row(self, row: int, until_ms: int) -> None:
        """Keep a row that belongs to no job until then (a forgotten session must stay so)."""
        self._row_users[row] += 1
        heapq.heappush(self._deferred, (until_ms, [row]))

    def _release(self, rows: list[int]) -> list[int]:
        """Give up a job's rows. Its later records go no sooner than its admission: a row that
        others keep would otherwise bring an ended task back to life after a restart."""
        if not rows:
            return []
        admission, later = rows[0], rows[1:]
        if not self._drop(admission):
            self._dependents.setdefault(admission, []).extend(later)
            return []
        free = [admission]
        waiting = later + self._dependents.pop(admission, [])
        while waiting:
            row = waiting.pop()
            if self._drop(row):
                free.append(row)
                waiting += self._dependents.pop(row, [])
        return free

    def _drop(self, row: int) -> bool:
        self._row_users[row] -= 1
        if self._row_users[row] > 0:
            return False
        del self._row_users[row]
        return True

    def unused(self, rows: list[int]) -> list[int]:
        """Which of these rows no job needs (after a replay)."""
        return [row for row in rows if row not in self._row_users]
