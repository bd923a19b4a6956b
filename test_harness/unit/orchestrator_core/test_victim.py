"""Who goes from a full queue: the plain rule in a burst, expected start under lasting overload."""

from __future__ import annotations

from typing import Any

import pytest

from harness_kit.core_builders import T0_MS, finished, make_pool, ready_scheduler, submit
from orchestrator_core.effects import Admitted, Ended
from orchestrator_core.events import Finished, Tick
from orchestrator_core.pool import FullPolicy, PreemptionMode, PreemptionPolicy, TenantPolicy
from orchestrator_core.queueing.pool_queue import FLOWS_COMPARED, LASTING_MS
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Priority

BATCH = Priority.BATCH
FAR_MS = T0_MS + 10_000_000


def overloaded(policy: FullPolicy = FullPolicy.DROP_LRU, **changes: Any) -> Scheduler:
    """One slot, taken; a queue of 4."""
    spec = make_pool(
        capacity=4, policy=policy, preemption=PreemptionPolicy(PreemptionMode.OFF), **changes
    )
    scheduler = ready_scheduler(spec)
    submit(scheduler, "runs", deadline_at_ms=FAR_MS)
    return scheduler


def fill(scheduler: Scheduler, *names: str, **changes: Any) -> None:
    """Waiting tasks of the tenants in their names, `TENANT/NAME`, in this order."""
    for name in names:
        tenant, _, short = name.partition("/")
        submit(scheduler, short, tenant=tenant, **({"deadline_at_ms": FAR_MS} | changes))


def pass_time(scheduler: Scheduler, until_ms: int) -> None:
    """The watchdog looks four times a second."""
    for now_ms in range(T0_MS, until_ms, 250):
        scheduler.step(Tick(), now_ms)
    scheduler.step(Tick(), until_ms)


def dropped(scheduler: Scheduler, now_ms: int, name: str = "new", **changes: Any) -> list[str]:
    effects = submit(
        scheduler, name, now_ms, **({"tenant": "z", "deadline_at_ms": FAR_MS} | changes)
    )
    assert any(isinstance(effect, Admitted) for effect in effects), effects
    return [effect.task_key for effect in effects if isinstance(effect, Ended)]


