"""From a leased slot to tokens in the log: one `Attempt` is one decode of one task on one replica.

On the token path: the adapter calls `Attempt.on_tokens` from the event loop with the tokens of one
read; they are appended to the task's log, whose readers write them out. No coroutine, queue, lock
or log line per token. Invariants: every attempt ends in exactly one event to the core (Finished,
Aborted or WorkerLost), or in a Stop or Preempt that came from it, and is never heard again then.
Requirements: ORCH-3017, ORCH-3026, ORCH-3086, ORCH-3201.

Above 400 lines because `Dispatcher` and `Attempt` hold one state machine between them: who may
still be heard is decided in both.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Iterable

import msgspec
import structlog

from orchestrator_core.effects import Dispatch
from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.events import Aborted, Finished, TokensShown, WorkerLost
from orchestrator_core.pool import PreemptionMode
from orchestrator_core.pool_state import Why
from orchestrator_core.task import Determinism, Workload
from orchestratord.ports.journal import Journal, JournalError
from orchestratord.services import decision_log, records
from orchestratord.services.decisions import Decision, Moved
from orchestratord.services.failover import PrefixCheck, TakeOverHistory
from orchestratord.services.jobs import Job, JobTable, Phase
from orchestratord.services.replicas import Replica, ReplicaDirectory
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.telemetry import Telemetry, TokenCounter
from orchestratord.services.termination import TerminationService
from worker_adapters.adapter_api.types import (
    DecodeEnd,
    DecodeRequest,
    EngineError,
    EngineFault,
)

log = structlog.get_logger("orchestratord.dispatch")

# A task that broke this many workers without a new token in between is more likely their cause than
# their victim; and so is one that broke very many, however far it came.
MAX_ATTEMPTS = 6
MAX_LOSSES = 48

# Faults of the request itself: another replica would say the same.
_REQUEST_FAULTS = frozenset({EngineFault.INVALID, EngineFault.CONTEXT, EngineFault.UNSUPPORTED})


class Dispatcher:
    """Starts attempts and turns their ends into events; owns all running attempts."""

    def __init__(
        self,
        scheduling: SchedulingService,
        jobs: JobTable,
        replicas: ReplicaDirectory,
        termination: TerminationService,
        journal: Journal,
        telemetry: Telemetry,
        monotonic: Callable[[], float],
    ) -> None:
        self.scheduling = scheduling
        self.replicas = replicas
        self.termination = termination
        self.telemetry = telemetry
        self.monotonic = monotonic
        self._jobs = jobs
        self._journal = journal
        self._running: dict[str, Attempt] = {}
        self.take_overs = TakeOverHistory()
        self.idle = asyncio.Event()
        self.idle.set()
        self.on_disturbance: Callable[[Job], None] | None = None
        self.on_first_token: Callable[[Job], None] | None = None
        # The W3C header that an engine gets with an attempt, "" for none.
        self.traceparent_of: Callable[[Job], str] | None = None

    @property
    def running(self) -> Iterable[Attempt]:
        return tuple(self._running.values())

    def start(self, job: Job, dispatch: Dispatch) -> None:
        """The core leased a slot: decode the task there."""
        replica = self.replicas.get(dispatch.pool_id, dispatch.replica_id)
        job.phase = Phase.RUNNING
        job.pool_id = dispatch.pool_id
        job.replica_id = dispatch.replica_id
        job.attempts = dispatch.attempt
        if not job.first_dispatch_ms:
            job.first_dispatch_ms = self.scheduling.clock_ms()
            job.first_dispatch_s = self.monotonic()
        if replica is None:  # it went between decision and now
            self.scheduling.step(WorkerLost(job.task.key, resume=True))
            return
        job.engine_version = replica.properties.engine_version
        job.model_digest = replica.properties.model_digest
        self.telemetry.started(job, replica)
        self._note_start(job, dispatch)
        if job.displaced:
            job.displaced = False
            self._excuse(job)
        if job.preempted:
            self._resume(job)
        elif job.failovers:
            self._tell(job)  # which replica took over
        attempt = Attempt(self, job, replica)
        self._running[job.task.key] = attempt
        self.idle.clear()
        if job.begun is None:
            self._write_start(attempt)
        # A best_effort task that may have shown tokens must be known as such after a crash.
        if job.task.determinism is Determinism.STRICT or _succeeded(job.begun):
            attempt.begin()

    def _write_start(self, attempt: Attempt) -> None:
        job = attempt.job
        record = records.TaskStarted(job.task.tenant, job.task_id, attempt.replica.set_key)
        try:
            written = self._journal.append(
                records.encode(record), urgent=job.task.determinism is not Determinism.STRICT
            )
        except JournalError as error:  # closed: the next start dispatches it again
            log.error("journal.lost_start", job_id=job.task_id, cause=str(error))
            return
        job.begun = written
        written.add_done_callback(lambda done: self._start_written(job, done))

    def _start_written(self, job: Job, done: asyncio.Future[int]) -> None:
        attempt = self._running.get(job.task.key)
        if _succeeded(done):
            self._jobs.use_row(job, done.result())
            if attempt is not None and attempt.job is job and not attempt.has_begun:
                attempt.begin()
        elif job.begun is done:
            log.error("journal.lost_start", job_id=job.task_id, cause=str(_failure(done)))
            job.begun = None

    def write_again(self) -> None:
        """Starts that the journal could not take: a best_effort task does not begin before it
        does (called by the watchdog, whose idle time ends the wait)."""
        for attempt in self.running:
            if not attempt.has_begun and attempt.job.begun is None:
                self._write_start(attempt)

    def stop(self, job: Job) -> None:
        """The core took the slot back (cancel): close the upstream connection."""
        attempt = self._release(job)
        if attempt is not None:
            attempt.detach()
        if job.phase not in (Phase.ENDING, Phase.ENDED):
            self.termination.cancel(job)

    def preempt(self, job: Job) -> None:
        """The core gave the slot to a more urgent task: close the upstream connection. The task
        waits; what its readers have stays, and what was decoded is decoded again (ORCH-3086)."""
        attempt = self._release(job)
        if attempt is None:
            return  # it was on its way out; whatever ended it has told the core
        attempt.detach()
        job.phase = Phase.WAITING
        job.preempted = True
        job.preemptions += 1
        job.kv_warm = False
        self.telemetry.preempted(job, "hard")
        self._decided(job, decision_log.preempted(self.scheduling.clock_ms(), job))
        self._tell(job)

    def _resume(self, job: Job) -> None:
        job.preempted = False
        self._excuse(job)
        self.telemetry.resumed(job)
        self._tell(job)

    def _excuse(self, job: Job) -> None:
        """Neither the wait nor the work done again counts against `timeouts.wall_ms`."""
        job.excused_s = self.monotonic() - job.first_dispatch_s

    def moved(self, job: Job, pool_id: str) -> None:
        """The core gave a task that does not run to another pool."""
        at_ms = self.scheduling.clock_ms()
        decision = Moved(at_ms, "pool", from_pool_id=job.pool_id, pool_id=pool_id)
        job.pool_id = pool_id
        self._decided(job, decision)

    def _note_start(self, job: Job, dispatch: Dispatch) -> None:
        scheduler, now_ms = self.scheduling.scheduler, self.scheduling.clock_ms()
        key = job.task.key
        if (grounds := scheduler.grounds(key)) is None:
            return  # it has ended meanwhile
        # A slot that nobody waited for is nobody's share.
        share = scheduler.share_of(key, now_ms) if grounds.why != Why.FREE_SLOT else None
        self._decided(job, decision_log.started(now_ms, job, dispatch, grounds, share))

    def _decided(self, job: Job, decision: Decision) -> None:
        job.note(decision)
        self.telemetry.decided(job, decision)

    def tokens_shown(self, job: Job) -> None:
        """A best_effort task cannot be interrupted from now on, where that may happen at all."""
        policy = self.replicas.pools[job.pool_id].spec.preemption
        if policy.mode is PreemptionMode.HARD:
            self.scheduling.step(TokensShown(job.task.key))

    def _tell(self, job: Job) -> None:
        if self.on_disturbance is not None:
            self.on_disturbance(job)

    def abort(self, attempt: Attempt, refusal: Refusal) -> None:
        """A service gave the attempt up (watchdog, mismatch, request fault): a typed error."""
        job = attempt.job
        self._release(job)
        attempt.detach()
        self.termination.fail(job, refusal)
        self.scheduling.step(Aborted(job.task.key, job.log.tokens))

    def lose_replica(self, pool_id: str, replica_id: str) -> None:
        """Every attempt on a replica that is gone goes on elsewhere."""
        for attempt in self.running:
            if (attempt.job.pool_id, attempt.job.replica_id) == (pool_id, replica_id):
                self.worker_lost(attempt, EngineError(EngineFault.RESET, "the worker is gone"))

    def evacuate(self, pool_id: str, replica_ids: Collection[str]) -> None:
        """Every attempt on replicas that were withdrawn, with their connections still whole, goes
        on elsewhere; one of which nothing was shown begins anew wherever its model is served."""
        for attempt in self.running:
            job = attempt.job
            if job.pool_id == pool_id and job.replica_id in replica_ids:
                error = EngineError(EngineFault.RESET, "the worker was drained")
                self.worker_lost(attempt, error, drained=True)

    def worker_lost(self, attempt: Attempt, error: EngineError, *, drained: bool = False) -> None:
        """Resume elsewhere where that keeps every promise, else end with WORKER_RESET. A task that
        a drain moves has lost nothing: it is no failover that anybody recovers from."""
        job = attempt.job
        if self._release(job) is None:
            return
        attempt.detach()
        strict = job.task.determinism is Determinism.STRICT
        job.drains += drained
        job.losses_in_a_row += not drained
        broken = job.attempts - job.preemptions - job.drains
        suspect = job.losses_in_a_row >= MAX_ATTEMPTS or broken >= MAX_LOSSES
        resume = (strict or not job.log.tokens) and not suspect
        planned = drained and resume
        self.telemetry.failover(job, "drained" if planned else "resumed" if resume else "lost")
        (log.info if planned else log.warning)(
            "task.drained" if planned else "task.worker_lost",
            **self.telemetry.log_fields(job),
            attempt=job.attempts,
            resume=resume,
            tokens_out=job.log.tokens,
            fault=error.fault.value,
            cause=error.message,
        )
        if resume:
            job.failovers += 1
            at_ms = self.scheduling.clock_ms()
            job.note(decision_log.worker_lost(at_ms, job, error.message, drained=drained))
            if not planned:
                job.lost_s = job.lost_s or self.monotonic()
            job.kv_warm = False
            job.phase = Phase.WAITING
            self._tell(job)
        else:
            self.termination.fail(
                job,
                Refusal(
                    Code.WORKER_RESET,
                    Reason.WORKER,
                    f"the worker was lost after {job.log.tokens} tokens: {error.message}",
                    retriable=True,
                    engine=job.task.engine,
                    pool_id=job.pool_id,
                ),
            )
        anew = drained and not job.log.tokens and not job.recovered
        if drained:
            job.displaced = True
            if anew:
                job.begun = None  # where it runs next is written down again
        elif error.fault is EngineFault.RESET:
            self.replicas.connection_lost(job.pool_id, attempt.replica.id, error.message)
        else:
            # One task's error says little of the engine: its neighbours go on unless a probe,
            # asked for now, says that it is gone.
            self.replicas.doubt(job.pool_id, attempt.replica.id)
        self.scheduling.step(WorkerLost(job.task.key, resume, job.log.tokens, anew))

    def finished(self, attempt: Attempt, end: DecodeEnd, result: object = None) -> None:
        """The answer is complete."""
        job = attempt.job
        if not end.decode_ms and job.first_token_ms:  # an engine that does not time itself
            decode_ms = round((self.monotonic() - job.first_token_s) * 1000)
            end = msgspec.structs.replace(end, decode_ms=decode_ms)
        if job.lost_s:
            self.recovered(attempt)
        self._release(job)
        attempt.detach()
        job.tokens_in = end.tokens_in
        job.kv_warm = end.cached_tokens > 0
        kv_bytes = attempt.replica.properties.kv_bytes_per_token * (end.tokens_in + end.tokens_out)
        self.telemetry.finished(job, attempt.replica, end)
        self.termination.finish(job, end.decode_ms, result)
        self.scheduling.step(
            Finished(
                job.task.key,
                tokens_in=end.tokens_in,
                tokens_out=end.tokens_out,
                prefill_ms=end.prefill_ms,
                decode_ms=end.decode_ms,
                kv_bytes=kv_bytes,
                kv_warm=job.kv_warm,
                cached_tokens=end.cached_tokens,
            )
        )

    def recovered(self, attempt: Attempt) -> None:
        """A task whose worker was lost goes on to where nobody has been before (ORCH-3201)."""
        job = attempt.job
        recovery_ms = (self.monotonic() - job.lost_s) * 1000
        job.lost_s = 0.0
        job.losses_in_a_row = 0
        self.take_overs.of(job.pool_id, job.replica_id).failovers += 1
        self.telemetry.recovered(job, recovery_ms)

    def _release(self, job: Job) -> Attempt | None:
        attempt = self._running.pop(job.task.key, None)
        scheduler = self.scheduling.scheduler
        job.eviction_events = scheduler.kv_evictions(job.pool_id, job.replica_id)
        if not self._running:
            self.idle.set()
        return attempt

    def abandon(self) -> None:
        """Shutdown: end every attempt without a word; the journal brings the tasks back."""
        for attempt in self.running:
            attempt.detach()
        self._running.clear()


class Attempt:
    """One decode: the sink of its tokens."""

    __slots__ = (
        "_check",
        "_count",
        "_decode",
        "_dispatcher",
        "_work",
        "has_begun",
        "job",
        "progress_at_s",
        "replica",
    )

    def __init__(self, dispatcher: Dispatcher, job: Job, replica: Replica) -> None:
        self._dispatcher = dispatcher
        self.job = job
        self.replica = replica
        self._work: asyncio.Task[None] | None = None
        self._check = PrefixCheck(job.log.text()) if job.log.tokens else None
        self._count: TokenCounter = dispatcher.telemetry.token_counter(replica)
        self.progress_at_s = dispatcher.monotonic()
        self.has_begun = False

    def begin(self) -> None:
        """Send the request; `started` becomes visible."""
        self.has_begun = True
        job = self.job
        payload = job.payload
        assert payload is not None
        self.progress_at_s = self._dispatcher.monotonic()
        job.log.start(job.promise.started_data())
        if job.task.workload is not Workload.COMPLETION:
            self._work = asyncio.get_running_loop().create_task(self._compute())
            return
        traits = self._dispatcher.replicas.pools[job.pool_id]
        strict = job.task.determinism is Determinism.STRICT
        traceparent_of = self._dispatcher.traceparent_of
        job.decode = self.replica.client.decode(
            DecodeRequest(
                prompt=payload.prompt,
                max_tokens=job.task.max_tokens,
                seed=payload.seed,
                sampling=payload.sampling,
                # Warm and cold prefixes differ in their last bits: strict decodes are cold.
                cold=job.task.kv_hint == "cold"
                or (strict and not traits.deterministic_prefix_cache),
                correlation_id=job.correlation_id,
                traceparent="" if traceparent_of is None else traceparent_of(job),
            ),
            self,
        )

    def detach(self) -> None:
        """Close the upstream connection; nothing of this attempt is heard any more."""
        decode, self.job.decode = self.job.decode, None
        if decode is not None:
            decode.cancel()
        if self._work is not None:
            self._work.cancel()
            self._work = None

    def on_prefill(self, processed_tokens: int, total_tokens: int) -> None:
        self.progress_at_s = self._dispatcher.monotonic()

    def on_tokens(self, pieces: list[bytes]) -> None:
        self.progress_at_s = self._dispatcher.monotonic()
        if self._check is not None:
            fresh = self._check.accept(pieces)
            if fresh is None:
                self._mismatch()
                return
            if not fresh:
                return
            pieces = fresh
        job = self.job
        if job.lost_s:
            self._dispatcher.recovered(self)
        if not job.first_token_ms:
            job.first_token_ms = self._dispatcher.scheduling.clock_ms()
            job.first_token_s = self.progress_at_s
            self._dispatcher.telemetry.first_token(job, self.replica)
            if self._dispatcher.on_first_token is not None:
                self._dispatcher.on_first_token(job)
            if job.task.determinism is Determinism.BEST_EFFORT:
                self._dispatcher.tokens_shown(job)
        self._count(len(pieces))
        job.log.append(pieces)

    def on_end(self, end: DecodeEnd) -> None:
        if self._check is not None and not self._check.complete:
            self._mismatch()
        else:
            self._dispatcher.finished(self, end)

    def on_error(self, error: EngineError) -> None:
        if error.fault in _REQUEST_FAULTS:
            self._refuse(error)
        else:
            self._dispatcher.worker_lost(self, error)

    def _refuse(self, error: EngineError) -> None:
        self._dispatcher.abort(
            self,
            Refusal(
                Code.INVALID_PARAMS,
                Reason.CONTEXT if error.fault is EngineFault.CONTEXT else Reason.INVALID,
                error.message,
                engine=self.job.task.engine,
                pool_id=self.job.pool_id,
            ),
        )

    def _mismatch(self) -> None:
        """Other bytes than before: end the stream, send nothing of this run (ORCH-3201)."""
        job = self.job
        self._dispatcher.take_overs.of(job.pool_id, self.replica.id).mismatches += 1
        self._dispatcher.telemetry.failover(job, "mismatch")
        log.error(
            "task.failover_mismatch",
            **self._dispatcher.telemetry.log_fields(job),
            equal_bytes=self._check.seen_bytes if self._check else 0,
        )
        self._dispatcher.abort(
            self,
            Refusal(
                Code.WORKER_RESET,
                Reason.WORKER,
                f"replica {self.replica.id} does not repeat the first {job.log.tokens} tokens; "
                "the stream ends rather than going on with other text",
                retriable=True,
                engine=job.task.engine,
                pool_id=job.pool_id,
            ),
        )

    async def _compute(self) -> None:
        """An embedding or rerank: one call, one result in `end`."""
        job, client = self.job, self.replica.client
        payload = job.payload
        assert payload is not None
        started_s = self._dispatcher.monotonic()
        result: dict[str, object]
        try:
            if job.task.workload is Workload.EMBEDDING:
                result = {"embeddings": await client.embed(payload.inputs)}
            else:
                result = {"scores": await client.rerank(payload.prompt, payload.inputs)}
        except EngineError as error:
            self._work = None
            self.on_error(error)
            return
        self._work = None
        elapsed_ms = round((self._dispatcher.monotonic() - started_s) * 1000)
        self._dispatcher.finished(
            self,
            DecodeEnd("limit", job.task.prompt_tokens, 0, 0, elapsed_ms, 0),
            result,
        )


def _failure(written: asyncio.Future[int]) -> BaseException | None:
    """Why a record that was tried to write is not on disk."""
    return asyncio.CancelledError() if written.cancelled() else written.exception()


def _succeeded(written: asyncio.Future[int] | None) -> bool:
    """Whether a record is on disk."""
    return written is not None and written.done() and _failure(written) is None
