"""Shares: what fades, what is forgotten, and what the weights promise."""

from __future__ import annotations

from math import exp

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
from orchestrator_core.events import (
    Cancel,
    PoolAdded,
    Recover,
    RecoverEnded,
    RecoverStarted,
    Tick,
)
from orchestrator_core.pool import TenantPolicy
from orchestrator_core.queueing.share import (
    MAX_FLOWS,
    WINDOW_MS,
    EntitledShares,
    ObservedShares,
    ShareView,
)
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Priority

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH


@pytest.mark.req("ORCH-3076", partial="what is observed, not that it follows the weights")
class TestObserved:
    def test_shares_are_parts_of_the_tokens_served(self) -> None:
        shares = ObservedShares()

        shares.serve("x", BATCH, 300, T0_MS)
        shares.serve("y", BATCH, 100, T0_MS)

        assert shares.of("x", BATCH, T0_MS) == pytest.approx(0.75)
        assert shares.of("y", BATCH, T0_MS) == pytest.approx(0.25)
        assert shares.of("x", INTERACTIVE, T0_MS) == 0.0

    def test_after_a_minute_tokens_count_for_37_percent(self) -> None:
        shares = ObservedShares()
        shares.serve("x", BATCH, 1000, T0_MS)

        shares.serve("y", BATCH, 1000, T0_MS + WINDOW_MS)

        expected = exp(-1) / (exp(-1) + 1)  # 0.269
        assert WINDOW_MS == 60_000
        assert shares.of("x", BATCH, T0_MS + WINDOW_MS) == pytest.approx(expected)

    def test_time_alone_changes_no_proportion_until_nothing_is_left(self) -> None:
        shares = ObservedShares()
        shares.serve("x", BATCH, 300, T0_MS)
        shares.serve("y", BATCH, 100, T0_MS)

        assert shares.of("x", BATCH, T0_MS + 3 * WINDOW_MS) == pytest.approx(0.75)
        assert shares.of("x", BATCH, T0_MS + 20 * WINDOW_MS) == 0.0

    def test_a_clock_that_steps_back_makes_nobody_younger(self) -> None:
        shares = ObservedShares()
        shares.serve("x", BATCH, 100, T0_MS + 3_600_000)
        shares.serve("y", BATCH, 100, T0_MS)

        at_once = shares.of("x", BATCH, T0_MS)
        shares.serve("y", BATCH, 100, T0_MS + WINDOW_MS)

        assert at_once == pytest.approx(0.5)
        fading = 100 * exp(-1)
        later = shares.of("x", BATCH, T0_MS + WINDOW_MS)
        assert later == pytest.approx(fading / (2 * fading + 100))

    def test_flows_that_have_faded_are_forgotten_when_others_come(self) -> None:
        shares = ObservedShares()
        for number in range(100):
            shares.serve(f"t{number}", BATCH, 100, T0_MS)

        shares.serve("new", BATCH, 100, T0_MS + 10 * WINDOW_MS)

        assert list(shares.all(T0_MS + 10 * WINDOW_MS)) == [("new", BATCH)]
        assert shares.of("new", BATCH, T0_MS + 10 * WINDOW_MS) == pytest.approx(1.0)

    def test_beyond_the_bound_who_was_served_longest_ago_goes_and_the_rest_is_still_one(
        self,
    ) -> None:
        shares = ObservedShares(max_flows=3)
        for tenant in ("a", "b", "c"):
            shares.serve(tenant, BATCH, 100, T0_MS)
        shares.serve("a", BATCH, 100, T0_MS)

        shares.serve("d", BATCH, 100, T0_MS)

        assert [tenant for tenant, _ in shares.all(T0_MS)] == ["c", "a", "d"]
        assert shares.of("a", BATCH, T0_MS) == pytest.approx(0.5)
        assert sum(shares.all(T0_MS).values()) == pytest.approx(1.0)

    def test_the_bound_holds_for_any_number_of_flows(self) -> None:
        shares = ObservedShares()

        for number in range(MAX_FLOWS + 50):
            shares.serve(f"t{number}", BATCH, 100, T0_MS + number)

        assert len(shares) == MAX_FLOWS == 4096


def test_who_leaves_as_often_as_it_came_has_no_work() -> None:
    shares = EntitledShares(lambda priority: 1, lambda tenant: 1)
    for _ in range(3):
        shares.enter("acme", Priority.BATCH)

    promised = []
    for _ in range(3):
        promised.append(shares.of("acme", Priority.BATCH))
        shares.leave("acme", Priority.BATCH)

    assert promised == [1.0, 1.0, 1.0]
    assert shares.of("acme", Priority.BATCH) == 0.0
    assert shares.all() == {}


