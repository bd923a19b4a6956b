"""Who makes way for an urgent task that would miss its deadline.

On a task's path: `admission.checks` asks before it refuses with DEADLINE_UNMET, `scheduler` asks
for the next urgent task while time passes. Nothing here changes state. The invariants: only tasks
of a strictly lower priority make way; a running one only where its engine proved that it can be
interrupted, where it can be decoded again without a trace, where that costs less than it still
needs, and where its own deadline holds all the same; it keeps its place. Decision 0006 has the
reasons. Requirements: ORCH-3079, ORCH-3085, ORCH-3086.
"""

from __future__ import annotations

from typing import NamedTuple

from orchestrator_core.pool import PreemptionMode
from orchestrator_core.pool_state import LiveTask, Pool
from orchestrator_core.task import Determinism, Priority, Task, Workload

# No urgent task costs more waiting ones than this: beyond it the pool is simply too small.
MAX_WAITING_GIVEN_UP = 8

# A task that was interrupted so often runs to its end: it always gets there.
MAX_INTERRUPTIONS = 3

# A deadline that is nearer than this is looked at now: the next look is the watchdog's next tick
# (250 ms), and it may be late itself.
RISK_MARGIN_MS = 500


class Relief(NamedTuple):
    """What makes way: so many `waiting` tasks are removed, these `running` ones interrupted."""

    waiting: int = 0
    running: tuple[LiveTask, ...] = ()


NO_RELIEF = Relief()


def has_below(priority: Priority) -> bool:
    """Whether there is a lower priority at all."""
    return any(other.rank > priority.rank for other in Priority)


def find_relief(pool: Pool, task: Task, sequence: int, now_ms: int) -> Relief | None:
    """The least that must make way for a task without a free slot; None when nothing helps.

    `NO_RELIEF` when it is on time by itself. Interruptions come first, as they cost nobody a task
    (in mode hard); waiting tasks go only where the estimator knows the speed. O(running + flows).
    """
    if (times := pool.times) is None:
        return None
    service_ms = times.times.task_ms(task)
    latest_ms = task.deadline_at_ms - now_ms - service_ms  # from now, to start
    if latest_ms < 0:
        return None
    ahead = pool.position(task, sequence)
    if pool.start_delay_ms(ahead, now_ms) <= latest_ms:
        return NO_RELIEF
    if may_interrupt(pool, now_ms):
        left = pool.preemptions.left(pool.spec.preemption.max_per_min, now_ms)
        # Those that were interrupted let it pass, too (`may_interrupt`: nobody else resumes).
        passed = min(len(pool.resuming), left)
        if pool.start_delay_ms(ahead - passed, now_ms) <= latest_ms:
            return NO_RELIEF
        before = pool.position(task, sequence, count_below=False) - len(pool.resuming)
        victims = interruptible(pool, task, now_ms)[:left]
        for count in range(1, len(victims) + 1):
            chosen = victims[:count]
            if count > before or pool.start_delay_ms(ahead, now_ms, chosen) <= latest_ms:
                return Relief(running=tuple(chosen))
    if times.times.known and pool.spec.preemption.mode is not PreemptionMode.OFF:
        below = ahead - pool.position(task, sequence, count_below=False)
        for count in range(1, min(below, MAX_WAITING_GIVEN_UP) + 1):
            if pool.start_delay_ms(ahead - count, now_ms) <= latest_ms:
                return Relief(waiting=count)
    return None


def may_interrupt(pool: Pool, now_ms: int) -> bool:
    """Whether the pool may preempt hard now: within its bound, and no lost task waits for a slot
    (it would get the one that is freed)."""
    policy = pool.spec.preemption
    return (
        policy.mode is PreemptionMode.HARD
        and not pool.draining
        and pool.preemptions.left(policy.max_per_min, now_ms) > 0
        and all(live.yielding for _, live in pool.resuming)
    )


def interruptible(pool: Pool, urgent: Task, now_ms: int) -> list[LiveTask]:
    """Running tasks that may make way for an urgent one, the smallest loss first: the lowest
    priority, then the least work to repeat, then the latest arrival. O(running)."""
    protected = pool.spec.preemption.protected
    found = []
    for live in pool.running.values():
        task, replica = live.task, live.replica
        if task.priority.rank <= urgent.priority.rank or task.priority in protected:
            continue
        if replica is None or not replica.spec.interruptible or not pool.serves(replica):
            continue
        if replica.leased + replica.foreign > replica.spec.slots_total:
            continue  # more than it has are in use: the next one to go frees none
        if task.workload is not Workload.COMPLETION or live.interruptions >= MAX_INTERRUPTIONS:
            continue
        if task.determinism is not Determinism.STRICT and live.shown:
            continue
        repeated_ms = now_ms - live.started_ms
        # Nothing is interrupted in the step that started it; nothing that has less to do than it
        # would have to repeat; nothing that would then be late itself.
        if not 0 < repeated_ms < live.expected_end_ms - now_ms:
            continue
        times = replica.group.times
        if now_ms + times.task_ms(urgent) + times.task_ms(task) > task.deadline_at_ms:
            continue
        found.append(live)
    found.sort(key=lambda live: (-live.task.priority.rank, -live.started_ms, -live.sequence))
    return found


def at_risk(pool: Pool, task: Task, wait_ms: float, now_ms: int) -> bool:
    """Whether a waiting task is on time if it starts now, and may be late after `wait_ms`."""
    if (times := pool.times) is None:
        return False
    slack_ms = task.deadline_at_ms - now_ms - times.times.task_ms(task)
    return 0 <= slack_ms < wait_ms + RISK_MARGIN_MS
