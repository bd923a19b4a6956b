from __future__ import annotations

import pytest

from harness_kit.core_builders import (
    T0_MS,
    finished,
    make_pool,
    make_replica,
    ready_scheduler,
    submit,
)
from orchestrator_core.effects import Admitted, Dispatch, Effect, Preempt
from orchestrator_core.events import (
    Cancel,
    ReplicaLost,
    ReplicaReady,
    SlotsObserved,
)
from orchestrator_core.pool import PreemptionMode, PreemptionPolicy
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Priority


def look(scheduler: Scheduler, busy: int, before: int = 0, replica_id: str = "r0") -> list[Effect]:
    return list(scheduler.step(SlotsObserved("p", replica_id, busy, before), T0_MS))


def occupy(scheduler: Scheduler, busy: int, replica_id: str = "r0") -> None:
    """Two looks in a row show it."""
    before = scheduler.leased("p", replica_id)
    for _ in range(2):
        look(scheduler, busy, before, replica_id)


def started(effects: list[Effect]) -> list[tuple[str, str]]:
    return [(e.task_key, e.replica_id) for e in effects if isinstance(e, Dispatch)]


def promised_ms(effects: list[Effect]) -> list[int]:
    return [e.predicted_start_ms for e in effects if isinstance(e, Admitted)]


@pytest.mark.req("ORCH-3019")
class TestWhatCountsAsForeign:
    def test_busy_slots_beyond_our_leases_are_not_offered(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=4)])
        submit(scheduler, "ours")

        occupy(scheduler, busy=3)

        assert (scheduler.leased("p", "r0"), scheduler.foreign("p", "r0")) == (1, 2)
        assert scheduler.slots_free("p") == 1
        (shown,) = scheduler.replica_sets()
        assert (shown.slots_total, shown.slots_free, shown.load) == (4, 1, 0.75)
        assert "r0 ready 1+2/4" in scheduler.describe()

    def test_our_own_busy_slots_are_not_counted_twice(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=4)])
        submit(scheduler, "ours")

        occupy(scheduler, busy=1)

        assert scheduler.slots_free("p") == 3

    def test_one_look_alone_takes_nothing_away(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=4)])

        for busy in (3, 0, 3, 0):
            look(scheduler, busy)

            assert scheduler.slots_free("p") == 4

    def test_of_two_looks_the_smaller_counts(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=4)])

        offered = []
        for busy in (3, 1, 2, 4, 0):
            look(scheduler, busy)
            offered.append(scheduler.slots_free("p"))

        assert offered == [4, 3, 3, 2, 4]

    def test_a_task_that_ended_while_the_answer_was_on_its_way_is_ours(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=2)])
        submit(scheduler, "ours")
        scheduler.step(finished("acme/ours"), T0_MS)

        for _ in range(2):
            look(scheduler, busy=1, before=1)

        assert scheduler.slots_free("p") == 2

    def test_a_task_that_began_while_the_answer_was_on_its_way_is_ours(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=2)])
        submit(scheduler, "ours")

        for _ in range(2):
            look(scheduler, busy=1, before=0)

        assert scheduler.slots_free("p") == 1

    @pytest.mark.parametrize("busy", [4, 9])
    def test_an_engine_busier_than_it_has_slots_offers_none(self, busy: int) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=4)])

        occupy(scheduler, busy)

        assert scheduler.slots_free("p") == 0

    def test_a_lost_replica_comes_back_with_all_its_slots(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=2)])
        submit(scheduler, "ours")
        occupy(scheduler, busy=2)
        scheduler.step(ReplicaLost("p", "r0"), T0_MS)

        scheduler.step(ReplicaReady(make_replica(slots=2)), T0_MS)
        look(scheduler, busy=2, before=1)  # the first look at the new process

        assert (scheduler.leased("p", "r0"), scheduler.slots_free("p")) == (1, 1)

    def test_answers_about_what_is_gone_change_nothing(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=2)])
        scheduler.step(ReplicaLost("p", "r0"), T0_MS)

        for pool_id, replica_id in (("p", "r0"), ("gone", "r0")):
            for _ in range(2):
                assert scheduler.step(SlotsObserved(pool_id, replica_id, 2, 0), T0_MS) == ()

        assert scheduler.replica_sets() == ()


