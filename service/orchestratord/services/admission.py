"""Admission: from a decoded request to a durable promise, or a typed refusal.

On a task's path: the api hands over a `Draft`; every check that needs I/O (tokenizer, template)
comes first, then the core decides, then the journal makes it durable, then the 202 leaves.
Invariant: once answered 202 a task is on disk (ORCH-3203); the same id admits one task (ORCH-3024).
Requirements: ORCH-2001, ORCH-3014, ORCH-3015, OC-CTRL-2010, OC-CORE-1020.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeVar

import structlog

from orchestrator_core.determinism import derive_seed
from orchestrator_core.effects import Rejected
from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.events import Cancel, Submit
from orchestrator_core.task import Determinism, Priority, Task, Workload
from orchestratord.ports.journal import Journal, JournalError
from orchestratord.services import records
from orchestratord.services.jobs import Job, JobTable, Payload, Phase
from orchestratord.services.replicas import PoolTraits, ReplicaDirectory
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.telemetry import Telemetry
from worker_adapters.adapter_api.types import EngineError, EngineFault, Sampling

log = structlog.get_logger("orchestratord.admission")

# Without the engine's tokenizer: English text in BPE vocabularies has about four bytes a token.
_BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class Message:
    role: str
    content: str


@dataclass(frozen=True, slots=True)
class SamplingOverride:
    """What the request says of sampling; None takes the profile's value."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    stop: tuple[str, ...] | None = None

    def over(self, profile: Sampling) -> Sampling:
        return Sampling(
            temperature=_first(self.temperature, profile.temperature),
            top_p=_first(self.top_p, profile.top_p),
            top_k=_first(self.top_k, profile.top_k),
            min_p=_first(self.min_p, profile.min_p),
            repeat_penalty=_first(self.repeat_penalty, profile.repeat_penalty),
            stop=_first(self.stop, profile.stop),
        )


T = TypeVar("T")


def _first(value: T | None, default: T) -> T:
    return default if value is None else value


@dataclass(frozen=True, slots=True)
class Draft:
    """A well-formed request, in our own words. Times and token counts as in the contract."""

    tenant: str
    client_id: str
    correlation_id: str
    body_digest: bytes
    task_id: str
    session_id: str
    workload: Workload
    model_ref: str
    engine: str
    ctx: int
    priority: Priority
    max_tokens: int
    deadline_ms: int
    determinism: Determinism
    seed: int | None = None
    sampler_profile_version: str | None = None
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    inputs: tuple[str, ...] = ()
    expected_tokens: int | None = None
    kv_hint: str | None = None
    sampling: SamplingOverride = SamplingOverride()

    @property
    def key(self) -> str:
        return f"{self.tenant}/{self.task_id}"

    @property
    def session_key(self) -> str:
        return f"{self.tenant}/{self.session_id}"


@dataclass(frozen=True, slots=True)
class IdConflict:
    """The task id is already used with another body."""

    task_id: str


