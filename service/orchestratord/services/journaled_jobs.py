"""A job as the journal keeps it: written down with its promise, read back after a restart.

On a task's path once, at admission; recovery goes the other way. Invariant: what the record of a
promise says is all that a restarted service knows of the job, so both directions stand side by
side. Requirements: ORCH-3203.
"""

from __future__ import annotations

from orchestrator_core.sessions.session_table import Turn
from orchestrator_core.task import Determinism, Priority, Task, Workload
from orchestratord.services import records
from orchestratord.services.jobs import Job, Payload, Promise
from orchestratord.services.prompt_blocks import prompt_blocks
from orchestratord.services.replicas import PoolTraits


def record_of(job: Job, payload: Payload, turn: Turn, admitted_ms: int) -> records.TaskAdmitted:
    """The record of a promise; `admitted_ms` is when the core admitted the job."""
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
        session_created_ms=turn.session_created_ms,
        session_turns=turn.number,
        admitted_ms=admitted_ms,
    )


def job_of(record: records.TaskAdmitted, session_ttl_ms: int, pool: PoolTraits | None) -> Job:
    """The job that a record tells of; `pool` is its pool's, where that is still there."""
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
