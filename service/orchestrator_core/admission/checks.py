"""Which pool admits a task, or why none does.

On a task's path: everything between `Submit` and the queue; nothing here changes state, so a
refusal costs the caller nothing, whichever check it comes from. The invariant: the order of checks
is fixed (pool, size, readiness; then per pool: circuit breaker, rate limit, quota, session, budget,
deadline, room) and the first refusal of the best pool is what the client sees. Requirements:
ORCH-3005, ORCH-3006, ORCH-3010, ORCH-3014, ORCH-3015, ORCH-3018, ORCH-3036, ORCH-3040, ORCH-3077,
ORCH-3079, ORCH-3080, OC-CORE-1002, OC-CORE-1020, OC-CORE-1021.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import ceil
from typing import NamedTuple

from orchestrator_core.admission.rate_limit import RateLimiter
from orchestrator_core.admission.victim import last_to_start
from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.pool import FullPolicy, PreemptionMode
from orchestrator_core.pool_state import Pool
from orchestrator_core.preemption import NO_RELIEF, Relief, find_relief, has_below
from orchestrator_core.sessions.session_table import Reservation, SessionTable
from orchestrator_core.task import Task, Workload

# A pool that nobody configured may be added by a reload; asking more often helps nobody.
NO_POOL_RETRY_MS = 5_000

# A replica that comes back is Ready within 1.5 s of being healthy (interface page).
UNREADY_RETRY_MS = 1_500

# Retry hints are never longer: an estimate that far ahead is a guess.
MAX_RETRY_MS = 60_000


class Place(NamedTuple):
    """Where the task may go; `victim` leaves that pool's full queue for it, and what `relief` says
    makes way so that it is on time. `wait` is (tasks before it, milliseconds to its start) as far
    as that was asked; it holds while nobody makes way."""

    pool: Pool
    reservation: Reservation
    at_once: bool
    victim: Task | None
    relief: Relief = NO_RELIEF
    wait: tuple[int, int] | None = None


def find_place(
    task: Task,
    pools: Sequence[Pool],
    rates: RateLimiter,
    sessions: SessionTable,
    sequence: int,
    now_ms: int,
) -> Place | Refusal:
    """The place of a task among `pools`, all those that serve its engine and model.

    Pools with free slots are asked first (most free first), then those with room, the shortest
    queue, the smallest id. O(pools * (replicas + flows)).
    """
    if (unfit := _size_refusal(task, pools)) is not None:
        return unfit
    admissible = _admissible(task, pools)
    if len(admissible) > 1:
        admissible.sort(key=lambda pool: _rank(pool, task))
    first: Refusal | None = None
    for pool in admissible:
        outcome = _place_in(pool, task, rates, sessions, sequence, now_ms)
        if isinstance(outcome, Place):
            return outcome
        first = first or outcome
    return first or _readiness_refusal(task, pools)


def rate_keys(pool: Pool, task: Task) -> list[tuple[tuple[str, ...], float, Reason]]:
    """The buckets a task draws from here: (key, requests per second, reason of a refusal)."""
    keys: list[tuple[tuple[str, ...], float, Reason]] = []
    client_rps = pool.queue.policy(task.priority).rate_limit_rps
    if client_rps is not None:
        client = ("client", pool.spec.id, task.tenant, task.client_id, task.priority.value)
        keys.append((client, client_rps, Reason.RATE_LIMIT))
    tenant_rps = pool.queue.tenant(task.tenant).rps
    if tenant_rps is not None:
        keys.append((("tenant", pool.spec.id, task.tenant), tenant_rps, Reason.QUOTA))
    return keys


def _admissible(task: Task, pools: Sequence[Pool]) -> list[Pool]:
    return [p for p in pools if not p.draining and p.ctx_offered() >= task.ctx and p.serving()]


def _rank(pool: Pool, task: Task) -> tuple[int, bool, int, str]:
    free = pool.slots_free() if pool.holds.may_start(task) else 0
    return -free, pool.queue.find_room(task.priority) is None, len(pool.queue), pool.spec.id


def _size_refusal(task: Task, pools: Sequence[Pool]) -> Refusal | None:
    """No pool at all, or a task that fits none of them or not its own context."""
    if not pools:
        return Refusal(
            Code.POOL_UNAVAILABLE, Reason.POOL_UNAVAILABLE,
            f"no pool serves model_ref {task.model_ref!r} with engine {task.engine!r}",
            retriable=True, retry_after_ms=NO_POOL_RETRY_MS, engine=task.engine,
        )  # fmt: skip
    offered = max(pool.ctx_offered() for pool in pools)
    if task.ctx > offered:
        problem = f"ctx: {task.ctx} is above the {offered} tokens that the matching pools offer"
    # An embedding or rerank task decodes nothing, and its inputs each have a context of their own.
    elif task.workload is Workload.COMPLETION and task.prompt_tokens + task.max_tokens > task.ctx:
        problem = (
            f"prompt ({task.prompt_tokens} tokens) + max_tokens ({task.max_tokens}) "
            f"= {task.prompt_tokens + task.max_tokens} exceed ctx ({task.ctx})"
        )
    else:
        return None
    return Refusal(
        Code.INVALID_PARAMS, Reason.CONTEXT, problem, engine=task.engine,
        figures=(("ctx", task.ctx), ("ctx_offered", offered),
                 ("prompt_tokens", task.prompt_tokens), ("max_tokens", task.max_tokens)),
    )  # fmt: skip


def _readiness_refusal(task: Task, pools: Sequence[Pool]) -> Refusal:
    """Why none of `pools`, of which one at least is long enough, takes a task now."""
    fitting = [pool for pool in pools if pool.ctx_offered() >= task.ctx]
    open_pools = [pool for pool in fitting if not pool.draining]
    named = fitting[0].spec.id if len(fitting) == 1 else None
    names = ", ".join(sorted(pool.spec.id for pool in open_pools or fitting))
    if not open_pools:
        code, reason, state = Code.POOL_UNREADY, Reason.DRAINING, "is draining"
    elif any(r.ready and r.cordoned for pool in open_pools for r in pool.replicas):
        code, reason, state = Code.POOL_UNREADY, Reason.DRAINING, "is cordoned"
    elif any(pool.replicas.ever_ready for pool in open_pools):
        code, reason, state = (
            Code.POOL_UNAVAILABLE,
            Reason.POOL_UNAVAILABLE,
            "lost all its replicas",
        )
    else:
        code, reason, state = Code.POOL_UNREADY, Reason.POOL_UNREADY, "is not Ready yet"
    return Refusal(
        code, reason, f"pool {names} {state}",
        retriable=True, retry_after_ms=UNREADY_RETRY_MS, engine=task.engine, pool_id=named,
    )  # fmt: skip


def _place_in(
    pool: Pool, task: Task, rates: RateLimiter, sessions: SessionTable, sequence: int, now_ms: int
) -> Place | Refusal:
    if (shed := pool.shedding.get(task.priority)) is not None:
        return _backpressure(
            pool, Code.ADMISSION_REJECT, Reason.BREAKER, Reason.BREAKER.value,
            shed.until_ms - now_ms,
            f"pool {pool.spec.id} takes no {task.priority.value} tasks for now: {shed.cause}",
        )  # fmt: skip
    for key, rps, reason in rate_keys(pool, task):
        if wait_ms := rates.wait_ms(key, rps, now_ms):
            who = "client" if reason is Reason.RATE_LIMIT else f"tenant {task.tenant!r}"
            message = f"the {who} exceeds its {rps:g} requests per second"
            return _backpressure(
                pool, Code.ADMISSION_REJECT, reason, reason.value, wait_ms, message,
                limit_rps=rps, wait_ms=wait_ms,
            )  # fmt: skip
    # Completions are checked and charged with prompt + max_tokens; the others decode nothing.
    decoded = task.max_tokens if task.workload is Workload.COMPLETION else 0
    tokens = task.prompt_tokens + decoded
    if (over := _quota_refusal(pool, task, tokens, now_ms)) is not None:
        return over
    times = pool.times
    service_ms = ceil(times.times.task_ms(task)) if times is not None and times.times.known else 0
    reservation = Reservation(tokens, service_ms)
    refused = sessions.refusal(task.session_key, tokens, service_ms, now_ms)
    if refused is not None:
        return replace(refused, engine=task.engine, pool_id=pool.spec.id)
    at_once = pool.slots_free() > 0 and pool.holds.may_start(task)
    wait: tuple[int, int] | None = None
    if not at_once and (service_ms or task.deadline_at_ms <= now_ms):
        ahead = pool.position(task, sequence)
        wait = ahead, pool.start_delay_ms(ahead, now_ms)
    late = _deadline_refusal(pool, task, service_ms, wait[1] if wait else 0, now_ms)
    if at_once:
        return late or Place(pool, reservation, True, None)
    room = pool.queue.find_room(task.priority)
    relief: Relief | None = NO_RELIEF
    # Before speed is known nobody is refused, but an urgent task need not wait for that.
    guessed = not service_ms and pool.spec.preemption.mode is PreemptionMode.HARD
    if (late is not None or guessed) and room is not None:
        relief = _relief(pool, task, sequence, now_ms)
    if late is not None and (room is None or relief is None):
        return late
    if room is None:
        return _full(pool, task, now_ms)
    victim = room.victim
    if victim is not None and room.lasting:
        victim = last_to_start(pool, victim.priority, now_ms)
    return Place(pool, reservation, False, victim, relief or NO_RELIEF, wait)


def _quota_refusal(pool: Pool, task: Task, tokens: int, now_ms: int) -> Refusal | None:
    """Whether the tenant asks for more than it is granted: at all, or of tokens by now."""
    policy = pool.queue.tenant(task.tenant)
    limit = policy.tokens_per_minute
    if limit is None and policy.kv_bytes is None:
        return None
    if limit is not None and tokens > limit:
        return _beyond_quota(
            pool, f"tokens_per_minute: the task may take {tokens} tokens",
            f"is granted {limit} a minute", task, limit_tokens_per_min=limit, tokens=tokens,
        )  # fmt: skip
    need_bytes = pool.holds.kv_bytes(task.ctx)
    if policy.kv_bytes is not None and need_bytes > policy.kv_bytes:
        return _beyond_quota(
            pool, f"kv_bytes: a context of {task.ctx} tokens takes {need_bytes} bytes",
            f"is granted {policy.kv_bytes}", task, limit_bytes=policy.kv_bytes, kv_bytes=need_bytes,
        )  # fmt: skip
    if wait_ms := pool.tokens.wait_ms(policy, tokens, now_ms):
        return _backpressure(
            pool, Code.ADMISSION_REJECT, Reason.QUOTA, Reason.QUOTA.value, wait_ms,
            f"tokens_per_minute: tenant {task.tenant!r} has used up its {limit} tokens per minute",
            limit_tokens_per_min=limit or 0, tokens=tokens, wait_ms=wait_ms,
        )  # fmt: skip
    return None


def _beyond_quota(pool: Pool, problem: str, granted: str, task: Task, **figures: float) -> Refusal:
    """A task that its tenant's quota never lets pass, whenever it comes."""
    return Refusal(
        Code.ADMISSION_REJECT, Reason.QUOTA, f"{problem}, tenant {task.tenant!r} {granted}",
        policy_label=Reason.QUOTA.value, engine=pool.spec.engine, pool_id=pool.spec.id,
        figures=tuple(figures.items()),
    )  # fmt: skip


