"""One pool at work: its queue, its replicas, what runs and what waits to run again.

On a task's path: `admission.checks` reads it, `scheduler` moves tasks through it. The invariants:
a task of this pool is in exactly one of `queue`, `resuming`, `running`; what its tenants run is
counted in `holds`, which holds those in the queue that are at a quota. Requirements: ORCH-3011,
ORCH-3036, ORCH-3046, ORCH-3077.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Collection
from enum import StrEnum

from orchestrator_core.admission.circuit_breaker import Shed
from orchestrator_core.admission.tenant_holds import TenantHolds
from orchestrator_core.admission.tenant_quotas import TenantTokens, TokenBucket
from orchestrator_core.estimator import (
    MAX_SLOTS_MODELLED,
    all_remaining_ms,
    generated_tokens,
    remaining_ms,
    start_delay_ms,
)
from orchestrator_core.on_time import Forecast, OnTimeHistory
from orchestrator_core.placement import topology
from orchestrator_core.placement.anti_affinity import TenantSpread
from orchestrator_core.placement.filter import serving
from orchestrator_core.placement.free_slots import FreeSlots
from orchestrator_core.placement.pick import Choice, Wish, choice, pick
from orchestrator_core.pool import PoolSpec
from orchestrator_core.preemption_window import PreemptionWindow
from orchestrator_core.queueing.pool_queue import PoolQueue
from orchestrator_core.queueing.share import EntitledShares
from orchestrator_core.replica_sets import ReplicaSet
from orchestrator_core.replicas import Replica, ReplicaTable
from orchestrator_core.sessions.session_table import Reservation, Session
from orchestrator_core.task import Priority, Task

# Bits of a turn below the priority: more arrivals than a process sees.
RANK_SHIFT_BITS = 48

# Nobody knows when a slot is free that is busy with what is not ours: after an average task of our
# own, and not before its engine is asked again, a second later.
FOREIGN_AT_LEAST_MS = 1000.0


class Stage(StrEnum):
    """Where an admitted task is."""

    WAITING = "waiting"  # in the queue
    RESUMING = "resuming"  # its worker died (or the orchestrator did): before everything that waits
    RUNNING = "running"  # on `replica`, one slot leased


class Why(StrEnum):
    """What gave a task its slot."""

    FREE_SLOT = "free-slot"  # nobody waited for it
    FAIR_TURN = "fair-turn"  # it was next in fair order
    URGENT = "urgent"  # it would have been late behind its turn
    RESUME = "resume"  # it had begun before


class LiveTask:
    """An admitted task until its terminal state. `group`: the set it must stay in, once started."""

    __slots__ = (
        "admission_forecast",
        "attempt",
        "avoid",
        "choice",
        "expected_end_ms",
        "group",
        "interruptions",
        "pool",
        "replica",
        "reservation",
        "sequence",
        "session",
        "shown",
        "spent_ms",
        "stage",
        "start_forecast",
        "started_ms",
        "task",
        "token_bucket",
        "why",
        "yielding",
    )

    def __init__(
        self, task: Task, sequence: int, pool: Pool, session: Session, reservation: Reservation
    ) -> None:
        self.task = task
        self.sequence = sequence
        self.pool = pool
        self.session = session
        self.reservation = reservation
        self.token_bucket: TokenBucket | None = None  # of its tenant, where that is bounded
        self.stage = Stage.WAITING
        self.attempt = 0
        self.replica: Replica | None = None
        self.choice: Choice | None = None  # of its last start, and what gave it the slot
        self.why = Why.FREE_SLOT
        self.group: ReplicaSet | None = None
        self.avoid: Replica | None = None  # where its worker died; second choice from then on
        self.started_ms = 0
        self.spent_ms = 0  # on replicas that were lost
        self.interruptions = 0  # for more urgent tasks
        self.yielding = False  # resumes after the urgent task that interrupted it
        self.shown = False  # tokens of a best_effort task went out: it cannot run again
        self.expected_end_ms = 0.0
        self.admission_forecast: Forecast | None = None  # None also while speed is unknown
        self.start_forecast: Forecast | None = None

    @property
    def resume_turn(self) -> int:
        """Its place among those that resume; unique."""
        return self.task.priority.rank << RANK_SHIFT_BITS | self.sequence


class Pool:
    """State of one pool; `scheduler` is the only writer."""

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec
        self.queue = PoolQueue(spec)
        self.entitled = EntitledShares(
            lambda priority: self.queue.policy(priority).weight,
            lambda tenant: self.queue.tenant(tenant).weight,
        )
        self.replicas = ReplicaTable()
        self.running: dict[str, LiveTask] = {}
        self.resuming: list[tuple[int, LiveTask]] = []  # by `resume_turn`
        self.draining = False
        self.closed = False  # draining because the service stops: nothing moves or resumes
        self.shedding: dict[Priority, Shed] = {}  # what its circuit breaker refuses
        self.preemptions = PreemptionWindow()
        self.on_time = OnTimeHistory()
        self._spread: TenantSpread | None = None
        self._neighbours: list[Replica] = []  # every replica, where some have a known topology
        self._serving: list[Replica] = []
        self._free = FreeSlots()  # of those
        self._ctx = spec.ctx
        self._ends: list[tuple[float, int]] = []  # when running tasks should end; sorted
        self.tokens = TenantTokens()
        self.holds = TenantHolds(self.queue, spec.tenants)

    def reconfigure(self, spec: PoolSpec) -> None:
        """A new specification under the same id; tasks and replicas stay."""
        self.spec = spec
        self.replicas.changed = True
        self.queue.reconfigure(spec)
        self.entitled.reweigh()
        self.tokens.keep(spec.tenants)
        self.holds.reconfigure(spec.tenants)

    @property
    def group(self) -> ReplicaSet | None:
        """The set new work goes to; None stands for any."""
        return self.replicas.pinned if self.spec.same_engine_version else None

    @property
    def times(self) -> ReplicaSet | None:
        """The set whose speed stands for the pool's: the pinned one, mixed pool or not."""
        return self.replicas.pinned

    def serving(self) -> list[Replica]:
        """Ready replicas that new work may go to, as of the last `repin`."""
        return self._serving

    def ctx_offered(self) -> int:
        """The longest context every serving replica takes; the configured one while none serves."""
        return self._ctx

    def slots_free(self) -> int:
        """Free slots for new work. O(1)."""
        return self._free.total

    def repin(self) -> None:
        """Take notice of what is Ready; call it after every change of replicas, and of tasks.

        The pin follows what is Ready, unless the pinned set still has work here.
        """
        if self._serving and not self.replicas.changed:
            return
        held = [live.group for live in self.running.values() if live.group is not None]
        held += [live.group for _, live in self.resuming if live.group is not None]
        self.replicas.repin(held)
        self._serving = serving(self.replicas, self.group)
        self._free = FreeSlots(self._serving)
        self._spread = self._spread_of_running()
        everyone = list(self.replicas)
        self._neighbours = everyone if topology.is_known(everyone) else []
        known = [replica.spec.ctx_max for replica in self._serving if replica.spec.ctx_max > 0]
        self._ctx = min([self.spec.ctx, *known])
        if self._serving:  # what runs on while none serves still takes what it took
            self.holds.measure(max(replica.spec.kv_bytes_per_token for replica in self._serving))

    def reuses_prefix(self, task: Task) -> bool:
        """Whether a warm prefix would save this task anything here."""
        return bool(task.prefix_blocks) and self.spec.reuses_prefix(
            task.workload, task.determinism, task.kv_hint
        )

    def wish(self, task: Task) -> Wish | None:
        """What beside load and affinity counts for the task's placement; None if nothing does."""
        reuse = self.reuses_prefix(task)
        if not reuse and self._spread is None and not self._neighbours:
            return None
        return Wish(task, self._spread, reuse, self._neighbours)

    def serves(self, replica: Replica) -> bool:
        """Whether the replica is one of `serving`. O(1)."""
        return replica in self._free

    def place(self, task: Task, preferred: Replica | None) -> Choice | None:
        """The replica for a task that starts anew; None without a free slot. O(log replicas), and
        O(replicas) for one that wishes more than load and affinity."""
        if (wish := self.wish(task)) is None:
            replica = self._free.roomiest(preferred)
            return None if replica is None else choice(replica, preferred)
        return pick(self._serving, None, preferred, wish=wish)

    def begin(self, live: LiveTask, chosen: Choice, why: Why, now_ms: int) -> None:
        """`live` runs there from now on; a slot is leased, its attempt counted."""
        task, replica = live.task, chosen.replica
        live.why, live.choice = why, chosen
        self._free.acquire(replica)
        live.stage, live.replica, live.group = Stage.RUNNING, replica, replica.group
        live.attempt += 1
        live.yielding = False
        live.started_ms = now_ms
        times = replica.group.times
        task_ms, left_ms = times.task_ms(task), task.deadline_at_ms - now_ms
        live.expected_end_ms = now_ms + task_ms
        live.start_forecast = (
            self.on_time.running(task.priority, task_ms, left_ms) if times.known else None
        )
        insort(self._ends, (live.expected_end_ms, live.sequence))
        self.running[task.key] = live
        self._count_spread(live, +1)

    def leave_replica(self, live: LiveTask) -> Replica:
        """`live` runs no more; its slot is free."""
        replica = live.replica
        assert replica is not None  # Stage.RUNNING has one
        self._count_spread(live, -1)
        self._free.release(replica)
        self.replicas.forget_if_gone(replica)
        del self.running[live.task.key]
        del self._ends[bisect_left(self._ends, (live.expected_end_ms, live.sequence))]
        live.replica = None
        return replica

    def forecast(self, live: LiveTask, wait_ms: int, now_ms: int) -> Forecast | None:
        """How a task that starts in `wait_ms` stands against its deadline; None while speed is
        unknown, or when its time is over. O(1)."""
        if (group := live.group or self.times) is None or not group.times.known:
            return None
        task, task_ms = live.task, group.times.task_ms(live.task)
        slack_ms = task.deadline_at_ms - now_ms
        deadline_ms = task.deadline_at_ms - task.arrived_ms
        return self.on_time.waiting(task.priority, deadline_ms, wait_ms + task_ms, slack_ms)

    def learn(self, live: LiveTask, *, on_time: bool) -> None:
        """`live` ended before its deadline, or will not: what its forecasts were is compared."""
        admission, start = live.admission_forecast, live.start_forecast
        if admission is not None:
            admission.table.observe(admission.z, on_time=on_time)
        if start is not None and start is not admission:
            start.table.observe(start.z, on_time=on_time)

    def absorb(self, other: Pool) -> None:
        """Take over the replicas of `other` and what runs on them, undisturbed."""
        self.replicas.absorb(other.replicas, self.spec.id)
        for key, live in other.running.items():
            live.pool = self
            self.running[key] = live
            insort(self._ends, (live.expected_end_ms, live.sequence))
            self.holds.count(live.task, +1)
            self.entitled.enter(live.task.tenant, live.task.priority)
        other.running.clear()
        self.repin()

    def await_resumption(self, live: LiveTask) -> None:
        """`live` goes before everything that waits, among its like by priority and admission: an
        urgent task and the one it interrupted come back from a restart in the right order."""
        live.stage = Stage.RESUMING
        insort(self.resuming, (live.resume_turn, live))

    def leave_resumption(self, live: LiveTask) -> None:
        del self.resuming[bisect_left(self.resuming, (live.resume_turn,))]

    def position(self, task: Task, sequence: int, *, count_below: bool = True) -> int:
        """Tasks that go before a waiting task, or before one that would wait; those of a lower
        priority count unless `count_below` is false (those that resume always do)."""
        return len(self.resuming) + self.queue.position(task, sequence, count_below=count_below)

    def start_delay_ms(
        self, ahead: int, now_ms: int, interrupted: Collection[LiveTask] = ()
    ) -> int:
        """Milliseconds until the next slot is free for a task with `ahead` others before it, were
        these running tasks `interrupted` now."""
        free, foreign = self.slots_free() + len(interrupted), self._free.foreign
        ends = self._ends
        if interrupted:
            gone = {live.sequence for live in interrupted}
            ends = [end for end in ends if end[1] not in gone]
        # One slot stands for so many.
        every = 1 + (free + len(ends) + foreign) // MAX_SLOTS_MODELLED
        slots = [0.0] * (free // every) + all_remaining_ms(ends[::every], now_ms)
        task_ms = self._mean_task_ms()
        if foreign:
            slots += [max(task_ms, FOREIGN_AT_LEAST_MS)] * -(-foreign // every)
            slots.sort()
        return round(start_delay_ms(ahead // every, slots, task_ms))

    def busy_ms(self, task: Task, now_ms: int) -> float:
        """Milliseconds until a slot is free again, once `task` has taken the last one."""
        if (group := self.times) is None:
            return 0.0
        running = (remaining_ms(end, now_ms) for end, _ in self._ends[:1])
        return min([group.times.task_ms(task), *running])

    def drain_to_half_ms(self, now_ms: int) -> int:
        """Milliseconds until the queue should be half empty; 0 while it is not above half."""
        excess = len(self.queue) - self.queue.capacity // 2
        return self.start_delay_ms(excess - 1, now_ms) if excess > 0 else 0

    def _mean_task_ms(self) -> float:
        """Expected service time of an average waiting task (of a running one, if none waits)."""
        if (group := self.times) is None:
            return 0.0
        if count := len(self.queue):
            prompt, cost = self.queue.prompt_tokens, self.queue.cost_tokens
            return group.times.service_ms(prompt, max(cost - prompt, 0)) / count
        for live in self.running.values():
            task = live.task
            return group.times.service_ms(task.prompt_tokens, generated_tokens(task))
        return 0.0

    def _spread_of_running(self) -> TenantSpread | None:
        """Counted anew with every change of replicas: their labels may be others now."""
        if not self.spec.anti_affinity:
            return None
        spread = TenantSpread(self.spec.anti_affinity)
        for live in self.running.values():
            if live.replica is not None:
                spread.count(live.task.tenant, live.replica, +1)
        return spread

    def _count_spread(self, live: LiveTask, change: int) -> None:
        if self._spread is not None and live.replica is not None:
            self._spread.count(live.task.tenant, live.replica, change)
