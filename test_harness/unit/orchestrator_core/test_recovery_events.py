"""What a restart brings back: the journal's facts, one by one, through the core."""

from __future__ import annotations

import pytest

from harness_kit.core_builders import (
    SET_KEY,
    T0_MS,
    finished,
    make_pool,
    make_replica,
    make_task,
    ready_scheduler,
    submit,
)
from orchestrator_core.effects import Dispatch, Effect, Ended, Moved, Rejected
from orchestrator_core.errors import Code, InvariantViolation, Reason
from orchestrator_core.events import (
    Cancel,
    PoolAdded,
    Recover,
    RecoverEnded,
    RecoverStarted,
    ReplicaReady,
    SessionRestored,
)
from orchestrator_core.limits import Limits
from orchestrator_core.pool import PoolSpec, TenantPolicy
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Priority, Task

WEIGHTED = make_pool(tenants=(TenantPolicy("acme", weight=3), TenantPolicy("zeta", weight=1)))


def recovering(spec: PoolSpec | None = None, limits: Limits | None = None) -> Scheduler:
    """A scheduler that has just begun."""
    scheduler = Scheduler(limits)
    scheduler.step(PoolAdded(spec or make_pool(capacity=1)), T0_MS)
    return scheduler


def admit(scheduler: Scheduler, task: Task, pool_id: str = "p") -> tuple[Effect, ...]:
    return scheduler.step(Recover(task, pool_id, task.arrived_ms), T0_MS)


def recover(scheduler: Scheduler, *names: str, tenant: str = "acme") -> None:
    """Tasks that waited; one whose name begins with `r` had started."""
    for name in names:
        task = make_task(name, tenant=tenant)
        admit(scheduler, task)
        if name.startswith("r"):
            scheduler.step(RecoverStarted(task.key, SET_KEY), T0_MS)


def order_of(scheduler: Scheduler) -> list[str]:
    """One slot for everything: the tasks in the order of their dispatch."""
    effects = scheduler.step(ReplicaReady(make_replica()), T0_MS)
    order = []
    while started := [effect.task_key for effect in effects if isinstance(effect, Dispatch)]:
        (key,) = started
        order.append(key)
        effects = scheduler.step(finished(key), T0_MS)
    return order


@pytest.mark.req("ORCH-3203", partial="all but order and place after a restart")
class TestOrder:
    def test_running_tasks_come_first_then_the_others_in_their_order(self) -> None:
        scheduler = recovering()
        recover(scheduler, "w1", "r1", "w2", "r2")

        order = order_of(scheduler)

        assert order == ["acme/r1", "acme/r2", "acme/w1", "acme/w2"]

    def test_a_task_that_had_run_is_dispatched_as_another_attempt(self) -> None:
        scheduler = recovering()
        recover(scheduler, "w", "r")

        effects = scheduler.step(ReplicaReady(make_replica(slots=2)), T0_MS)

        assert effects == (Dispatch("acme/r", "p", "r0", 2), Dispatch("acme/w", "p", "r0", 1))

    @pytest.mark.req("ORCH-3046")
    def test_it_resumes_in_the_set_it_ran_in(self) -> None:
        scheduler = recovering()
        recover(scheduler, "r")

        other = scheduler.step(ReplicaReady(make_replica("x", version="b9")), T0_MS)
        own = scheduler.step(ReplicaReady(make_replica("y", version="b1")), T0_MS)

        assert other == ()
        assert own == (Dispatch("acme/r", "p", "y", 2),)

    def test_absolute_deadlines_still_hold(self) -> None:
        scheduler = recovering()
        admit(scheduler, make_task("a", deadline_at_ms=T0_MS - 1))

        (ended,) = scheduler.step(ReplicaReady(make_replica()), T0_MS)

        assert isinstance(ended, Ended)
        assert ended.refusal is not None
        assert ended.refusal.code is Code.DEADLINE_UNMET

    @pytest.mark.parametrize("name", ["r", "w"])
    def test_what_had_ended_is_gone(self, name: str) -> None:
        scheduler = recovering()
        recover(scheduler, name)

        scheduler.step(RecoverEnded(f"acme/{name}"), T0_MS)

        assert scheduler.waiting_keys("p") == ()
        assert order_of(scheduler) == []

    def test_a_task_whose_pool_is_gone_goes_to_another_of_its_model(self) -> None:
        scheduler = recovering()

        effects = admit(scheduler, make_task("a"), "gone")

        assert effects == (Moved("acme/a", "p"),)
        assert scheduler.waiting_keys("p") == ("acme/a",)

    def test_a_task_whose_pool_and_model_are_gone_ends_and_no_more_is_heard_of_it(self) -> None:
        scheduler = recovering()
        task = make_task("a", model_ref="sha256:gone")

        (ended,) = admit(scheduler, task, "gone")

        assert isinstance(ended, Ended)
        assert ended.refusal is not None
        assert ended.refusal.code is Code.POOL_UNAVAILABLE
        assert scheduler.step(RecoverStarted(task.key, SET_KEY), T0_MS) == ()
        assert scheduler.step(RecoverEnded(task.key), T0_MS) == ()

    def test_recovering_a_task_twice_is_a_mistake_of_the_caller(self) -> None:
        scheduler = recovering()
        recover(scheduler, "a")

        with pytest.raises(InvariantViolation, match="recovered twice"):
            recover(scheduler, "a")

    def test_recovering_into_a_pool_that_works_is_a_mistake_of_the_caller(self) -> None:
        scheduler = ready_scheduler()

        with pytest.raises(InvariantViolation, match="pool p works before acme/a is recovered"):
            recover(scheduler, "a")