def _relief(pool: Pool, task: Task, sequence: int, now_ms: int) -> Relief | None:
    """What makes way for a task that would be late; a tenant at its own quota waits for itself."""
    if not has_below(task.priority) or not pool.holds.may_start(task):
        return None
    return find_relief(pool, task, sequence, now_ms)


def _deadline_refusal(
    pool: Pool, task: Task, service_ms: int, start_ms: int, now_ms: int
) -> Refusal | None:
    """Whether the task would end too late; only the clock decides until speed is known."""
    slack_ms = task.deadline_at_ms - now_ms
    if slack_ms > 0 and not service_ms:
        return None
    promise_ms = start_ms + max(service_ms, 1)
    if promise_ms <= slack_ms:
        return None
    # Waiting helps against the queue, not against a deadline shorter than the task itself.
    helps = service_ms <= task.deadline_at_ms - task.arrived_ms
    earliest_ms = task.deadline_at_ms - task.arrived_ms + promise_ms - slack_ms
    return _backpressure(
        pool, Code.DEADLINE_UNMET, Reason.DEADLINE, None, promise_ms - slack_ms,
        f"deadline_ms: {task.deadline_at_ms - task.arrived_ms} cannot be met; "
        f"the earliest that can be promised is {earliest_ms}",
        retriable=helps, deadline_ms=task.deadline_at_ms - task.arrived_ms, earliest_ms=earliest_ms,
        predicted_start_ms=start_ms, service_ms=service_ms, slack_ms=slack_ms - promise_ms,
    )  # fmt: skip


