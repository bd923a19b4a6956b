"""After a restart: the journal becomes the state that the clients were promised (ORCH-3203).

Finished logs are readable again, queued tasks are back in admission order, running strict tasks go
first and are decoded again to the same ids, running best_effort tasks end with WORKER_RESET. What
was admitted, started and ended goes through the core once more in the journal's order, so that
shares (ORCH-3075), quotas and rates (ORCH-3006, ORCH-3077) stand where they stood. It runs before
the service listens.

Where the journal has forgotten something (retention), charges up to there are dropped: half of a
history would favour those whose half is gone, and none at all costs a flow at most what its last
task cost over its weight (start-time fair queueing's bound). Not in the journal, so empty after a
restart: the minute that bounds hard preemptions, and what was learned of speed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec
import structlog

from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.events import (
    Cancel,
    Recover,
    RecoverEnded,
    RecoverStarted,
    SessionRestored,
)
from orchestrator_core.task import Determinism
from orchestratord.ports.journal import Journal
from orchestratord.services import decision_log, records
from orchestratord.services.event_log import TaskLog
from orchestratord.services.jobs import Job, JobTable, Phase
from orchestratord.services.journaled_jobs import job_of
from orchestratord.services.replicas import PoolTraits
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.termination import TerminationService

log = structlog.get_logger("orchestratord.recovery")


class _Duration(msgspec.Struct):
    """What budgets need of a terminal event's data."""

    decode_ms: int = 0


@dataclass(slots=True)
class _SessionPast:
    """What the records say of one session: its budgets are derived, never stored (ORCH-3099)."""

    created_ms: int
    turns: int = 0
    tokens_used: int = 0
    time_used_ms: int = 0


_Fact = Recover | RecoverStarted | RecoverEnded


