"""Builders of jobs for tests: everything has a default, a test names what matters to it."""

from __future__ import annotations

from orchestrator_core.task import Determinism, Priority, Task, Workload
from orchestratord.services.jobs import Job, Payload
from worker_adapters.adapter_api.types import Sampling


def task(
    key: str = "acme/t1",
    *,
    determinism: Determinism = Determinism.STRICT,
    workload: Workload = Workload.COMPLETION,
    priority: Priority = Priority.INTERACTIVE,
    max_tokens: int = 16,
    ctx: int = 512,
    prompt_tokens: int = 4,
    now_ms: int = 1_000_000,
    deadline_ms: int = 60_000,
    model_ref: str = "m",
) -> Task:
    tenant, _, _ = key.partition("/")
    return Task(
        key=key,
        tenant=tenant,
        session_key=f"{tenant}/s1",
        engine="llamacpp",
        model_ref=model_ref,
        priority=priority,
        workload=workload,
        determinism=determinism,
        ctx=ctx,
        max_tokens=max_tokens,
        prompt_tokens=prompt_tokens,
        cost_tokens=prompt_tokens + max_tokens,
        arrived_ms=now_ms,
        deadline_at_ms=now_ms + deadline_ms,
    )


def job(key: str = "acme/t1", *, of: Task | None = None) -> Job:
    one = of or task(key)
    return Job(
        task=one,
        task_id=one.key.partition("/")[2],
        session_id="s1",
        correlation_id="c1",
        body_digest=b"",
        payload=Payload("Hello", (), Sampling(), 7),
        pool_id="p1",
    )