@dataclass(frozen=True, slots=True)
class _Profile:
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
    ) -> None:
        self._scheduling = scheduling
        self._jobs = jobs
        self._replicas = replicas
        self._journal = journal
        self._telemetry = telemetry
        self._profiles = sampler_profiles
        # Set while the service shuts down: the refusal that every new task gets.
        self.closed: Refusal | None = None

    async def submit(self, draft: Draft) -> Job | Refusal | IdConflict:
        """Admit the draft; the returned job's promise is on disk. Raises nothing expected."""
        known = self._jobs.get(draft.key)
        if known is None:
            outcome = await self._prepare(draft)
            if isinstance(outcome, Refusal):
                self._telemetry.rejected(draft.engine, outcome, draft.key, draft.correlation_id)
                return outcome
            # The same id may have been admitted while the tokenizer was asked.
            known = self._jobs.get(draft.key)
            if known is None:
                return await self._admit(draft, *outcome)
        if known.body_digest != draft.body_digest:
            return IdConflict(draft.task_id)
        if known.admitted is not None:
            try:
                await asyncio.shield(known.admitted)
            except JournalError as error:
                return _not_durable(error, draft)
        return known

    async def _prepare(self, draft: Draft) -> tuple[Task, Payload] | Refusal:
        """Everything that needs the engine or the configuration, before the core decides."""
        if self.closed is not None:
            return self.closed
        profile = self._profile(draft)
        if isinstance(profile, Refusal):
            return profile
        version, sampling = profile.version, profile.sampling
        client = self._replicas.client_for(draft.engine, draft.model_ref)
        prompt = draft.prompt or ""
        try:
            if draft.messages and client is not None:
                prompt = await client.apply_template(
                    [{"role": m.role, "content": m.content} for m in draft.messages]
                )
            texts = (prompt, *draft.inputs)
            size_bytes = sum(len(text.encode()) for text in texts)
            if client is None or size_bytes + draft.max_tokens <= draft.ctx:
                # A byte is at least a token: it fits, and there is no need to ask.
                prompt_tokens = -(-size_bytes // _BYTES_PER_TOKEN)
            else:
                prompt_tokens = 0
                for text in texts:
                    prompt_tokens += await client.count_tokens(text) if text else 0
        except EngineError as error:
            return self._engine_refusal(error, draft)
        now_ms = self._scheduling.clock_ms()
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
            arrived_ms=now_ms,
            deadline_at_ms=now_ms + draft.deadline_ms,
            client_id=draft.client_id,
            kv_hint=draft.kv_hint,
            sampler_profile_version=version,
        )
        seed = derive_seed(draft.task_id) if draft.seed is None else draft.seed
        return task, Payload(prompt, draft.inputs, sampling, seed)

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

    async def _admit(self, draft: Draft, task: Task, payload: Payload) -> Job | Refusal:
        job = Job(
            task=task,
            task_id=draft.task_id,
            session_id=draft.session_id,
            correlation_id=draft.correlation_id,
            body_digest=draft.body_digest,
            payload=payload,
        )
        self._jobs.add(job)
        # Registered before the step: the core may lease a slot for it at once.
        for effect in self._scheduling.step(Submit(task)):
            if isinstance(effect, Rejected) and effect.task_key == task.key:
                self._jobs.discard(job)
                refusal = effect.refusal
                self._telemetry.rejected(draft.engine, refusal, draft.key, draft.correlation_id)
                return refusal
        self._telemetry.admitted(job)
        session = self._scheduling.scheduler.session(task.session_key, task.arrived_ms)
        assert session is not None, "an admitted task has a session"
        job.session_until_ms = task.arrived_ms + session.ttl_ms_remaining
        job.admitted = self._journal.append(
            records.encode(_record(job, payload, session.created_ms, session.turns))
        )
        try:
            row = await asyncio.shield(job.admitted)
        except JournalError as error:
            log.error("journal.lost_admission", job_id=draft.task_id, cause=str(error))
            if job.phase in (Phase.WAITING, Phase.RUNNING):
                self._scheduling.step(Cancel(task.key))
            return _not_durable(error, draft)
        job.admitted = None
        self._jobs.use_row(job, row)
        return job


def _names(pools: list[PoolTraits]) -> str:
    return ", ".join(sorted({repr(pool.spec.sampler_profile_version) for pool in pools}))


def _not_durable(error: JournalError, draft: Draft) -> Refusal:
    return Refusal(
        Code.INTERNAL,
        Reason.INVALID,
        f"the task could not be made durable and was not admitted: {error}",
        retriable=True,
        retry_after_ms=1000,
        engine=draft.engine,
    )


def _record(
    job: Job, payload: Payload, session_created_ms: int, session_turns: int
) -> records.TaskAdmitted:
    task = job.task
    return records.TaskAdmitted(
        tenant=task.tenant,
        task_id=job.task_id,
        session_id=job.session_id,
        client_id=task.client_id,
        correlation_id=job.correlation_id,
        pool_id=job.pool_id,
        engine=task.engine,
        model_ref=task.model_ref,
        workload=task.workload.value,
        priority=task.priority.value,
        determinism=task.determinism.value,
        ctx=task.ctx,
        max_tokens=task.max_tokens,
        prompt_tokens=task.prompt_tokens,
        cost_tokens=task.cost_tokens,
        arrived_ms=task.arrived_ms,
        deadline_at_ms=task.deadline_at_ms,
        kv_hint=task.kv_hint,
        sampler_profile_version=task.sampler_profile_version or "",
        seed=payload.seed,
        prompt=payload.prompt,
        inputs=payload.inputs,
        sampling=payload.sampling,
        body_digest=job.body_digest,
        queue_position=job.promise.queue_position,
        predicted_start_ms=job.promise.predicted_start_ms,
        backoff_ms=job.promise.backoff_ms,
        session_created_ms=session_created_ms,
        session_turns=session_turns,
    )
