"""Admission: from a decoded request to a durable promise, or a typed refusal.

On a task's path: the api hands over a `Draft`; every check that needs I/O (tokenizer, template)
comes first, then the core decides, then the journal makes it durable, then the 202 leaves.
Invariant: once answered 202 a task is on disk (ORCH-3203); the same id admits one task (ORCH-3024).
Requirements: ORCH-2001, ORCH-3014, ORCH-3015, OC-CTRL-2010, OC-CORE-1020.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import TypeAlias

import structlog

from orchestrator_core.determinism import derive_seed
from orchestrator_core.effects import Rejected
from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.events import Cancel, Submit
from orchestrator_core.task import Task, Workload
from orchestrator_core.value import Value
from orchestratord.ports.journal import Journal
from orchestratord.services import decision_log, records
from orchestratord.services.decision_log import RefusedTasks
from orchestratord.services.drafts import Draft
from orchestratord.services.jobs import Job, JobTable, Payload, Phase
from orchestratord.services.journaled_jobs import record_of
from orchestratord.services.prompt_blocks import prompt_blocks
from orchestratord.services.replicas import PoolTraits, ReplicaDirectory
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.telemetry import Telemetry
from worker_adapters.adapter_api.types import EngineClient, EngineError, EngineFault, Sampling

log = structlog.get_logger("orchestratord.admission")

# What an engine must say of itself to take a workload; every engine completes.
_FEATURES = {Workload.EMBEDDING: "embeddings", Workload.RERANK: "rerank"}
# Prompts that wait for the engine's tokenizer; each holds a request body.
MAX_ASKING = 256
_TOO_MANY_PROMPTS = Refusal(
    Code.ADMISSION_REJECT,
    Reason.RATE_LIMIT,
    "too many prompts are being counted at the moment",
    retriable=True,
    retry_after_ms=1000,
    policy_label=Reason.RATE_LIMIT.value,
)
# Without the engine's tokenizer: English text in BPE vocabularies has about four bytes a token.
_BYTES_PER_TOKEN = 4


class IdConflict(Value, frozen=True):
    """The task id is already used with another body."""

    task_id: str


Outcome: TypeAlias = Job | Refusal | IdConflict


class _Profile(Value, frozen=True):
    version: str
    sampling: Sampling


def _invalid(message: str, engine: str | None = None) -> Refusal:
    return Refusal(Code.INVALID_PARAMS, Reason.INVALID, message, engine=engine)


class AdmissionService:
    def __init__(
        self,
        scheduling: SchedulingService,
        jobs: JobTable,
        replicas: ReplicaDirectory,
        journal: Journal,
        telemetry: Telemetry,
        sampler_profiles: Mapping[str, Sampling],
        *,
        exact_counts: bool = False,
    ) -> None:
        self._scheduling = scheduling
        self._jobs = jobs
        self._replicas = replicas
        self._journal = journal
        self._telemetry = telemetry
        self._profiles = sampler_profiles
        # Budgets and quotas are charged by the token: an estimate would drift.
        self.exact_counts = exact_counts
        self._asking: set[asyncio.Task[None]] = set()
        self.refused = RefusedTasks()
        # Set while the service shuts down: the refusal that every new task gets.
        self.closed: Refusal | None = None

    def reconfigure(self, sampler_profiles: Mapping[str, Sampling], *, exact_counts: bool) -> None:
        """Other profiles from now on; what was admitted keeps what it was admitted with."""
        self._profiles, self.exact_counts = sampler_profiles, exact_counts

    def submit(self, draft: Draft, then: Callable[[Outcome], None]) -> None:
        """Admit the draft; `then` is called once, now or later, with a job whose promise is on
        disk, or with why not. A task is needed only where the engine has to be asked."""
        known = self._jobs.get(draft.key)
        if known is not None:
            self._repeat(known, draft, then)
            return
        arrived_ms = self._scheduling.clock_ms()
        refusal = self.closed
        if refusal is None and self._journal.failing:
            refusal = _not_durable(draft)
        profile = self._profile(draft) if refusal is None else refusal
        if isinstance(profile, Refusal):
            self._refuse(draft, profile, then)
            return
        feature = _FEATURES.get(draft.workload)
        if feature is not None and (refusal := self._unoffered(draft, feature)) is not None:
            self._refuse(draft, refusal, then)
            return
        size_bytes = _size_bytes(draft.prompt or "", draft.inputs)
        # A byte is at least a token: what fits in bytes fits, and there is no need to ask.
        fits = size_bytes + draft.max_tokens <= draft.ctx and not draft.messages
        exact = self.exact_counts or self._replicas.counts_tokens(
            draft.engine, draft.model_ref, draft.tenant
        )
        client: EngineClient | None = None
        if exact or not fits:
            client = self._replicas.client_for(draft.engine, draft.model_ref)
        if client is None:
            prompt_tokens = -(-size_bytes // _BYTES_PER_TOKEN)
            self._decide(draft, profile, draft.prompt or "", prompt_tokens, arrived_ms, then)
            return
        if len(self._asking) >= MAX_ASKING:
            self._refuse(draft, _TOO_MANY_PROMPTS, then)
            return
        asking = self._ask(client, draft, profile, arrived_ms, then)
        work = asyncio.get_running_loop().create_task(asking)
        self._asking.add(work)
        work.add_done_callback(self._asking.discard)

    def _unoffered(self, draft: Draft, feature: str) -> Refusal | None:
        """The refusal of a task where replicas of its model are Ready and none has the feature."""
        pools = self._replicas.matching(draft.engine, draft.model_ref)
        ready = [r for pool in pools for r in self._replicas.ready(pool.spec.id)]
        if not ready or any(feature in replica.properties.features for replica in ready):
            return None
        what = f"workload: {draft.workload.value} is not offered for {draft.model_ref!r}"
        return _invalid(what, draft.engine)

    def _repeat(self, known: Job, draft: Draft, then: Callable[[Outcome], None]) -> None:
        """The id is known: the same body gets the same answer, once that is durable."""
        if known.body_digest != draft.body_digest:
            then(IdConflict(draft.task_id))
        elif known.admitted is None:
            then(known)
        else:
            known.admitted.add_done_callback(lambda done: then(_outcome(known, done, draft)))

    async def _ask(
        self,
        client: EngineClient,
        draft: Draft,
        profile: _Profile,
        arrived_ms: int,
        then: Callable[[Outcome], None],
    ) -> None:
        """Template and token count, by the engine."""
        prompt = draft.prompt or ""
        try:
            if draft.messages:
                prompt = await client.apply_template(
                    [{"role": m.role, "content": m.content} for m in draft.messages]
                )
            prompt_tokens = 0
            for text in (prompt, *draft.inputs):
                prompt_tokens += await client.count_tokens(text) if text else 0
        except EngineError as error:
            self._refuse(draft, self._engine_refusal(error, draft), then)
            return
        try:
            self._settle(draft, profile, prompt, prompt_tokens, arrived_ms, then)
        except Exception:  # nobody awaits this task: without an answer the client would hang
            log.exception("admission.failed", job_id=draft.task_id)
            self._refuse(draft, _internal(draft, "an internal error"), then)

    def _settle(
        self,
        draft: Draft,
        profile: _Profile,
        prompt: str,
        prompt_tokens: int,
        arrived_ms: int,
        then: Callable[[Outcome], None],
    ) -> None:
        known = self._jobs.get(draft.key)
        if known is not None:  # the same id was admitted meanwhile
            self._repeat(known, draft, then)
        else:
            self._decide(draft, profile, prompt, prompt_tokens, arrived_ms, then)

    def _refuse(self, draft: Draft, refusal: Refusal, then: Callable[[Outcome], None]) -> None:
        decision = decision_log.refused(self._scheduling.clock_ms(), refusal)
        self.refused.add(draft.key, draft.priority, decision)
        self._telemetry.rejected(draft.engine, refusal, draft.log_fields())
        then(refusal)

    def _decide(
        self,
        draft: Draft,
        profile: _Profile,
        prompt: str,
        prompt_tokens: int,
        arrived_ms: int,
        then: Callable[[Outcome], None],
    ) -> None:
        """The core says yes or no; a yes is answered when it is on disk."""
        task = Task(
            key=draft.key,
            tenant=draft.tenant,
            session_key=draft.session_key,
            engine=draft.engine,
            model_ref=draft.model_ref,
            priority=draft.priority,
            workload=draft.workload,
            determinism=draft.determinism,
            ctx=draft.ctx,
            max_tokens=draft.max_tokens,
            prompt_tokens=prompt_tokens,
            cost_tokens=prompt_tokens + (draft.expected_tokens or draft.max_tokens),
            arrived_ms=arrived_ms,
            deadline_at_ms=arrived_ms + draft.deadline_ms,
            client_id=draft.client_id,
            kv_hint=draft.kv_hint,
            sampler_profile_version=profile.version,
            prefix_blocks=prompt_blocks(
                prompt,
                draft.workload,
                draft.determinism,
                draft.kv_hint,
                lambda: self._replicas.matching(draft.engine, draft.model_ref),
            ),
        )
        seed = derive_seed(draft.task_id) if draft.seed is None else draft.seed
        payload = Payload(prompt, draft.inputs, profile.sampling, seed)
        job = Job(
            task=task,
            task_id=draft.task_id,
            session_id=draft.session_id,
            correlation_id=draft.correlation_id,
            body_digest=draft.body_digest,
            payload=payload,
            traceparent=draft.traceparent,
        )
        # Registered before the step: the core may lease a slot for it at once.
        self._jobs.add(job)
        for effect in self._scheduling.step(Submit(task)):
            if isinstance(effect, Rejected) and effect.task_key == task.key:
                self._jobs.discard(job)
                self._refuse(draft, effect.refusal, then)
                return
        assert job.admitted is not None, "the core admitted it or refused it"

        def durable(done: asyncio.Future[int]) -> None:
            job.admitted = None
            outcome = _outcome(job, done, draft)
            if isinstance(outcome, Job):
                self._jobs.use_row(job, done.result())
                self._telemetry.enqueued(job)
                then(outcome)
                return
            job.refused = True
            if job.phase in (Phase.WAITING, Phase.RUNNING):
                self._scheduling.step(Cancel(task.key))
            self._jobs.discard(job)  # the client may try the same id again
            assert isinstance(outcome, Refusal)
            self._refuse(draft, outcome, then)

        job.admitted.add_done_callback(durable)

    def write_down(self, job: Job) -> None:
        """The core admitted the job: its record goes before any other of the same task."""
        task, scheduler = job.task, self._scheduling.scheduler
        admitted_ms = self._scheduling.clock_ms()
        promised = job.promise.queue_position, job.promise.predicted_start_ms
        outlook = scheduler.outlook(task.key, admitted_ms, promised)
        assert outlook is not None, "an admitted task is known"
        why = scheduler.why_started(task.key)
        share = scheduler.share_of(task.key, admitted_ms) if why is None else None
        decision = decision_log.admitted(
            admitted_ms,
            job,
            outlook,
            why,
            share,
            self._telemetry.weights(job.pool_id, task.priority, task.tenant),
            len(self._replicas.matching(task.engine, task.model_ref)),
        )
        job.decisions = self.refused.admitted(task.key)
        job.note(decision)
        self._telemetry.decided(job, decision)
        turn = scheduler.turn(task.key)
        assert turn is not None, "an admitted task has a session"
        assert job.payload is not None, "it has not ended"
        job.session_until_ms = turn.session_until_ms
        record = record_of(job, job.payload, turn, admitted_ms)
        job.admitted = self._journal.append(records.encode(record))

    def _profile(self, draft: Draft) -> _Profile | Refusal:
        """The sampler profile of the task: its own, else the pool's."""
        pools = self._replicas.matching(draft.engine, draft.model_ref)
        version = draft.sampler_profile_version
        if version is None:
            version = pools[0].spec.sampler_profile_version if pools else ""
        elif pools and all(p.spec.sampler_profile_version != version for p in pools):
            return _invalid(
                f"sampler_profile_version: {version!r} is not offered for {draft.model_ref!r}; "
                f"its pools pin {_names(pools)}",
                draft.engine,
            )
        profile = self._profiles.get(version, Sampling())
        return _Profile(version, draft.sampling.over(profile))

    def _engine_refusal(self, error: EngineError, draft: Draft) -> Refusal:
        if error.fault in (EngineFault.INVALID, EngineFault.CONTEXT):
            field = "messages" if draft.messages else "prompt"
            return _invalid(f"{field}: {error.message}", draft.engine)
        if error.fault is EngineFault.UNSUPPORTED:
            return _invalid(f"messages: this engine has no template: {error.message}", draft.engine)
        return Refusal(
            Code.POOL_UNAVAILABLE,
            Reason.POOL_UNAVAILABLE,
            f"the engine could not count the prompt's tokens: {error.message}",
            retriable=True,
            retry_after_ms=1000,
            engine=draft.engine,
        )


def _size_bytes(prompt: str, inputs: tuple[str, ...]) -> int:
    return len(prompt.encode()) + sum(len(text.encode()) for text in inputs)


def _outcome(job: Job, done: asyncio.Future[int], draft: Draft) -> Outcome:
    """What the journal made of an admission."""
    error = None if done.cancelled() else done.exception()
    if error is None and not done.cancelled():
        return job
    log.error("journal.lost_admission", job_id=draft.task_id, cause=str(error))
    return _not_durable(draft)


def _not_durable(draft: Draft) -> Refusal:
    return _internal(
        draft, "the journal cannot be written at the moment; the task was not admitted"
    )


def _internal(draft: Draft, message: str) -> Refusal:
    return Refusal(
        Code.INTERNAL,
        Reason.INVALID,
        message,
        retriable=True,
        retry_after_ms=1000,
        engine=draft.engine,
    )


def _names(pools: list[PoolTraits]) -> str:
    return ", ".join(sorted({repr(pool.spec.sampler_profile_version) for pool in pools}))
