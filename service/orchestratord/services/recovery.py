"""After a restart: the journal becomes the state that the clients were promised (ORCH-3203).

Finished logs are readable again, queued tasks are back in admission order, running strict tasks go
first and are decoded again to the same ids, running best_effort tasks end with WORKER_RESET. It
runs before the service listens.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import msgspec
import structlog

from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.events import Recover, SessionRestored
from orchestrator_core.pool import SetKey
from orchestrator_core.task import Determinism, Priority, Task, Workload
from orchestratord.ports.journal import Journal
from orchestratord.services import records
from orchestratord.services.event_log import TaskLog
from orchestratord.services.jobs import Job, JobTable, Payload, Promise
from orchestratord.services.prompt_blocks import prompt_blocks
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
        started: dict[str, SetKey] = {}
        ended: dict[str, records.TaskEnded] = {}
        sessions: dict[str, _SessionPast] = {}
        rows: list[int] = []
        for row, batch in self._journal.replay():
            rows.append(row)
            for data in batch:
                self._replay(row, data, started, ended, sessions)
        for key, past in sessions.items():
            if past.created_ms + self._session_ttl_ms > now_ms:
                self._scheduling.step(
                    SessionRestored(
                        key, past.created_ms, past.turns, past.tokens_used, past.time_used_ms
                    )
                )
        counts = {"waiting": 0, "running": 0, "finished": 0, "reset": 0}
        for job in tuple(self._jobs.live()):
            counts[self._restore(job, started, ended, now_ms)] += 1
        self._journal.forget(self._jobs.unused(rows) + self._jobs.expire(now_ms))
        recovered = Recovered(**counts)
        if rows:
            log.info("journal.replayed", rows=len(rows), **counts)
        return recovered

    def _replay(
        self,
        row: int,
        data: bytes,
        started: dict[str, SetKey],
        ended: dict[str, records.TaskEnded],
        sessions: dict[str, _SessionPast],
    ) -> None:
        try:
            record = records.decode(data)
        except msgspec.DecodeError as error:
            log.error("journal.unreadable_record", row=row, cause=str(error))
            return
        match record:
            case records.TaskAdmitted():
                job = _job(record, self._session_ttl_ms, self._pools.get(record.pool_id))
                # Whatever came before is of another task that had this id.
                started.pop(job.task.key, None)
                ended.pop(job.task.key, None)
                known = self._jobs.get(job.task.key)
                if known is not None:  # an id that was used again after its retention
                    self._jobs.replace(known, job)
                else:
                    self._jobs.add(job)
                self._jobs.use_row(job, row)
                past = sessions.get(job.task.session_key)
                if past is None or past.created_ms != record.session_created_ms:
                    past = sessions[job.task.session_key] = _SessionPast(record.session_created_ms)
                past.turns = record.session_turns
            case records.TaskStarted():
                key = f"{record.tenant}/{record.task_id}"
                started[key] = record.set_key
                self._use(key, row)
            case records.TaskEnded():
                key = f"{record.tenant}/{record.task_id}"
                ended[key] = record
                self._use(key, row)
                self._charge(key, record, sessions)
            case records.Probe():
                pass
            case records.SessionForgotten():
                sessions.pop(f"{record.tenant}/{record.session_id}", None)
                now_ms = self._scheduling.clock_ms()
                at_ms = min(record.at_ms or now_ms, now_ms)
                self._jobs.hold_row(row, at_ms + self._session_ttl_ms)

    def _charge(
        self, key: str, record: records.TaskEnded, sessions: dict[str, _SessionPast]
    ) -> None:
        """What an ended task took from its session: nothing where it never started."""
        job = self._jobs.get(key)
        past = None if job is None else sessions.get(job.task.session_key)
        if job is None or past is None or not record.started:
            return
        past.tokens_used += job.task.prompt_tokens + record.tokens_out
        past.time_used_ms += msgspec.json.decode(record.data, type=_Duration).decode_ms

    def _use(self, key: str, row: int) -> None:
        job = self._jobs.get(key)
        if job is not None:
            self._jobs.use_row(job, row)

    def _restore(
        self, job: Job, started: dict[str, SetKey], ended: dict[str, records.TaskEnded], now_ms: int
    ) -> str:
        key = job.task.key
        end = ended.get(key)
        if end is not None:
            job.log = TaskLog.restored(end.sealed, end.tokens_out)
            job.log.truncated = end.truncated
            if end.started:
                job.log.start(job.promise.started_data())
            job.log.end(end.event, end.data)
            job.ended_ms = end.ended_ms
            self._jobs.retain(job, now_ms)
            return "finished"
        set_key = started.get(key)
        was_running = set_key is not None
        if was_running and job.task.determinism is Determinism.BEST_EFFORT:
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
            return "reset"
        self._scheduling.step(Recover(job.task, job.pool_id, was_running, set_key))
        return "running" if was_running else "waiting"


def _job(record: records.TaskAdmitted, session_ttl_ms: int, pool: PoolTraits | None) -> Job:
    key = f"{record.tenant}/{record.task_id}"
    workload, determinism = Workload(record.workload), Determinism(record.determinism)
    task = Task(
        key=key,
        tenant=record.tenant,
        session_key=f"{record.tenant}/{record.session_id}",
        engine=record.engine,
        model_ref=record.model_ref,
        priority=Priority(record.priority),
        workload=workload,
        determinism=determinism,
        ctx=record.ctx,
        max_tokens=record.max_tokens,
        prompt_tokens=record.prompt_tokens,
        cost_tokens=record.cost_tokens,
        arrived_ms=record.arrived_ms,
        deadline_at_ms=record.deadline_at_ms,
        client_id=record.client_id,
        kv_hint=record.kv_hint,
        sampler_profile_version=record.sampler_profile_version,
        prefix_blocks=prompt_blocks(
            record.prompt,
            workload,
            determinism,
            record.kv_hint,
            lambda: [] if pool is None else [pool],
        ),
    )
    return Job(
        task=task,
        task_id=record.task_id,
        session_id=record.session_id,
        correlation_id=record.correlation_id,
        body_digest=record.body_digest,
        payload=Payload(record.prompt, record.inputs, record.sampling, record.seed),
        promise=Promise(record.queue_position, record.predicted_start_ms, record.backoff_ms),
        pool_id=record.pool_id,
        session_until_ms=record.session_created_ms + session_ttl_ms,
        recovered=True,
    )