@pytest.mark.req("ORCH-3075", partial="that shares survive a restart")
class TestShares:
    """What was served counts, as `pop` had counted it: costs are equal, weights are 3 and 1."""

    def backlog(self, *facts: tuple[str, str], charged: bool = True) -> Scheduler:
        """Each tenant waits with four tasks; `facts` are (tenant, served or gave way) before."""
        scheduler = recovering(WEIGHTED)
        for tenant in ("acme", "zeta"):
            recover(scheduler, *(f"w{number}" for number in range(4)), tenant=tenant)
        for number, (tenant, what) in enumerate(facts):
            task = make_task(f"e{number}", tenant=tenant, deadline_at_ms=T0_MS)
            admit(scheduler, task)
            if what == "served":
                scheduler.step(RecoverStarted(task.key, SET_KEY, charged), T0_MS)
            end = RecoverEnded(task.key, started=what != "left", gave_way=what == "gave way")
            scheduler.step(end, T0_MS)
        return scheduler

    def tenants(self, scheduler: Scheduler) -> str:
        return "".join(key[0] for key in order_of(scheduler))

    def test_without_a_past_weights_alone_decide(self) -> None:
        scheduler = self.backlog()

        assert self.tenants(scheduler) == "azaaazzz"

    def test_a_tenant_that_had_its_turn_does_not_get_it_again(self) -> None:
        scheduler = self.backlog(("zeta", "served"), ("acme", "served"))

        # In tasks, acme's tag is 1/3 and zeta's 1: acme is due at 1/3, 2/3 and, as the first, at 1.
        assert self.tenants(scheduler) == "aaazazzz"

    def test_a_start_that_was_not_told_is_charged_with_the_end(self) -> None:
        scheduler = self.backlog(("zeta", "started"), ("acme", "started"))

        assert self.tenants(scheduler) == "aaazazzz"

    def test_a_task_that_left_the_queue_unserved_costs_nothing(self) -> None:
        scheduler = self.backlog(("zeta", "left"), ("acme", "left"))

        assert self.tenants(scheduler) == "azaaazzz"

    def test_what_is_not_charged_costs_nothing(self) -> None:
        scheduler = self.backlog(("zeta", "served"), ("acme", "served"), charged=False)

        assert self.tenants(scheduler) == "azaaazzz"

    def test_an_empty_queue_holds_nothing_against_those_it_let_pass(self) -> None:
        scheduler = recovering(WEIGHTED)
        recover(scheduler, "r1", "r2", tenant="zeta")
        for name in ("r1", "r2"):
            scheduler.step(RecoverEnded(f"zeta/{name}", started=True), T0_MS)
        recover(scheduler, "w1", "w2", tenant="zeta")
        recover(scheduler, "w1", "w2")

        assert self.tenants(scheduler) == "zaaz"

    def test_a_task_that_gave_way_cost_its_class_a_turn(self) -> None:
        scheduler = recovering(make_pool())
        for number in range(3):
            admit(scheduler, make_task(f"b{number}", priority=Priority.BATCH))
        scheduler.step(RecoverEnded("acme/b2", gave_way=True), T0_MS)
        # Batch is due at a whole task, interactive at every eighth of one, and first at the same.
        recover(scheduler, *(f"i{number}" for number in range(10)))

        order = order_of(scheduler)

        assert order[:10] == [f"acme/i{number}" for number in range(9)] + ["acme/b0"]

    @pytest.mark.req("ORCH-3077", partial="that it holds after a restart")
    def test_a_tenant_with_as_many_running_as_it_may_have_is_passed_by(self) -> None:
        narrow = make_pool(tenants=(TenantPolicy("acme", max_concurrent=1),))
        scheduler = recovering(narrow)
        recover(scheduler, "r1", "w1")
        recover(scheduler, "w1", tenant="zeta")

        effects = scheduler.step(ReplicaReady(make_replica(slots=3)), T0_MS)

        assert [e.task_key for e in effects if isinstance(e, Dispatch)] == ["acme/r1", "zeta/w1"]


