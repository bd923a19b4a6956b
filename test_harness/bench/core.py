"""The core measure: what one enqueue and one dispatch cost with N tasks waiting.

In this process, no I/O: the scheduler is driven through `step` as the service drives it. With N
tasks waiting and all slots taken, one cycle is `Submit` (one task more waits) and `Finished` of
the oldest running one (one waiting task is dispatched). Invariant: exactly N tasks wait at the
start and the end of the timed part, over all tenants and both priorities, deadlines shuffled.
"""

from __future__ import annotations

import gc
import random
import time
from collections import deque
from dataclasses import dataclass

from orchestrator_core.effects import Admitted, Dispatch, Effect
from orchestrator_core.events import Event, Finished, PoolAdded, ReplicaReady, Submit
from orchestrator_core.pool import PoolSpec, PriorityPolicy, ReplicaSpec, SetKey, TenantPolicy
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Determinism, Priority, Task, Workload

POOL, REPLICA, MODEL, ENGINE, CTX = "bench", "r0", "repo:bench/fake", "llamacpp", 8192
SLOTS = 64
TENANTS = 8
TASKS_PER_SESSION = 4  # below any limit of turns
START_MS = 1_700_000_000_000
DEADLINE_MS = 10**10  # so far that nothing is judged infeasible behind a million tasks
DEADLINE_SPREAD_MS = 10**6
SEED = 20261123  # of the deadlines' shuffle; any fixed number
WAITING = (1_000, 100_000, 1_000_000)
CYCLES = 5_000


class WrongDecision(Exception):
    """The scheduler did not admit or dispatch where it must: the figure would be meaningless."""


@dataclass(frozen=True, slots=True)
class CoreCost:
    """Cost of one cycle and of filling the queue before it."""

    waiting: int
    cycle_ns: float
    fill_ns_per_task: float


class QueueDriver:
    """A scheduler with one pool whose slots are all taken."""

    def __init__(self, capacity: int) -> None:
        self._scheduler = Scheduler()
        self._now_ms = START_MS
        self._running: deque[str] = deque()
        self._made = self._submitted = self._dispatched = 0
        self._random = random.Random(SEED)
        key = SetKey(ENGINE, MODEL, "q4_1", CTX, "1", "", "sha256:5f")
        spec = PoolSpec(
            id=POOL,
            engine=ENGINE,
            model_refs=frozenset({MODEL}),
            ctx=CTX,
            quant=key.quant,
            queue_capacity=capacity,
            priorities=(
                PriorityPolicy(Priority.INTERACTIVE, 8, capacity),
                PriorityPolicy(Priority.BATCH, 1, capacity),
            ),
            tenants=tuple(TenantPolicy(f"tenant-{i}", weight=1 + i) for i in range(TENANTS)),
        )
        self._step(PoolAdded(spec))
        self._step(ReplicaReady(ReplicaSpec(REPLICA, POOL, key, SLOTS, CTX)))

    @property
    def waiting(self) -> int:
        """Tasks submitted and neither running nor finished."""
        return self._submitted - self._dispatched

    def tasks(self, count: int) -> list[Submit]:
        """Fresh submissions, built outside the timed part."""
        return [self._submission() for _ in range(count)]

    def submit(self, submission: Submit) -> None:
        """One task more. Raises WrongDecision unless it is admitted."""
        effects = self._step(submission)
        self._submitted += 1
        # Sessions over the core's bound may expire in the same step.
        if not any(isinstance(effect, Admitted) for effect in effects):
            raise WrongDecision(repr(effects))

    def finish_oldest(self) -> None:
        """The task that runs longest ends. Raises WrongDecision unless another one starts."""
        before = self._dispatched
        self._step(
            Finished(self._running.popleft(), tokens_in=9, tokens_out=1, prefill_ms=1, decode_ms=1)
        )
        if self._dispatched != before + 1:
            raise WrongDecision("a free slot was left empty")

    def _step(self, event: Event) -> tuple[Effect, ...]:
        effects = self._scheduler.step(event, self._now_ms)
        for effect in effects:
            if isinstance(effect, Dispatch):
                self._running.append(effect.task_key)
                self._dispatched += 1
        return effects

    def _submission(self) -> Submit:
        number = self._made
        self._made += 1
        tenant = f"tenant-{number % TENANTS}"
        # Neighbours of one tenant alternate between the priorities.
        interactive = number // TENANTS % 2 == 0
        return Submit(
            Task(
                key=f"{tenant}/task-{number}",
                tenant=tenant,
                session_key=f"{tenant}/session-{number // (TENANTS * TASKS_PER_SESSION)}",
                engine=ENGINE,
                model_ref=MODEL,
                priority=Priority.INTERACTIVE if interactive else Priority.BATCH,
                workload=Workload.COMPLETION,
                determinism=Determinism.STRICT,
                ctx=CTX,
                max_tokens=1,
                prompt_tokens=9,
                cost_tokens=10,
                arrived_ms=self._now_ms,
                deadline_at_ms=START_MS + DEADLINE_MS + self._random.randrange(DEADLINE_SPREAD_MS),
            )
        )


def queue_cost(waiting: int, cycles: int = CYCLES) -> CoreCost:
    """Nanoseconds of one enqueue + dispatch behind `waiting` tasks, garbage collector off.

    Raises:
        WrongDecision: a task was refused, or a slot stayed empty.
    """
    driver = QueueDriver(waiting + SLOTS + cycles)
    gc.disable()
    try:
        fill_ns = 0
        total = waiting + SLOTS
        for start in range(0, total, 10_000):
            batch = driver.tasks(min(10_000, total - start))
            began_ns = time.perf_counter_ns()
            for submission in batch:
                driver.submit(submission)
            fill_ns += time.perf_counter_ns() - began_ns
        submissions = driver.tasks(cycles)
        began_ns = time.perf_counter_ns()
        for submission in submissions:
            driver.submit(submission)
            driver.finish_oldest()
        cycle_ns = time.perf_counter_ns() - began_ns
    finally:
        gc.enable()
    if driver.waiting != waiting:
        raise WrongDecision(f"{driver.waiting} tasks wait instead of {waiting}")
    return CoreCost(waiting, cycle_ns / cycles, fill_ns / total)
