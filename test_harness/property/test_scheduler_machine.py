"""The whole scheduler under any order of events, against a model that only keeps books.

What must hold whatever happens: no task is lost or ends twice, none is dispatched twice at once, no
slot is leased twice, nothing runs on a replica that is not Ready or of another set than it began
in, bounds and quotas hold, no slot idles beside a task that may have it, and only those make way
for an urgent task that may.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from harness_kit.core_builders import T0_MS, make_pool, make_replica, make_task
from orchestrator_core.effects import (
    Admitted,
    Dispatch,
    Effect,
    Ended,
    Moved,
    Preempt,
    Rejected,
    SessionExpired,
    Stop,
)
from orchestrator_core.errors import Code
from orchestrator_core.events import (
    Aborted,
    Cancel,
    Event,
    Finished,
    PoolAdded,
    PoolDraining,
    ReplicaLost,
    ReplicaReady,
    SlotsObserved,
    Submit,
    Tick,
    TokensShown,
    WorkerLost,
)
from orchestrator_core.limits import Limits
from orchestrator_core.pool import FullPolicy, PreemptionMode, PreemptionPolicy, TenantPolicy
from orchestrator_core.preemption import MAX_INTERRUPTIONS
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Determinism, Priority, Task

CAPACITY = 6
CLASS_CAPACITY = 4
MAX_CONCURRENT = {"x": 1}
BUDGET_TOKENS = 10**9
PREEMPTIONS_PER_MIN = 3

positions = st.integers(0, 99)


@dataclass
class Known:
    """The books of one admitted task."""

    task: Task
    replica: str | None = None  # where it runs
    version: str | None = None  # the set it began in
    attempts: int = 0
    resuming: bool = False
    interruptions: int = 0
    shown: bool = False


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        policy=st.sampled_from(FullPolicy),
        same_version=st.booleans(),
        mode=st.sampled_from([*PreemptionMode, PreemptionMode.HARD]),
        slots=st.lists(st.integers(1, 3), max_size=2),
    )
    def begin(
        self, policy: FullPolicy, same_version: bool, mode: PreemptionMode, slots: list[int]
    ) -> None:
        limits = Limits(session_max_turns=10**9, session_ttl_ms=10**9, budget_tokens=BUDGET_TOKENS)
        self.scheduler = Scheduler(limits)
        self.now_ms = T0_MS
        self.live: dict[str, Known] = {}
        self.ended: set[str] = set()
        self.ready: dict[str, tuple[int, str]] = {}  # replica: slots, version
        self.surplus: dict[str, list[int]] = {}  # replica: of each look, busy beyond our leases
        self.interruptible: set[str] = set()
        self.mode = mode
        self.preempted_at_ms: list[int] = []
        self.draining = False
        self.tokens_used = {"x": 0, "y": 0}
        self.number = 0
        spec = make_pool(
            capacity=CAPACITY,
            interactive=CLASS_CAPACITY,
            batch=CLASS_CAPACITY,
            policy=policy,
            same_engine_version=same_version,
            preemption=PreemptionPolicy(mode, PREEMPTIONS_PER_MIN),
            tenants=tuple(TenantPolicy(t, max_concurrent=n) for t, n in MAX_CONCURRENT.items()),
        )
        self.step(PoolAdded(spec))
        # Hypothesis leaves some rules out of each run; replicas there usually are.
        for number, count in enumerate(slots):
            self.replica_ready(f"r{number}", count, "b1", True)

    def step(self, event: Event) -> tuple[Effect, ...]:
        """Feed an event and book what comes out, checking each effect against the books."""
        effects = self.scheduler.step(event, self.now_ms)
        for index, effect in enumerate(effects):
            match effect:
                case Admitted():
                    assert isinstance(event, Submit)
                    self.live[effect.task_key] = Known(event.task)
                case Rejected():
                    assert effect.task_key not in self.live
                case Dispatch():
                    self.book_dispatch(effect)
                case Ended():
                    known = self.live[effect.task_key]
                    assert known.replica is None
                    if known.resuming:
                        self.use(known, known.task.prompt_tokens)
                    if effect.preempted:
                        assert self.mode is not PreemptionMode.OFF
                        assert isinstance(event, Submit)
                        assert known.task.priority.rank > event.task.priority.rank
                    self.end(effect.task_key)
                case Preempt():
                    assert isinstance(event, Submit | Tick)
                    assert not any(isinstance(before, Dispatch) for before in effects[:index])
                    self.book_preemption(effect)
                case Stop():
                    assert isinstance(event, Cancel)
                    known = self.live[effect.task_key]
                    assert known.replica == effect.replica_id
                    self.use(known, known.task.prompt_tokens + event.tokens_out)
                    self.end(effect.task_key)
                case SessionExpired():
                    raise AssertionError("no session is that old")
                case Moved():
                    raise AssertionError("there is one pool only")
        return effects

    def book_dispatch(self, effect: Dispatch) -> None:
        known = self.live[effect.task_key]
        assert known.resuming or not self.draining
        assert known.replica is None, "dispatched twice"
        assert known.task.deadline_at_ms > self.now_ms or known.resuming
        slots, version = self.ready[effect.replica_id]
        used = self.running_on(effect.replica_id) + self.foreign_on(effect.replica_id)
        assert used < slots, "slot leased twice, or one that is not ours"
        assert known.version in (None, version), "moved to another set"
        known.attempts += 1
        assert effect.attempt == known.attempts
        known.replica, known.version, known.resuming = effect.replica_id, version, False

    def book_preemption(self, effect: Preempt) -> None:
        known = self.live[effect.task_key]
        assert self.mode is PreemptionMode.HARD
        assert not self.draining
        assert known.replica == effect.replica_id
        assert effect.replica_id in self.interruptible
        assert known.task.priority is Priority.BATCH
        assert known.task.determinism is Determinism.STRICT or not known.shown
        assert known.task.deadline_at_ms > self.now_ms
        known.replica, known.resuming = None, True
        known.interruptions += 1
        assert known.interruptions <= MAX_INTERRUPTIONS
        self.preempted_at_ms.append(self.now_ms)
        minute = [at_ms for at_ms in self.preempted_at_ms if at_ms > self.now_ms - 60_000]
        assert len(minute) <= PREEMPTIONS_PER_MIN

    def running_on(self, replica: str) -> int:
        return sum(1 for known in self.live.values() if known.replica == replica)

    def foreign_on(self, replica: str) -> int:
        return min(self.surplus[replica][-2:])

    def end(self, key: str) -> None:
        assert key not in self.ended, "ended twice"
        del self.live[key]
        self.ended.add(key)

    def use(self, known: Known, tokens: int) -> None:
        self.tokens_used[known.task.tenant] += tokens

    def running(self) -> list[str]:
        return sorted(key for key, known in self.live.items() if known.replica is not None)

    def choose(self, keys: list[str], position: int) -> str:
        return keys[position % len(keys)]

    @rule(
        tenant=st.sampled_from("xy"),
        priority=st.sampled_from(Priority),
        determinism=st.sampled_from(Determinism),
        due_ms=st.integers(1, 60) | st.integers(200, 5_000) | st.just(100_000),
        cost=st.integers(11, 100) | st.just(1000),
    )
    def submit(
        self, tenant: str, priority: Priority, determinism: Determinism, due_ms: int, cost: int
    ) -> None:
        self.number += 1
        task = make_task(
            f"t{self.number}",
            tenant=tenant,
            session_key=tenant,
            priority=priority,
            determinism=determinism,
            deadline_at_ms=self.now_ms + due_ms,
            arrived_ms=self.now_ms,
            cost_tokens=cost,
        )
        effects = self.step(Submit(task))
        refusals = [e.refusal for e in effects if isinstance(e, Rejected)]
        if not self.ready or self.draining:
            assert [r.code in (Code.POOL_UNREADY, Code.POOL_UNAVAILABLE) for r in refusals] == [
                True
            ]
        elif not refusals:
            assert task.key in self.live

    @rule(
        flood=st.lists(st.sampled_from(Determinism), max_size=4),
        passed_ms=st.integers(1, 3_000),
        rush=st.lists(st.integers(150, 5_000), min_size=1, max_size=3),
    )
    def rush(self, flood: list[Determinism], passed_ms: int, rush: list[int]) -> None:
        """Urgent tasks come a while after long ones."""
        for determinism in flood:
            self.submit("y", Priority.BATCH, determinism, 100_000, 1000)
        self.tick(passed_ms)
        for due_ms in rush:
            self.submit("y", Priority.INTERACTIVE, Determinism.STRICT, due_ms, 15)

    @precondition(lambda self: self.running())
    @rule(position=positions, speed=st.integers(1, 20))
    def finish(self, position: int, speed: int) -> None:
        key = self.choose(self.running(), position)
        self.use(self.live[key], 30)
        self.end(key)
        self.step(Finished(key, 10, 20, 10 * speed, 20 * speed))

    @precondition(lambda self: self.running())
    @rule(position=positions, tokens_out=st.integers(0, 5))
    def abort(self, position: int, tokens_out: int) -> None:
        key = self.choose(self.running(), position)
        self.use(self.live[key], self.live[key].task.prompt_tokens + tokens_out)
        self.end(key)
        self.step(Aborted(key, tokens_out))

    @precondition(lambda self: self.running())
    @rule(position=positions)
    def show_tokens(self, position: int) -> None:
        key = self.choose(self.running(), position)
        self.live[key].shown = True
        assert self.step(TokensShown(key)) == ()

    @precondition(lambda self: self.running())
    @rule(position=positions, resume=st.booleans())
    def lose_worker(self, position: int, resume: bool) -> None:
        key = self.choose(self.running(), position)
        if resume:
            self.live[key].replica, self.live[key].resuming = None, True
        else:
            self.use(self.live[key], self.live[key].task.prompt_tokens)
            self.end(key)
        self.step(WorkerLost(key, resume))

    @precondition(lambda self: self.live)
    @rule(position=positions, tokens_out=st.integers(0, 5))
    def cancel(self, position: int, tokens_out: int) -> None:
        key = self.choose(sorted(self.live), position)
        self.step(Cancel(key, tokens_out))
        assert key in self.ended

    @precondition(lambda self: self.ended)
    @rule(position=positions, kind=st.sampled_from(["cancel", "finish", "abort", "lose", "show"]))
    def report_too_late(self, position: int, kind: str) -> None:
        key = self.choose(sorted(self.ended), position)
        late: dict[str, Event] = {
            "cancel": Cancel(key),
            "finish": Finished(key, 1, 1, 1, 1),
            "abort": Aborted(key),
            "lose": WorkerLost(key, resume=True),
            "show": TokensShown(key),
        }
        assert self.step(late[kind]) == ()

    @rule(
        name=st.sampled_from(["r0", "r1", "r2"]),
        slots=st.integers(1, 3),
        version=st.sampled_from(["b1", "b1", "b2"]),
        interruptible=st.sampled_from([True, True, False]),
    )
    def replica_ready(self, name: str, slots: int, version: str, interruptible: bool) -> None:
        if name not in self.ready:
            self.ready[name] = (slots, version)
            self.surplus[name] = [0, 0]
            self.interruptible.discard(name)
            if interruptible:
                self.interruptible.add(name)
            spec = make_replica(name, slots=slots, version=version, interruptible=interruptible)
            self.step(ReplicaReady(spec))

    @precondition(lambda self: self.ready)
    @rule(position=positions)
    def replica_lost(self, position: int) -> None:
        name = self.choose(sorted(self.ready), position)
        del self.ready[name]
        self.step(ReplicaLost("p", name))

    @precondition(lambda self: self.ready)
    @rule(position=positions, busy=st.integers(0, 4), leased_before=st.integers(0, 3))
    def look_at_slots(self, position: int, busy: int, leased_before: int) -> None:
        name = self.choose(sorted(self.ready), position)
        ours = max(self.running_on(name), leased_before)
        self.surplus[name].append(max(busy - ours, 0))
        self.step(SlotsObserved("p", name, busy, leased_before))

    @rule(draining=st.booleans())
    def drain(self, draining: bool) -> None:
        self.draining = draining
        self.step(PoolDraining("p", draining))

    @rule(passed_ms=st.integers(0, 30) | st.integers(100, 3_000))
    def tick(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self.step(Tick())
        waiting = [known.task for known in self.live.values() if known.replica is None]
        assert all(task.deadline_at_ms > self.now_ms for task in waiting)

    @invariant()
    def books_agree(self) -> None:
        waiting = {key for key, known in self.live.items() if known.replica is None}
        assert sorted(self.scheduler.running("p")) == self.running()
        assert len(self.scheduler.waiting_keys("p")) == len(waiting)
        assert set(self.scheduler.waiting_keys("p")) == waiting

    @invariant()
    def bounds_hold(self) -> None:
        queued = [k.task for k in self.live.values() if k.replica is None and not k.resuming]
        assert len(queued) <= CAPACITY
        for priority in Priority:
            assert sum(task.priority is priority for task in queued) <= CLASS_CAPACITY
        for tenant, limit in MAX_CONCURRENT.items():
            active = [k for k in self.live.values() if k.task.tenant == tenant]
            assert sum(k.replica is not None or k.resuming for k in active) <= limit

    @invariant()
    def what_is_offered_is_in_nobodys_use(self) -> None:
        for replica in (r for shown in self.scheduler.replica_sets() for r in shown.replicas):
            used = self.running_on(replica.id) + self.foreign_on(replica.id)
            assert replica.slots_free == max(self.ready[replica.id][0] - used, 0)

    @invariant()
    def no_slot_idles_beside_a_task_that_may_have_it(self) -> None:
        if self.draining or not self.scheduler.slots_free("p"):
            return
        active = [k.task.tenant for k in self.live.values() if k.replica is not None or k.resuming]
        for known in self.live.values():
            if known.replica is None and not known.resuming:
                limit = MAX_CONCURRENT.get(known.task.tenant)
                assert limit is not None
                assert active.count(known.task.tenant) >= limit

    @invariant()
    def a_task_resumes_as_soon_as_its_set_has_a_slot(self) -> None:
        for known in self.live.values():
            if known.resuming:
                for name, (slots, version) in self.ready.items():
                    used = self.running_on(name) + self.foreign_on(name)
                    assert version != known.version or used >= slots

    @invariant()
    def answers_are_in_range(self) -> None:
        for key, known in self.live.items():
            position = self.scheduler.position(key)
            assert position is not None
            assert 0 <= position < max(len(self.live), 1)
            assert 0.0 <= self.scheduler.on_time_probability(key, self.now_ms) <= 1.0
            start_ms = self.scheduler.predicted_start_ms(key, self.now_ms)
            assert start_ms is not None
            assert start_ms == 0 if known.replica is not None else start_ms >= 0

    @invariant()
    def budgets_add_up(self) -> None:
        for tenant, used in self.tokens_used.items():
            session = self.scheduler.session(tenant, self.now_ms)
            if session is None:
                assert used == 0
                continue
            reserved = sum(
                known.task.prompt_tokens + known.task.max_tokens
                for known in self.live.values()
                if known.task.tenant == tenant
            )
            assert session.tokens_budget_remaining == BUDGET_TOKENS - used - reserved

    def teardown(self) -> None:
        """Cancel everything: each admitted task ends, and nothing is left behind."""
        if not hasattr(self, "scheduler"):
            return
        for key in sorted(self.live):
            self.step(Cancel(key))
        assert not self.live
        assert self.scheduler.running("p") == self.scheduler.waiting_keys("p") == ()


@pytest.mark.req(
    "ORCH-3004",
    "ORCH-3010",
    "ORCH-3017",
    "ORCH-3019",
    "ORCH-3024",
    "ORCH-3046",
    "ORCH-3077",
    "ORCH-3085",
    "ORCH-3086",
    "OC-CORE-1005",
    "OC-CORE-1010",
    partial="all but the core's part",
)
class TestScheduler(SchedulerMachine.TestCase):  # type: ignore[misc, valid-type]
    """The machine as a test."""