class TestBudgetsAndRates:
    def test_turns_are_not_charged_again(self) -> None:
        scheduler = recovering()
        scheduler.step(SessionRestored("s", T0_MS - 1000, turns=8), T0_MS)

        effects = admit(scheduler, make_task("a", session_key="s"))
        session = scheduler.session("s", T0_MS)

        assert effects == ()
        assert session is not None
        assert (session.turns, session.ttl_ms_remaining) == (8, 599_000)

    @pytest.mark.req("ORCH-3099", partial="that budgets survive a restart")
    def test_budgets_are_what_was_used_and_what_is_reserved_again(self) -> None:
        scheduler = recovering(limits=Limits(budget_tokens=1000))
        scheduler.step(SessionRestored("s", T0_MS, turns=1, tokens_used=300), T0_MS)
        admit(scheduler, make_task("a", session_key="s"))
        admit(scheduler, make_task("b", session_key="s"))

        scheduler.step(RecoverEnded("acme/b", tokens=30, started=True), T0_MS)

        session = scheduler.session("s", T0_MS)
        assert session is not None
        assert session.tokens_budget_remaining == 600

    def test_a_running_task_that_cannot_resume_pays_for_its_prompt(self) -> None:
        scheduler = recovering(limits=Limits(budget_tokens=1000))
        scheduler.step(SessionRestored("s", T0_MS, turns=1), T0_MS)
        admit(scheduler, make_task("r", session_key="s"))
        scheduler.step(RecoverStarted("acme/r", SET_KEY), T0_MS)

        scheduler.step(Cancel("acme/r"), T0_MS)

        session = scheduler.session("s", T0_MS)
        assert session is not None
        assert session.tokens_budget_remaining == 990

    @pytest.mark.req("ORCH-3077", "ORCH-3006", partial="that they hold after a restart")
    @pytest.mark.parametrize(
        ("spec", "reason"),
        [
            (make_pool(tenants=(TenantPolicy("acme", rps=2.0),)), Reason.QUOTA),
            (make_pool(rate_limit_rps=2.0), Reason.RATE_LIMIT),
        ],
    )
    def test_a_burst_that_was_used_up_stays_used_up(self, spec: PoolSpec, reason: Reason) -> None:
        scheduler = recovering(spec)
        for number in range(2):
            admit(scheduler, make_task(f"r{number}", arrived_ms=T0_MS - 400))
            scheduler.step(RecoverEnded(f"acme/r{number}", started=True), T0_MS)
        scheduler.step(ReplicaReady(make_replica()), T0_MS)

        (refused,) = submit(scheduler, "next")
        admitted = submit(scheduler, "later", T0_MS + 100)

        # Two a second: of the two that were taken 400 ms ago 0.8 are back.
        assert isinstance(refused, Rejected)
        assert refused.refusal.reason is reason
        assert refused.refusal.retry_after_ms == 100
        assert not isinstance(admitted[0], Rejected)
