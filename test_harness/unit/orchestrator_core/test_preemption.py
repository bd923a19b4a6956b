"""Who makes way for an urgent task, and who never does.

Speed is known as 10 ms a token: a `make_task` takes a second, a `LONG` one ten.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from harness_kit.core_builders import (
    T0_MS,
    finished,
    make_pool,
    make_replica,
    ready_scheduler,
    submit,
)
from orchestrator_core.effects import Admitted, Dispatch, Effect, Ended, Preempt, Rejected
from orchestrator_core.errors import Code, Reason
from orchestrator_core.events import (
    Cancel,
    PoolDraining,
    ReplicaLost,
    ReplicaReady,
    Tick,
    TokensShown,
    WorkerLost,
)
from orchestrator_core.limits import Limits
from orchestrator_core.pool import FullPolicy, PreemptionMode, PreemptionPolicy, TenantPolicy
from orchestrator_core.preemption import MAX_INTERRUPTIONS
from orchestrator_core.preemption_window import PreemptionWindow
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Determinism, Priority, Workload

HARD = PreemptionPolicy(PreemptionMode.HARD)
SOFT = PreemptionPolicy(PreemptionMode.SOFT)
OFF = PreemptionPolicy(PreemptionMode.OFF)

LONG: dict[str, Any] = {
    "priority": Priority.BATCH,
    "cost_tokens": 1000,
    "max_tokens": 990,
    "deadline_at_ms": T0_MS + 120_000,
}


def scheduler_of(
    preemption: PreemptionPolicy = HARD, *, replicas: int = 1, known: bool = True, **pool: Any
) -> Scheduler:
    """One slot a replica; three finished tasks have shown the speed, if it is `known`."""
    specs = [make_replica(f"r{number}") for number in range(replicas)]
    limits = Limits(budget_time_ms=100_000)
    scheduler = ready_scheduler(make_pool(preemption=preemption, **pool), specs, limits)
    for number in range(3 if known else 0):
        submit(scheduler, f"past{number}", priority=Priority.BATCH)
        scheduler.step(finished(f"acme/past{number}"), T0_MS)
    return scheduler


def urgent(
    scheduler: Scheduler, name: str = "u", *, at_ms: int = 1000, within_ms: int = 1500, **task: Any
) -> list[Effect]:
    """A one-second interactive task that comes `at_ms` after the start."""
    now_ms = T0_MS + at_ms
    task = {"arrived_ms": now_ms, "deadline_at_ms": now_ms + within_ms} | task
    return submit(scheduler, name, now_ms, **task)


def code_of(effects: list[Effect]) -> Code | None:
    """The code of a refusal; None for a task that was admitted."""
    refused = [effect.refusal.code for effect in effects if isinstance(effect, Rejected)]
    return refused[0] if refused else None


@pytest.mark.req("ORCH-3086", partial="what services do about it")
class TestHard:
    @pytest.mark.req("ORCH-3079", partial="all but that feasibility counts what may be preempted")
    def test_an_urgent_task_takes_the_slot_and_the_other_resumes_after_it(self) -> None:
        scheduler = scheduler_of()
        submit(scheduler, "long", **LONG)

        effects = urgent(scheduler)
        after = scheduler.step(finished("acme/u"), T0_MS + 2000)

        assert effects == [
            Preempt("acme/long", "p", "r0"),
            Admitted("acme/u", "p", 0, 0, 0),
            Dispatch("acme/u", "p", "r0", 1),
        ]
        assert after == (Dispatch("acme/long", "p", "r0", 2),)

    def test_it_does_not_wait_until_the_estimator_knows_the_speed(self) -> None:
        scheduler = scheduler_of(known=False)
        submit(scheduler, "long", **LONG)

        effects = urgent(scheduler, within_ms=3000)

        assert effects[0] == Preempt("acme/long", "p", "r0")

    def test_a_task_that_is_on_time_by_itself_interrupts_nobody(self) -> None:
        scheduler = scheduler_of()
        submit(scheduler, "long", **LONG)

        (admitted,) = urgent(scheduler, within_ms=11_000)

        assert isinstance(admitted, Admitted)
        assert admitted.predicted_start_ms == 9000

    def test_the_least_work_is_repeated(self) -> None:
        scheduler = scheduler_of(replicas=2)
        submit(scheduler, "older", **LONG)
        submit(scheduler, "newer", T0_MS + 500, **LONG)

        effects = urgent(scheduler)

        assert effects[0] == Preempt("acme/newer", "p", "r1")

    def test_an_interrupted_task_goes_before_what_waits_of_its_class(self) -> None:
        scheduler = scheduler_of()
        submit(scheduler, "long", **LONG)
        submit(scheduler, "next", **LONG)
        urgent(scheduler)

        waiting = scheduler.waiting_keys("p")
        after = scheduler.step(finished("acme/u"), T0_MS + 2000)

        assert waiting == ("acme/long", "acme/next")
        assert after == (Dispatch("acme/long", "p", "r0", 2),)

    def test_an_urgent_task_that_would_be_late_passes_it(self) -> None:
        scheduler = scheduler_of()
        submit(scheduler, "long", **LONG)
        urgent(scheduler)
        urgent(scheduler, "second", within_ms=2200)

        after = scheduler.step(finished("acme/u"), T0_MS + 2000)
        last = scheduler.step(finished("acme/second"), T0_MS + 3000)

        assert after == (Dispatch("acme/second", "p", "r0", 1),)
        assert last == (Dispatch("acme/long", "p", "r0", 2),)

    def test_an_urgent_task_that_has_time_waits_for_it(self) -> None:
        scheduler = scheduler_of()
        submit(scheduler, "long", **LONG)
        urgent(scheduler)
        urgent(scheduler, "second", within_ms=30_000)

        after = scheduler.step(finished("acme/u"), T0_MS + 2000)

        assert after == (Dispatch("acme/long", "p", "r0", 2),)

    def test_a_waiting_task_that_would_be_late_by_now_interrupts_at_the_next_tick(self) -> None:
        scheduler = scheduler_of(replicas=2)
        submit(scheduler, "long", **LONG)
        submit(scheduler, "short", priority=Priority.BATCH)
        urgent(scheduler, at_ms=500, within_ms=3000)  # the short one ends at 1000
        scheduler.step(ReplicaLost("p", "r1"), T0_MS + 600)
        scheduler.step(WorkerLost("acme/short", resume=False), T0_MS + 600)

        early = scheduler.step(Tick(), T0_MS + 600)
        again = scheduler.step(Tick(), T0_MS + 850)

        assert early == (
            Preempt("acme/long", "p", "r0"),
            Dispatch("acme/u", "p", "r0", 1),
        )
        assert again == ()

    def test_a_lost_task_that_waits_for_a_slot_is_not_overtaken(self) -> None:
        scheduler = scheduler_of(replicas=2)
        submit(scheduler, "long", **LONG)
        submit(scheduler, "other", **LONG)
        scheduler.step(ReplicaLost("p", "r1"), T0_MS + 500)
        scheduler.step(WorkerLost("acme/other", resume=True), T0_MS + 500)

        effects = urgent(scheduler)

        assert code_of(effects) is Code.DEADLINE_UNMET

    def test_what_is_done_again_is_not_charged(self) -> None:
        scheduler = scheduler_of()
        submit(scheduler, "long", **LONG, session_key="s")
        urgent(scheduler)
        scheduler.step(finished("acme/u"), T0_MS + 2000)

        scheduler.step(finished("acme/long", 100, 9900), T0_MS + 12_000)

        session = scheduler.session("s", T0_MS + 12_000)
        assert session is not None
        assert session.time_budget_remaining_ms == 90_000

    def test_a_cancelled_one_leaves_nothing_behind(self) -> None:
        scheduler = scheduler_of(tenants=(TenantPolicy("acme", max_concurrent=2),))
        submit(scheduler, "long", **LONG)
        urgent(scheduler)

        cancelled = scheduler.step(Cancel("acme/long"), T0_MS + 1500)
        after = scheduler.step(finished("acme/u"), T0_MS + 2000)

        assert cancelled == (Ended("acme/long", None),)
        assert after == ()
        assert scheduler.slots_free("p") == 1

    def test_it_resumes_in_its_own_set_only(self) -> None:
        scheduler = scheduler_of()
        submit(scheduler, "long", **LONG)
        urgent(scheduler)
        scheduler.step(ReplicaReady(make_replica("r9", version="b2")), T0_MS + 1500)

        position = scheduler.position("acme/long")
        after = scheduler.step(finished("acme/u"), T0_MS + 2000)

        assert position == 0
        assert after == (Dispatch("acme/long", "p", "r0", 2),)

    def test_no_more_than_the_bound_in_any_minute(self) -> None:
        scheduler = scheduler_of(PreemptionPolicy(PreemptionMode.HARD, max_per_min=2))
        submit(scheduler, "long", **LONG)
        for number in range(2):
            at_ms = 1000 + 2000 * number
            effects = urgent(scheduler, f"u{number}", at_ms=at_ms)
            assert isinstance(effects[0], Preempt)
            scheduler.step(finished(f"acme/u{number}"), T0_MS + at_ms + 1000)

        over = urgent(scheduler, "over", at_ms=5000)
        scheduler.step(finished("acme/long"), T0_MS + 14_000)
        submit(scheduler, "long2", T0_MS + 59_000, **LONG)
        not_yet = urgent(scheduler, "not-yet", at_ms=60_500)
        later = urgent(scheduler, "later", at_ms=61_000)

        assert code_of(over) is code_of(not_yet) is Code.DEADLINE_UNMET
        assert later[0] == Preempt("acme/long2", "p", "r0")

    def test_a_task_is_interrupted_a_few_times_at_most(self) -> None:
        scheduler = scheduler_of()
        submit(scheduler, "long", **LONG)
        for number in range(MAX_INTERRUPTIONS):
            at_ms = 1000 + 2000 * number
            assert isinstance(urgent(scheduler, f"u{number}", at_ms=at_ms)[0], Preempt)
            scheduler.step(finished(f"acme/u{number}"), T0_MS + at_ms + 1000)

        last = urgent(scheduler, "last", at_ms=1000 + 2000 * MAX_INTERRUPTIONS)

        assert code_of(last) is Code.DEADLINE_UNMET


@dataclass(frozen=True)
class Spared:
    """A running task that keeps its slot, and why."""

    why: str
    preemption: PreemptionPolicy = HARD
    interruptible: bool = True
    task: dict[str, Any] = field(default_factory=dict)
    at_ms: int = 1000
    urgent: dict[str, Any] = field(default_factory=dict)
    before: Callable[[Scheduler], object] = lambda scheduler: None


def shown(scheduler: Scheduler) -> None:
    scheduler.step(TokensShown("acme/long"), T0_MS + 100)


SPARED = [
    Spared("mode soft", preemption=SOFT),
    Spared("mode off", preemption=OFF),
    Spared("none allowed", preemption=PreemptionPolicy(PreemptionMode.HARD, max_per_min=0)),
    Spared(
        "protected",
        preemption=PreemptionPolicy(PreemptionMode.HARD, protected=frozenset(Priority)),
    ),
    Spared("its engine cannot", interruptible=False),
    Spared("as urgent", task={"priority": Priority.INTERACTIVE}),
    Spared("the newcomer is batch", urgent={"priority": Priority.BATCH}),
    Spared("more than half done", at_ms=5001),
    # 1000 now, 1000 for the urgent one, 10000 again: it would end at 12000.
    Spared("it would be late itself", task={"deadline_at_ms": T0_MS + 11_999}),
    Spared("no decode", task={"workload": Workload.EMBEDDING, "prompt_tokens": 1000}),
    Spared("its tokens were seen", task={"determinism": Determinism.BEST_EFFORT}, before=shown),
    Spared("hopeless anyway", urgent={"deadline_at_ms": T0_MS + 1999}),
]


@pytest.mark.req("ORCH-3086", partial="what services do about it")
@pytest.mark.parametrize("case", SPARED, ids=lambda case: case.why)
def test_what_is_never_interrupted(case: Spared) -> None:
    scheduler = scheduler_of(case.preemption)
    replica = make_replica(interruptible=case.interruptible)
    scheduler.step(ReplicaReady(replica), T0_MS)
    submit(scheduler, "long", **(LONG | case.task))
    case.before(scheduler)

    effects = urgent(scheduler, at_ms=case.at_ms, **case.urgent)

    assert code_of(effects) is Code.DEADLINE_UNMET
    assert scheduler.running("p") == ("acme/long",)


@pytest.mark.req("ORCH-3086", partial="what services do about it")
@pytest.mark.parametrize(
    "task",
    [
        pytest.param({"deadline_at_ms": T0_MS + 12_000}, id="just on time again"),
        pytest.param({"determinism": Determinism.BEST_EFFORT}, id="nothing of it was seen"),
    ],
)
def test_what_may_be_interrupted(task: dict[str, Any]) -> None:
    scheduler = scheduler_of()
    submit(scheduler, "long", **(LONG | task))

    effects = urgent(scheduler)

    assert isinstance(effects[0], Preempt)


@pytest.mark.req("ORCH-3086", partial="what services do about it")
def test_a_replica_that_came_back_with_fewer_slots_than_it_runs_has_none_to_free() -> None:
    scheduler = scheduler_of()
    scheduler.step(ReplicaReady(make_replica(slots=2)), T0_MS)
    for name in ("long", "longer"):
        submit(scheduler, name, **LONG)
    scheduler.step(ReplicaLost("p", "r0"), T0_MS)
    scheduler.step(ReplicaReady(make_replica(slots=1)), T0_MS)

    effects = urgent(scheduler)

    assert code_of(effects) is Code.DEADLINE_UNMET
    assert scheduler.running("p") == ("acme/long", "acme/longer")


def test_a_tenant_at_its_quota_waits_for_itself() -> None:
    scheduler = scheduler_of(tenants=(TenantPolicy("acme", max_concurrent=1),))
    submit(scheduler, "long", **LONG)

    effects = urgent(scheduler)

    assert code_of(effects) is Code.DEADLINE_UNMET


def test_a_draining_pool_interrupts_nothing() -> None:
    scheduler = scheduler_of()
    submit(scheduler, "long", **LONG)
    urgent(scheduler, within_ms=11_000)
    scheduler.step(PoolDraining("p"), T0_MS + 1000)

    effects = scheduler.step(Tick(), T0_MS + 10_500)

    assert effects == ()


@pytest.mark.req("ORCH-3085", partial="the stream's end, which is the service's")
class TestSoft:
    def queue(self, preemption: PreemptionPolicy, **pool: Any) -> Scheduler:
        """A one-second task runs, long ones wait and it is their turn: the interactive class has
        just had its own."""
        scheduler = scheduler_of(preemption, **pool)
        submit(scheduler, "first")
        submit(scheduler, "long1", **LONG)
        submit(scheduler, "long2", **LONG)
        submit(scheduler, "running")
        scheduler.step(finished("acme/first"), T0_MS)
        assert scheduler.running("p") == ("acme/running",)
        return scheduler

    def test_the_latest_waiting_task_goes_and_its_class_gives_up_its_turn(self) -> None:
        scheduler = self.queue(SOFT)

        ended, admitted = urgent(scheduler, at_ms=0, within_ms=5000)
        order = [scheduler.step(finished("acme/running"), T0_MS + 1000)]
        order.append(scheduler.step(finished("acme/u"), T0_MS + 2000))

        assert isinstance(ended, Ended)
        assert (ended.task_key, ended.preempted) == ("acme/long2", True)
        assert ended.refusal is not None
        assert (ended.refusal.code, ended.refusal.reason, ended.refusal.policy_label) == (
            Code.ADMISSION_REJECT,
            Reason.PREEMPTED,
            "preempted",
        )
        assert ended.refusal.retriable
        assert ended.refusal.retry_after_ms == 1000
        assert admitted == Admitted("acme/u", "p", 0, 1000, 0)
        assert order == [
            (Dispatch("acme/u", "p", "r0", 1),),
            (Dispatch("acme/long1", "p", "r0", 1),),
        ]

    def test_a_task_that_is_on_time_by_itself_removes_nobody(self) -> None:
        scheduler = self.queue(SOFT)

        (admitted,) = urgent(scheduler, at_ms=0, within_ms=12_000)

        assert isinstance(admitted, Admitted)

    def test_off_refuses_the_newcomer(self) -> None:
        effects = urgent(self.queue(OFF), at_ms=0, within_ms=5000)

        assert code_of(effects) is Code.DEADLINE_UNMET

    def test_nobody_goes_where_that_would_not_help(self) -> None:
        scheduler = self.queue(SOFT)

        effects = urgent(scheduler, at_ms=0, within_ms=1999)

        assert code_of(effects) is Code.DEADLINE_UNMET
        assert len(scheduler.waiting_keys("p")) == 2

    def test_a_full_queue_under_reject_stays_as_it_is(self) -> None:
        scheduler = self.queue(SOFT, capacity=3)
        submit(scheduler, "long3", **LONG)

        late = urgent(scheduler, "late", at_ms=0, within_ms=5000)
        full = urgent(scheduler, "full", at_ms=0, within_ms=30_000)

        assert code_of(late) is Code.DEADLINE_UNMET
        assert code_of(full) is Code.ADMISSION_REJECT
        assert len(scheduler.waiting_keys("p")) == 3

    @pytest.mark.parametrize(
        ("preemption", "priority", "preempted"),
        [
            (SOFT, Priority.INTERACTIVE, True),
            (HARD, Priority.INTERACTIVE, True),
            (OFF, Priority.INTERACTIVE, False),
            (SOFT, Priority.BATCH, False),
        ],
    )
    def test_a_full_policy_that_drops_for_a_higher_priority_counts_as_preemption(
        self, preemption: PreemptionPolicy, priority: Priority, preempted: bool
    ) -> None:
        scheduler = scheduler_of(preemption, capacity=1, policy=FullPolicy.DROP_LRU)
        submit(scheduler, "running", **LONG)
        submit(scheduler, "waiting", **LONG)

        ended, _ = submit(scheduler, "new", priority=priority, deadline_at_ms=T0_MS + 60_000)

        assert isinstance(ended, Ended)
        assert ended.refusal is not None
        assert (ended.task_key, ended.preempted) == ("acme/waiting", preempted)
        assert ended.refusal.policy_label == "drop-lru"


class TestWindow:
    def test_the_bound_holds_in_any_minute_not_in_each(self) -> None:
        window = PreemptionWindow()
        for at_ms in (0, 59_000):
            window.count(at_ms)

        assert [window.left(2, at_ms) for at_ms in (59_999, 60_000, 118_999, 119_000)] == [
            0,
            1,
            1,
            2,
        ]

    def test_a_clock_set_back_does_not_stop_preemption_for_good(self) -> None:
        window = PreemptionWindow()
        window.count(10_000_000)

        assert window.left(1, 5000) == 1