def _full(pool: Pool, task: Task, now_ms: int) -> Refusal:
    queue, priority = pool.queue, task.priority
    policy = queue.full_policy
    dropping = policy is FullPolicy.DROP_LRU
    capacity = queue.policy(priority).queue_capacity
    full = f"{priority} queue ({capacity})" if queue.depth(priority) >= capacity else "queue"
    return _backpressure(
        pool, Code.QUEUE_FULL_DROP_LRU if dropping else Code.ADMISSION_REJECT, Reason.QUEUE_FULL,
        policy.value, pool.start_delay_ms(0, now_ms),
        f"the {full} of pool {pool.spec.id} is full ({len(queue)} waiting) and its policy "
        f"{policy.value} makes no room",
        waiting=len(queue), queue_capacity=queue.capacity, class_waiting=queue.depth(priority),
        class_capacity=capacity,
    )  # fmt: skip


def _backpressure(
    pool: Pool, code: Code, reason: Reason, label: str | None, retry_ms: int, message: str,
    *, retriable: bool = True, **figures: float,
) -> Refusal:  # fmt: skip
    return Refusal(
        code, reason, message, retriable=retriable, policy_label=label,
        retry_after_ms=max(1, min(retry_ms, MAX_RETRY_MS)),
        engine=pool.spec.engine, pool_id=pool.spec.id, figures=tuple(figures.items()),
    )  # fmt: skip
