"""When a circuit breaker refuses which priority, and when it admits it again.

It opens after 30 s and closes after 60 s here; times are seconds, one look each.
"""

from __future__ import annotations

from collections.abc import Iterable

import pytest

from harness_kit.core_builders import (
    T0_MS,
    make_pool,
    make_replica,
    make_task,
    ready_scheduler,
    submit,
)
from orchestrator_core.admission.circuit_breaker import BreakerPolicy, CircuitBreaker, Shed
from orchestrator_core.effects import Admitted, Dispatch, Rejected
from orchestrator_core.errors import Code, Reason
from orchestrator_core.events import Finished, PoolAdded, ReplicaReady, Shedding, Submit
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Priority

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH
POLICY = BreakerPolicy(open_after_ms=30_000, close_after_ms=60_000)
CAUSE = "interactive.first_token_p95_ms is 1800, its goal 900"


def watch(
    breaker: CircuitBreaker, violated: Iterable[Priority], first_s: int, last_s: int
) -> list[tuple[int, tuple[Priority, ...]]]:
    """Look every second of `first_s..last_s`; returns (second, what is refused) of each change."""
    return [
        (second, breaker.shed)
        for second in range(first_s, last_s + 1)
        if breaker.observe(frozenset(violated), second * 1000)
    ]


@pytest.mark.req("ORCH-3040")
class TestBreaker:
    def test_a_lasting_violation_has_the_lowest_priority_refused_first(self) -> None:
        breaker = CircuitBreaker(POLICY)

        changes = watch(breaker, [INTERACTIVE], 0, 59)

        assert changes == [(30, (BATCH,))]

    def test_a_violation_with_a_pause_opens_nothing(self) -> None:
        breaker = CircuitBreaker(POLICY)

        changes = watch(breaker, [INTERACTIVE], 0, 29)
        changes += watch(breaker, [], 30, 30)
        changes += watch(breaker, [INTERACTIVE], 31, 60)

        assert changes == []

    def test_it_closes_after_a_calm_without_a_pause(self) -> None:
        breaker = CircuitBreaker(POLICY)
        watch(breaker, [INTERACTIVE], 0, 30)

        changes = watch(breaker, [], 31, 80)
        changes += watch(breaker, [INTERACTIVE], 81, 81)
        changes += watch(breaker, [], 82, 300)

        assert changes == [(142, ())]

    def test_the_lowest_priority_s_own_objectives_open_nothing(self) -> None:
        breaker = CircuitBreaker(POLICY)

        changes = watch(breaker, [BATCH], 0, 300)

        assert changes == []

    def test_the_lowest_priority_s_own_objectives_keep_nothing_open(self) -> None:
        breaker = CircuitBreaker(POLICY)
        watch(breaker, [INTERACTIVE], 0, 30)

        changes = watch(breaker, [BATCH], 31, 300)

        assert changes == [(91, ())]

    def test_a_violation_without_end_is_refused_and_tried_in_turns(self) -> None:
        breaker = CircuitBreaker(POLICY)

        changes = watch(breaker, [INTERACTIVE], 0, 250)

        everything = (INTERACTIVE, BATCH)
        assert changes == [
            (30, (BATCH,)),
            (60, everything),
            (120, (BATCH,)),  # on trial: without new tasks nobody would ever know
            (150, everything),
            (210, (BATCH,)),
            (240, everything),
        ]

    def test_after_everything_was_refused_the_most_urgent_priority_comes_back_first(self) -> None:
        breaker = CircuitBreaker(POLICY)
        watch(breaker, [INTERACTIVE], 0, 60)

        changes = watch(breaker, [], 61, 400)

        assert changes == [(120, (BATCH,)), (180, ())]

    def test_a_late_look_changes_one_priority_only(self) -> None:
        breaker = CircuitBreaker(POLICY)
        breaker.observe({INTERACTIVE}, 0)

        changed = breaker.observe({INTERACTIVE}, 3_600_000)

        assert changed
        assert breaker.shed == (BATCH,)

    @pytest.mark.parametrize(
        ("second", "violated", "batch_s", "interactive_s"),
        [
            pytest.param(29, [INTERACTIVE], 0, 0, id="closed"),
            pytest.param(40, [INTERACTIVE], 60, 0, id="batch refused, still violated"),
            pytest.param(60, [INTERACTIVE], 120, 60, id="everything refused"),
            pytest.param(80, [INTERACTIVE], 100, 40, id="everything refused for a while"),
        ],
    )
    def test_it_tells_when_a_priority_may_be_admitted_at_the_earliest(
        self, second: int, violated: list[Priority], batch_s: int, interactive_s: int
    ) -> None:
        breaker = CircuitBreaker(POLICY)
        watch(breaker, violated, 0, second)

        at_ms = second * 1000
        assert breaker.admits_in_ms(BATCH, at_ms) == batch_s * 1000
        assert breaker.admits_in_ms(INTERACTIVE, at_ms) == interactive_s * 1000

    def test_a_calm_brings_the_end_nearer(self) -> None:
        breaker = CircuitBreaker(POLICY)
        watch(breaker, [INTERACTIVE], 0, 30)
        watch(breaker, [], 31, 51)

        assert breaker.admits_in_ms(BATCH, 51_000) == 40_000