@dataclass(slots=True)
class _Past:
    """What has been read so far; `started` and `ended` by task key, the latter in its order."""

    started: set[str] = field(default_factory=set)
    ended: dict[str, records.TaskEnded] = field(default_factory=dict)
    sessions: dict[str, _SessionPast] = field(default_factory=dict)
    facts: list[tuple[Job, _Fact]] = field(default_factory=list)
    known_from: int = 0  # of `facts`: nothing that was charged since is missing

    def miss(self) -> None:
        """Something that stood here is not known any more."""
        self.known_from = len(self.facts)


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a replay brought back."""

    waiting: int
    running: int
    finished: int
    reset: int


class RecoveryService:
    def __init__(
        self,
        scheduling: SchedulingService,
        jobs: JobTable,
        journal: Journal,
        termination: TerminationService,
        session_ttl_ms: int,
        pools: Mapping[str, PoolTraits],
    ) -> None:
        self._scheduling = scheduling
        self._jobs = jobs
        self._journal = journal
        self._termination = termination
        self._session_ttl_ms = session_ttl_ms
        self._pools = pools

    def run(self) -> Recovered:
        """Replay everything. Raises `JournalError` when the journal cannot be read."""
        now_ms = self._scheduling.clock_ms()
        past = _Past()
        rows: list[int] = []
        for row, batch in self._journal.replay():
            if rows and row != rows[-1] + 1:
                past.miss()
            rows.append(row)
            for data in batch:
                self._read(row, data, past)
        for key, session in past.sessions.items():
            if session.created_ms + self._session_ttl_ms > now_ms:
                self._scheduling.step(
                    SessionRestored(
                        key,
                        session.created_ms,
                        session.turns,
                        session.tokens_used,
                        session.time_used_ms,
                    )
                )
        recovered = self._restore(past, now_ms)
        self._journal.forget(self._jobs.unused(rows) + self._jobs.expire(now_ms))
        if rows:
            log.info(
                "journal.replayed",
                rows=len(rows),
                waiting=recovered.waiting,
                running=recovered.running,
                finished=recovered.finished,
                reset=recovered.reset,
            )
        return recovered

    def _read(self, row: int, data: bytes, past: _Past) -> None:
        try:
            record = records.decode(data)
        except msgspec.DecodeError as error:
            log.error("journal.unreadable_record", row=row, cause=str(error))
            past.miss()
            return
        match record:
            case records.TaskAdmitted():
                self._admitted(row, record, past)
            case records.TaskStarted():
                key = f"{record.tenant}/{record.task_id}"
                if (job := self._jobs.get(key)) is None:
                    past.miss()
                    return
                past.started.add(key)
                past.facts.append((job, RecoverStarted(key, record.set_key)))
                self._jobs.use_row(job, row)
            case records.TaskEnded():
                key = f"{record.tenant}/{record.task_id}"
                if (job := self._jobs.get(key)) is None:
                    return
                self._jobs.use_row(job, row)
                if key in past.ended:
                    return  # it was not certain that the first one was written
                past.ended[key] = record
                tokens = job.task.prompt_tokens + record.tokens_out if record.started else 0
                end = RecoverEnded(key, tokens, record.started, record.gave_way)
                past.facts.append((job, end))
                session = past.sessions.get(job.task.session_key)
                if session is not None and record.started:  # else it took nothing from it
                    session.tokens_used += tokens
                    duration = msgspec.json.decode(record.data, type=_Duration)
                    session.time_used_ms += duration.decode_ms
            case records.Probe():
                pass
            case records.SessionForgotten():
                past.sessions.pop(f"{record.tenant}/{record.session_id}", None)
                now_ms = self._scheduling.clock_ms()
                at_ms = min(record.at_ms or now_ms, now_ms)
                self._jobs.hold_row(row, at_ms + self._session_ttl_ms)

    def _admitted(self, row: int, record: records.TaskAdmitted, past: _Past) -> None:
        job = job_of(record, self._session_ttl_ms, self._pools.get(record.pool_id))
        key = job.task.key
        known = self._jobs.get(key)
        if known is not None:  # an id that was used again after its retention
            if key not in past.ended:
                past.facts.append((known, RecoverEnded(key)))
            known.phase = Phase.ENDED
            self._jobs.replace(known, job)
        else:
            self._jobs.add(job)
        # Whatever came before is of another task that had this id.
        past.started.discard(key)
        past.ended.pop(key, None)
        home = job.pool_id if self._serves(job) else ""
        fact = Recover(job.task, home, record.admitted_ms or record.arrived_ms)
        past.facts.append((job, fact))
        self._jobs.use_row(job, row)
        session = past.sessions.get(job.task.session_key)
        if session is None or session.created_ms != record.session_created_ms:
            session = _SessionPast(record.session_created_ms)
            past.sessions[job.task.session_key] = session
        session.turns = record.session_turns

    def _serves(self, job: Job) -> bool:
        """Whether its pool is still there and has its model: a reload is forgotten with a restart.
        A digest is the pool's until its replicas say otherwise."""
        pool, model_ref = self._pools.get(job.pool_id), job.task.model_ref
        return pool is not None and (model_ref in pool.spec.model_refs or "sha256:" in model_ref)

    def _restore(self, past: _Past, now_ms: int) -> Recovered:
        """Jobs become what the records say of them, and the core goes through what happened."""
        for key, end in past.ended.items():
            ended = self._jobs.get(key)
            assert ended is not None, "its admission was read before"
            self._restore_log(ended, end, now_ms)
        live = list(self._jobs.live())
        was_running = [job for job in live if job.task.key in past.started]
        reset = [job for job in was_running if job.task.determinism is Determinism.BEST_EFFORT]
        for job in reset:
            self._reset(job)
        for number, (job, fact) in enumerate(past.facts):
            if job.phase is Phase.ENDED and not self._serves(job):
                continue  # nobody's share or quota any more
            if isinstance(fact, RecoverStarted) and number < past.known_from:
                fact = msgspec.structs.replace(fact, charged=False)
            self._scheduling.step(fact)
        for job in reset:
            self._scheduling.step(Cancel(job.task.key))
        return Recovered(
            waiting=len(live) - len(was_running),
            running=len(was_running) - len(reset),
            finished=len(past.ended),
            reset=len(reset),
        )

    def _restore_log(self, job: Job, end: records.TaskEnded, now_ms: int) -> None:
        job.log = TaskLog.restored(end.sealed, end.tokens_out)
        job.log.truncated = end.truncated
        if end.started:
            job.log.start(job.promise.started_data())
        job.log.end(end.event, end.data)
        job.ended_ms = min(end.ended_ms, now_ms)
        job.note(decision_log.ended_before(job, end))
        self._jobs.retain(job, now_ms)

    def _reset(self, job: Job) -> None:
        job.log.start(job.promise.started_data())
        self._termination.fail(
            job,
            Refusal(
                Code.WORKER_RESET,
                Reason.WORKER,
                "the orchestrator restarted while this best_effort task ran",
                retriable=True,
                pool_id=job.pool_id,
            ),
        )