@pytest.mark.req("ORCH-3019")
class TestPlacement:
    def test_a_task_goes_where_a_slot_is_really_free(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica("r0"), make_replica("r1")])
        occupy(scheduler, busy=1)

        first, second = submit(scheduler, "a"), submit(scheduler, "b")

        assert (started(first), started(second)) == ([("acme/a", "r1")], [])

    def test_foreign_work_is_load_like_our_own(self) -> None:
        replicas = [make_replica("r0", slots=4), make_replica("r1", slots=4)]
        scheduler = ready_scheduler(replicas=replicas)
        occupy(scheduler, busy=2)

        for name in ("a", "b"):
            assert started(submit(scheduler, name)) == [(f"acme/{name}", "r1")]
        submit(scheduler, "c")

        assert (scheduler.leased("p", "r0"), scheduler.leased("p", "r1")) == (1, 2)

    def test_what_waits_starts_when_the_engine_is_seen_free(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=2)])
        occupy(scheduler, busy=2)
        submit(scheduler, "a")
        submit(scheduler, "b")
        assert scheduler.waiting_keys("p") == ("acme/a", "acme/b")

        one, both = look(scheduler, busy=1), look(scheduler, busy=1, before=1)

        assert (started(one), started(both)) == ([("acme/a", "r0")], [("acme/b", "r0")])

    def test_the_end_of_our_task_frees_one_slot_and_not_the_foreign_ones(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=2)])
        submit(scheduler, "ours")
        occupy(scheduler, busy=2)
        submit(scheduler, "a")
        submit(scheduler, "b")

        effects = list(scheduler.step(Cancel("acme/ours"), T0_MS))

        assert started(effects) == [("acme/a", "r0")]
        assert scheduler.waiting_keys("p") == ("acme/b",)

    @pytest.mark.parametrize(("busy", "interrupted"), [(2, 1), (3, 0)])
    def test_an_urgent_task_interrupts_nothing_whose_end_would_free_no_slot(
        self, busy: int, interrupted: int
    ) -> None:
        policy = PreemptionPolicy(PreemptionMode.HARD)
        scheduler = ready_scheduler(make_pool(preemption=policy), [make_replica(slots=2)])
        for name in ("x", "y"):
            submit(scheduler, name, priority=Priority.BATCH, cost_tokens=2000)
        occupy(scheduler, busy)  # the third would be one more than it said it has

        effects = submit(scheduler, "urgent", T0_MS + 1, deadline_at_ms=T0_MS + 2500)

        assert sum(isinstance(effect, Preempt) for effect in effects) == interrupted
        assert len(started(effects)) == interrupted


@pytest.mark.req("ORCH-3019")
class TestPromise:
    def test_a_foreign_slot_is_expected_to_last_until_the_next_look_at_least(self) -> None:
        scheduler = ready_scheduler()
        occupy(scheduler, busy=1)

        assert promised_ms(submit(scheduler, "short", cost_tokens=11)) == [1000]

    def test_a_foreign_slot_is_expected_to_last_as_long_as_an_average_task(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "known")
        scheduler.step(finished("acme/known", 1000, 9000), T0_MS)  # ten seconds for such a task
        occupy(scheduler, busy=1)
        submit(scheduler, "a")

        assert promised_ms(submit(scheduler, "b")) == [20_000]

    def test_a_slot_of_ours_that_ends_earlier_is_what_is_promised(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica(slots=2)])
        submit(scheduler, "known")
        scheduler.step(finished("acme/known", 20, 180), T0_MS)  # 0.2 seconds for such a task
        submit(scheduler, "ours")
        occupy(scheduler, busy=2)

        assert promised_ms(submit(scheduler, "a")) == [200]