def shedding(*priorities: Priority, pool_id: str = "p", for_ms: int = 20_000) -> Shedding:
    return Shedding(pool_id, tuple(Shed(each, T0_MS + for_ms, CAUSE) for each in priorities))


@pytest.mark.req("ORCH-3040")
class TestAdmission:
    def test_a_refused_priority_is_told_why_and_when_to_come_back(self) -> None:
        scheduler = ready_scheduler()
        scheduler.step(shedding(BATCH), T0_MS)

        (rejected,) = submit(scheduler, "b", T0_MS + 5_000, priority=BATCH)
        admitted = submit(scheduler, "i", T0_MS + 5_000)

        assert isinstance(rejected, Rejected)
        refusal = rejected.refusal
        assert (refusal.code, refusal.reason) == (Code.ADMISSION_REJECT, Reason.BREAKER)
        assert (refusal.policy_label, refusal.retriable) == ("circuit-breaker", True)
        assert (refusal.retry_after_ms, refusal.pool_id) == (15_000, "p")
        assert refusal.message == f"pool p takes no batch tasks for now: {CAUSE}"
        assert isinstance(admitted[0], Admitted)

    def test_a_hint_that_has_passed_still_asks_for_a_moment(self) -> None:
        scheduler = ready_scheduler()
        scheduler.step(shedding(BATCH), T0_MS)

        (rejected,) = submit(scheduler, "b", T0_MS + 90_000, priority=BATCH)

        assert isinstance(rejected, Rejected)
        assert rejected.refusal.retry_after_ms == 1

    def test_what_waits_keeps_its_promise(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")
        submit(scheduler, "waiting", priority=BATCH)

        scheduler.step(shedding(INTERACTIVE, BATCH), T0_MS)
        again = scheduler.step(Submit(make_task("waiting", priority=BATCH)), T0_MS)
        effects = scheduler.step(Finished("acme/running", 10, 90, 100, 900), T0_MS)

        assert isinstance(again[0], Admitted)
        assert effects == (Dispatch("acme/waiting", "p", "r0", 1),)

    def test_another_pool_of_the_model_takes_the_task(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=8)])
        scheduler.step(PoolAdded(make_pool("q")), T0_MS)
        scheduler.step(ReplicaReady(make_replica(pool_id="q")), T0_MS)
        scheduler.step(shedding(BATCH), T0_MS)

        effects = submit(scheduler, "b", priority=BATCH)

        assert isinstance(effects[0], Admitted)
        assert effects[0].pool_id == "q"

    def test_what_is_not_named_any_more_is_admitted_again(self) -> None:
        scheduler = ready_scheduler()
        scheduler.step(shedding(BATCH), T0_MS)
        scheduler.step(shedding(), T0_MS)

        effects = submit(scheduler, "b", priority=BATCH)

        assert isinstance(effects[0], Admitted)

    def test_a_pool_that_is_gone_meanwhile_is_no_error(self) -> None:
        scheduler = Scheduler()

        effects = scheduler.step(shedding(BATCH), T0_MS)

        assert effects == ()