@pytest.mark.req("ORCH-3080", "OC-CORE-1002", partial="one rule of it")
class TestWhenOverloadLasts:
    def test_a_burst_drops_the_longest_waiting_as_pinned(self) -> None:
        scheduler = overloaded()
        fill(scheduler, "x/1", "x/2", "y/1", "y/2")
        pass_time(scheduler, T0_MS + LASTING_MS - 1)

        assert dropped(scheduler, T0_MS + LASTING_MS - 1) == ["x/1"]

    def test_after_ten_seconds_the_one_that_would_start_last_goes(self) -> None:
        scheduler = overloaded()
        fill(scheduler, "x/1", "x/2", "x/3", "y/1")
        pass_time(scheduler, T0_MS + LASTING_MS)

        assert LASTING_MS == 10_000
        # x/1, y/1, x/2, x/3 is the fair order.
        assert dropped(scheduler, T0_MS + LASTING_MS) == ["x/3"]

    def test_a_tenant_of_less_weight_starts_later(self) -> None:
        scheduler = overloaded(tenants=(TenantPolicy("x", weight=9),))
        fill(scheduler, "x/1", "x/2", "y/1", "y/2")
        pass_time(scheduler, T0_MS + LASTING_MS)

        assert dropped(scheduler, T0_MS + LASTING_MS) == ["y/2"]

    def test_who_will_be_late_anyway_goes_first(self) -> None:
        scheduler = overloaded()
        for number in range(3):  # a task takes a second
            scheduler.step(finished(f"acme/runs{number or ''}"), T0_MS)
            submit(scheduler, f"runs{number + 1}", deadline_at_ms=FAR_MS)
        now_ms = T0_MS + LASTING_MS
        fill(scheduler, "x/1", "x/2", "x/3")
        # Second in the fair order, and the running one is overdue: two seconds are not enough.
        fill(scheduler, "y/late", deadline_at_ms=now_ms + 2_000)
        pass_time(scheduler, now_ms)

        assert dropped(scheduler, now_ms, tenant="x") == ["y/late"]

    def test_the_lowest_priority_goes_first_even_so(self) -> None:
        scheduler = overloaded()
        fill(scheduler, "x/1", "x/2")
        fill(scheduler, "y/batch1", "y/batch2", priority=BATCH)
        pass_time(scheduler, T0_MS + LASTING_MS)

        assert dropped(scheduler, T0_MS + LASTING_MS) == ["y/batch2"]

    def test_shedding_goes_by_expected_start_as_well(self) -> None:
        scheduler = overloaded(FullPolicy.SHED_LOW_PRIORITY)
        fill(scheduler, "x/1", "x/2", "x/3", "y/1", priority=BATCH)
        burst = ready_scheduler(scheduler._pools["p"].spec)
        submit(burst, "runs", deadline_at_ms=FAR_MS)
        fill(burst, "x/1", "x/2", "x/3", "y/1", priority=BATCH)
        pass_time(scheduler, T0_MS + LASTING_MS)

        assert dropped(burst, T0_MS) == ["y/1"]  # the most recent
        assert dropped(scheduler, T0_MS + LASTING_MS) == ["x/3"]

    def test_a_queue_that_has_drained_meanwhile_is_no_lasting_overload(self) -> None:
        scheduler = overloaded()
        fill(scheduler, "x/1", "x/2", "y/1", "y/2")
        pass_time(scheduler, T0_MS + LASTING_MS)
        for key in ("acme/runs", "x/1", "y/1"):  # 2 of 4 wait
            scheduler.step(Finished(key, 10, 90, 1, 1), T0_MS + LASTING_MS)
        scheduler.step(Tick(), T0_MS + LASTING_MS)
        fill(scheduler, "x/3", "x/4", "x/5")

        assert dropped(scheduler, T0_MS + LASTING_MS) == ["y/2"]

    def test_a_slot_that_frees_and_fills_again_is(self) -> None:
        scheduler = overloaded()
        fill(scheduler, "x/1", "x/2", "x/3", "y/1")
        pass_time(scheduler, T0_MS + LASTING_MS)
        scheduler.step(Finished("acme/runs", 10, 90, 1, 1), T0_MS + LASTING_MS)
        scheduler.step(Tick(), T0_MS + LASTING_MS)
        submit(scheduler, "2", T0_MS + LASTING_MS, tenant="y", deadline_at_ms=FAR_MS)

        # y/1, x/2, y/2, x/3 is the fair order.
        assert dropped(scheduler, T0_MS + LASTING_MS) == ["x/3"]

    def test_a_full_class_counts_for_itself(self) -> None:
        scheduler = overloaded(interactive=2)
        fill(scheduler, "x/1", "x/2")
        pass_time(scheduler, T0_MS + LASTING_MS)

        assert dropped(scheduler, T0_MS + LASTING_MS, tenant="y") == ["x/2"]

    def test_of_very_many_flows_only_a_few_are_compared(self) -> None:
        spec = make_pool(capacity=1_000, interactive=1_000, policy=FullPolicy.DROP_LRU)
        scheduler = ready_scheduler(spec)
        submit(scheduler, "runs", deadline_at_ms=FAR_MS)
        for number in range(500):
            fill(scheduler, f"t{number}/1", f"t{number}/2")

        contenders = scheduler._pools["p"].queue.contenders(Priority.INTERACTIVE)

        names = {task.tenant for task, _ in contenders}
        assert names == {"t0", "t1", "t498", "t499"}
        assert len(contenders) == 2 * len(names) <= 2 * FLOWS_COMPARED