@pytest.mark.req("ORCH-3076", partial="what is observed follows in the property test")
class TestOfTheScheduler:
    SPEC = make_pool(tenants=(TenantPolicy("x", weight=3), TenantPolicy("y", weight=1)))

    def test_a_task_counts_when_it_starts_and_not_while_it_waits(self) -> None:
        scheduler = ready_scheduler(self.SPEC)
        submit(scheduler, "runs", tenant="x", cost_tokens=100)
        submit(scheduler, "waits", tenant="y", cost_tokens=300)

        before = scheduler.shares(T0_MS)
        scheduler.step(finished("x/runs"), T0_MS)
        after = scheduler.shares(T0_MS)

        assert before == {
            ("x", INTERACTIVE): ShareView(1.0, 0.75),
            ("y", INTERACTIVE): ShareView(0.0, 0.25),
        }
        assert after[("y", INTERACTIVE)] == ShareView(0.75, 1.0)
        assert after[("x", INTERACTIVE)] == ShareView(0.25, 0.0)

    def test_entitled_is_the_class_weight_times_the_tenant_weight_among_those_with_work(
        self,
    ) -> None:
        scheduler = ready_scheduler(self.SPEC)
        submit(scheduler, "runs", tenant="x")
        submit(scheduler, "waits", tenant="x", priority=BATCH)
        submit(scheduler, "waits", tenant="y", priority=BATCH)

        waiting = scheduler.share_of("y/waits", T0_MS)
        scheduler.step(finished("x/runs"), T0_MS)
        alone = scheduler.share_of("y/waits", T0_MS)

        assert waiting == ShareView(0.0, 1 / 9 * 1 / 4)
        assert alone == ShareView(0.0, 1 / 4)

    def test_a_task_that_is_gone_has_no_share(self) -> None:
        scheduler = ready_scheduler(self.SPEC)
        submit(scheduler, "a", tenant="x")

        scheduler.step(Cancel("x/a"), T0_MS)

        assert scheduler.share_of("x/a", T0_MS) is None
        assert scheduler.shares(T0_MS) == {("x", INTERACTIVE): ShareView(1.0, 0.0)}

    def test_work_that_ends_without_having_run_is_no_work_any_more(self) -> None:
        scheduler = ready_scheduler(self.SPEC)
        submit(scheduler, "runs", tenant="x")
        submit(scheduler, "late", tenant="y", deadline_at_ms=T0_MS + 5)

        scheduler.step(Tick(), T0_MS + 6)

        assert scheduler.share_of("x/runs", T0_MS + 6) == ShareView(1.0, 1.0)

    def test_new_weights_hold_for_what_is_there(self) -> None:
        scheduler = ready_scheduler(self.SPEC)
        submit(scheduler, "runs", tenant="x")
        submit(scheduler, "waits", tenant="y")

        scheduler.step(PoolAdded(make_pool(tenants=(TenantPolicy("y", weight=4),))), T0_MS)

        assert scheduler.share_of("y/waits", T0_MS) == ShareView(0.0, 4 / 5)

    def test_what_was_served_before_a_restart_counts_from_when_it_was_asked_for(self) -> None:
        scheduler = Scheduler()
        scheduler.step(PoolAdded(self.SPEC), T0_MS)
        before = [
            make_task("ended", tenant="x", arrived_ms=T0_MS - 60_000),
            make_task("untold", tenant="y", arrived_ms=T0_MS - 60_000),
            make_task("runs", tenant="x", priority=BATCH),
            make_task("waits", tenant="y", priority=BATCH),
        ]
        for task in before:
            scheduler.step(Recover(task, "p", task.arrived_ms), T0_MS)
        for task in (before[0], before[2]):
            scheduler.step(RecoverStarted(task.key, SET_KEY), T0_MS)
        scheduler.step(RecoverEnded("x/ended", 100, started=True), T0_MS)
        scheduler.step(RecoverEnded("y/untold", 100, started=True), T0_MS)

        shares = scheduler.shares(T0_MS)

        # One of a minute ago counts 37 %; one that is told after a later one is taken to be later.
        assert shares[("x", INTERACTIVE)].observed == pytest.approx(exp(-1) / (2 + exp(-1)))
        assert shares[("x", BATCH)].observed == pytest.approx(1 / (2 + exp(-1)))
        assert shares[("y", INTERACTIVE)].observed == pytest.approx(1 / (2 + exp(-1)))
        assert shares[("y", BATCH)] == ShareView(0.0, 0.25)

    def test_over_several_pools_each_with_work_counts_alike(self) -> None:
        scheduler = ready_scheduler(self.SPEC, [make_replica(pool_id="p")])
        submit(scheduler, "one", tenant="x")
        other = make_pool("q", model_refs=frozenset({"other"}))
        scheduler.step(PoolAdded(other), T0_MS)

        one_pool = scheduler.shares(T0_MS)
        scheduler.step(PoolAdded(make_pool("idle", model_refs=frozenset({"third"}))), T0_MS)

        assert one_pool == scheduler.shares(T0_MS) == {("x", INTERACTIVE): ShareView(1.0, 1.0)}
