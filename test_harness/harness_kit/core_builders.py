"""Values of the core with defaults that mean "nothing special"; tests name only what matters.

No path: test support. Times start at `T0_MS`; a task arrives there and may take a minute.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any

from msgspec import structs

from orchestrator_core.effects import Effect
from orchestrator_core.events import Finished, PoolAdded, ReplicaReady, Submit
from orchestrator_core.limits import Limits
from orchestrator_core.placement.pick import pick
from orchestrator_core.pool import FullPolicy, PoolSpec, PriorityPolicy, ReplicaSpec, SetKey
from orchestrator_core.replicas import Replica
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Determinism, Priority, Task, Workload

# An arbitrary wall-clock instant; only differences matter.
T0_MS = 1_800_000_000_000

_TASK = Task(
    key="acme/t",
    tenant="acme",
    session_key="acme/s",
    engine="llamacpp",
    model_ref="model",
    priority=Priority.INTERACTIVE,
    workload=Workload.COMPLETION,
    determinism=Determinism.STRICT,
    ctx=4096,
    max_tokens=90,
    prompt_tokens=10,
    cost_tokens=100,
    arrived_ms=T0_MS,
    deadline_at_ms=T0_MS + 60_000,
)

SET_KEY = SetKey("llamacpp", "model", "q4_k_m", 8192, "b1", "v1", "sha256:aa")


def make_task(name: str = "t", **changes: Any) -> Task:
    """A task `acme/NAME` in a session of its own; `tenant` also goes into the keys."""
    tenant = changes.get("tenant", "acme")
    defaults = {"key": f"{tenant}/{name}", "session_key": f"{tenant}/s-{name}"}
    return structs.replace(_TASK, **(defaults | changes))


def picked(*arguments: Any, **options: Any) -> Replica | None:
    """The replica that `pick` chooses, whatever for."""
    choice = pick(*arguments, **options)
    return None if choice is None else choice.replica


def make_pool(
    pool_id: str = "p",
    *,
    capacity: int = 256,
    interactive: int = 256,
    batch: int = 256,
    policy: FullPolicy = FullPolicy.REJECT,
    rate_limit_rps: float | None = None,
    **changes: Any,
) -> PoolSpec:
    """A pool for `make_task`'s engine and model; weights are 8 and 1."""
    spec = PoolSpec(
        id=pool_id,
        engine="llamacpp",
        model_refs=frozenset({"model"}),
        ctx=8192,
        queue_capacity=capacity,
        full_policy=policy,
        priorities=(
            PriorityPolicy(Priority.INTERACTIVE, 8, interactive, rate_limit_rps),
            PriorityPolicy(Priority.BATCH, 1, batch, rate_limit_rps),
        ),
    )
    return replace(spec, **changes)


def make_replica(
    replica_id: str = "r0",
    pool_id: str = "p",
    *,
    slots: int = 1,
    version: str = "b1",
    interruptible: bool = True,
) -> ReplicaSpec:
    """A replica of the set that differs in `version` only."""
    key = replace(SET_KEY, engine_version=version)
    return ReplicaSpec(
        replica_id, pool_id, key, slots_total=slots, ctx_max=8192, interruptible=interruptible
    )


def ready_scheduler(
    spec: PoolSpec | None = None,
    replicas: Iterable[ReplicaSpec] = (),
    limits: Limits | None = None,
) -> Scheduler:
    """A scheduler with one pool, and Ready replicas (by default one with one slot)."""
    scheduler = Scheduler(limits)
    spec = spec or make_pool()
    scheduler.step(PoolAdded(spec), T0_MS)
    for replica in replicas or (make_replica(pool_id=spec.id),):
        scheduler.step(ReplicaReady(replica), T0_MS)
    return scheduler


def submit(scheduler: Scheduler, name: str, now_ms: int = T0_MS, **changes: Any) -> list[Effect]:
    """Submit `make_task(name, **changes)`."""
    return list(scheduler.step(Submit(make_task(name, **changes)), now_ms))


def finished(key: str, prefill_ms: int = 100, decode_ms: int = 900) -> Finished:
    """A running task ends as `make_task` expects: 10 tokens in, 90 out, one second in all."""
    return Finished(key, 10, 90, prefill_ms, decode_ms)
