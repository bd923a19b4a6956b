"""Which replica takes a task: what excludes one, and what prefers one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness_kit.core_builders import (
    SET_KEY,
    T0_MS,
    finished,
    make_pool,
    make_replica,
    make_task,
    picked,
    ready_scheduler,
    submit,
)
from orchestrator_core.effects import Dispatch, Effect
from orchestrator_core.events import Finished, PoolAdded, ReplicaLost, ReplicaReady
from orchestrator_core.limits import Limits
from orchestrator_core.placement.anti_affinity import TenantSpread
from orchestrator_core.placement.filter import serving, usable
from orchestrator_core.placement.pick import Wish
from orchestrator_core.placement.score import saved_ratio, score
from orchestrator_core.placement.topology import is_known, quietest
from orchestrator_core.pool import ReplicaSpec
from orchestrator_core.replica_sets import ReplicaSet
from orchestrator_core.replicas import Replica
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Determinism

BLUE = ReplicaSet("blue", SET_KEY, Limits())
GREEN = ReplicaSet("green", replace(SET_KEY, engine_version="b2"), Limits())


# 1024 tokens of prompt and 10 to decode: with the priors (1 and 20 ms a token) 1224 ms.
BLOCKS = tuple(range(16))
LONG = make_task(
    "long",
    determinism=Determinism.BEST_EFFORT,
    prompt_tokens=1024,
    cost_tokens=1034,
    prefix_blocks=BLOCKS,
)
BEST_EFFORT = frozenset({Determinism.BEST_EFFORT})


def labelled(name: str, slots: int = 4, **labels: str) -> ReplicaSpec:
    return replace(make_replica(name, slots=slots), labels=tuple(labels.items()))


def replica(
    name: str,
    leased: int = 0,
    slots: int = 4,
    group: ReplicaSet = BLUE,
    *,
    ready: bool = True,
    **labels: str,
) -> Replica:
    made = Replica(labelled(name, slots, **labels), group, epoch=1)
    made.leased, made.ready = leased, ready
    return made


@pytest.mark.req("OC-CORE-1010", "ORCH-3010")
def test_only_ready_replicas_with_a_free_slot_are_usable() -> None:
    free, full, lost = replica("a"), replica("b", leased=4), replica("c", ready=False)

    assert usable([free, full, lost], None) == [free]
    assert serving([free, full, lost], None) == [free, full]


@pytest.mark.req("ORCH-3046", partial="pins are tested with the scheduler")
def test_only_replicas_of_the_required_set_are_usable() -> None:
    blue, green = replica("a"), replica("b", group=GREEN)

    assert usable([blue, green], GREEN) == [green]


@pytest.mark.req("OC-CORE-1012", "ORCH-3008")
def test_the_least_loaded_replica_is_picked_by_share_not_by_number() -> None:
    half_of_two, quarter_of_eight = replica("a", 1, 2), replica("b", 2, 8)

    assert picked([half_of_two, quarter_of_eight], None) is quarter_of_eight


def test_equal_loads_go_to_the_smaller_id() -> None:
    first, second = replica("a", 1), replica("b", 1)

    assert picked([first, second], None) is first


@pytest.mark.req("OC-CORE-1013")
def test_the_session_stays_on_its_last_good_replica_while_that_has_a_slot() -> None:
    idle, warm = replica("a", 0), replica("b", 3)

    assert picked([idle, warm], None, preferred=warm) is warm
    warm.acquire()
    assert picked([idle, warm], None, preferred=warm) is idle


def test_the_replica_where_the_worker_died_is_the_second_choice() -> None:
    busy, suspect = replica("a", 3), replica("b", 0)

    assert picked([busy, suspect], None, avoid=suspect) is busy
    assert picked([suspect], None, avoid=suspect) is suspect


def test_nothing_usable_is_nothing_picked() -> None:
    assert picked([replica("a", 4)], None) is None


@pytest.mark.parametrize("leased", [0, 1, 4])
def test_scores_stay_between_zero_and_one(leased: int) -> None:
    one = replica("a", leased)

    assert 0.0 <= score(one, None) <= 0.5 <= score(one, one) <= 1.0


@pytest.mark.req("ORCH-3205")
class TestSavedPrefill:
    def test_it_is_the_share_of_the_tasks_time_that_reading_the_held_part_takes(self) -> None:
        warm = replica("a")
        warm.prefixes.remember(BLOCKS[:8])

        # 8 blocks of 64 tokens at 1 ms each, of 1224 ms.
        assert saved_ratio(warm, LONG) == pytest.approx(512 / 1224)
        assert saved_ratio(replica("b"), LONG) == 0.0

    def test_no_more_is_saved_than_the_prompt_has(self) -> None:
        warm = replica("a")
        warm.prefixes.remember(BLOCKS)
        short = make_task("t", prompt_tokens=100, cost_tokens=100, prefix_blocks=BLOCKS)

        assert saved_ratio(warm, short) == 1.0

    def test_the_holder_of_the_prefix_beats_an_idler_one_until_its_load_costs_more(self) -> None:
        idle, warm = replica("a", slots=8), replica("b", 3, slots=8)
        warm.prefixes.remember(BLOCKS[:8])  # saves 0.418 of the task's time
        wish = Wish(LONG, reuse=True)

        less_busy = picked([idle, warm], None, wish=wish)
        warm.acquire()
        much_busier = picked([idle, warm], None, wish=wish)

        assert (less_busy, much_busier) == (warm, idle)  # 3/8 < 0.418 < 4/8

    def test_the_longer_prefix_wins_among_equals(self) -> None:
        short, long = replica("a"), replica("b")
        short.prefixes.remember(BLOCKS[:4])
        long.prefixes.remember(BLOCKS[:5])

        assert picked([short, long], None, wish=Wish(LONG, reuse=True)) is long

    def test_a_task_that_is_decoded_cold_gains_nothing(self) -> None:
        idle, warm = replica("a"), replica("b")
        warm.prefixes.remember(BLOCKS)

        assert picked([idle, warm], None, wish=Wish(LONG, reuse=False)) is idle

    def test_the_sessions_replica_goes_before_a_shared_prefix(self) -> None:
        last, warm = replica("a", 3), replica("b", 0)
        warm.prefixes.remember(BLOCKS)

        assert picked([last, warm], None, last, wish=Wish(LONG, reuse=True)) is last

    @pytest.mark.parametrize("leased", [0, 1, 4])
    def test_scores_stay_between_zero_and_one_whatever_is_saved(self, leased: int) -> None:
        one = replica("a", leased)

        assert 0.0 <= score(one, None, 1.0) <= 0.5 <= score(one, one, 1.0) <= 1.0


@pytest.mark.req("ORCH-3008")
class TestAntiAffinity:
    def test_a_tenants_task_goes_where_the_fewest_of_its_tasks_run_whatever_the_load(self) -> None:
        mine, theirs = replica("a", 1, node="x"), replica("b", 3, node="y")
        spread = TenantSpread(["node"])
        spread.count("acme", mine, +1)
        spread.count("zeta", theirs, +1)

        assert picked([mine, theirs], None, wish=Wish(LONG, spread)) is theirs

    def test_a_node_counts_with_all_its_replicas(self) -> None:
        busy, idle, other = (replica(n, node=v) for n, v in (("a", "x"), ("b", "x"), ("c", "y")))
        spread = TenantSpread(["node"])
        spread.count("acme", busy, +1)

        assert spread.least_crowded("acme", [busy, idle, other]) == [other]
        assert spread.least_crowded("zeta", [busy, idle, other]) == [busy, idle, other]

    def test_the_first_label_decides_and_the_next_among_what_it_leaves(self) -> None:
        a = replica("a", zone="1", node="x")
        b = replica("b", zone="1", node="y")
        c = replica("c", zone="2", node="z")
        spread = TenantSpread(["zone", "node"])
        spread.count("acme", a, +1)
        spread.count("acme", c, +1)

        assert spread.least_crowded("acme", [a, b, c]) == [b]

    def test_it_never_keeps_a_slot_idle(self) -> None:
        crowded, full = replica("a", 1, node="x"), replica("b", 4, node="y")
        spread = TenantSpread(["node"])
        spread.count("acme", crowded, +1)

        assert picked([crowded, full], None, wish=Wish(LONG, spread)) is crowded

    def test_a_task_that_ended_is_not_counted(self) -> None:
        a, b = replica("a", node="x"), replica("b", node="y")
        spread = TenantSpread(["node"])
        spread.count("acme", a, +1)
        spread.count("acme", a, -1)

        assert spread.least_crowded("acme", [a, b]) == [a, b]

    def test_where_its_worker_died_a_task_goes_last_all_the_same(self) -> None:
        crowded, suspect = replica("a", 1, node="x"), replica("b", 0, node="y")
        spread = TenantSpread(["node"])
        spread.count("acme", crowded, +1)

        assert picked([crowded, suspect], None, avoid=suspect, wish=Wish(LONG, spread)) is crowded


@pytest.mark.req("ORCH-3013")
class TestTopology:
    def test_between_equals_the_quieter_numa_node_wins(self) -> None:
        beside, away = replica("b", numa="0"), replica("c", numa="1")
        everyone = [replica("a", 3, numa="0"), beside, away]

        assert picked(everyone, None, wish=Wish(LONG, neighbours=everyone)) is away

    def test_pcie_decides_where_numa_does_not(self) -> None:
        beside, away = replica("b", numa="0", pcie="0"), replica("c", numa="0", pcie="1")
        everyone = [replica("a", 1, numa="0", pcie="0"), beside, away]

        assert quietest([beside, away], everyone) is away

    def test_the_same_numa_number_of_another_node_is_another_domain(self) -> None:
        here, there = replica("b", node="x", numa="0"), replica("c", node="y", numa="0")
        everyone = [replica("a", 2, node="x", numa="0"), here, there]

        assert quietest([here, there], everyone) is there

    def test_it_never_outweighs_load(self) -> None:
        noisy, quiet = replica("b", 0, numa="0"), replica("c", 1, numa="1")
        everyone = [replica("a", 4, numa="0"), noisy, quiet]

        assert picked(everyone, None, wish=Wish(LONG, neighbours=everyone)) is noisy

    def test_without_labels_nothing_is_known_and_the_smaller_id_wins(self) -> None:
        first, second = replica("a"), replica("b", node="x")

        assert not is_known([first, second])
        assert is_known([first, replica("c", pcie="0")])
        assert quietest([first, second], [first, second]) is first


def placed(effects: list[Effect]) -> str:
    """Where the one dispatched task went."""
    (replica_id,) = [e.replica_id for e in effects if isinstance(e, Dispatch)]
    return replica_id


def read(scheduler: Scheduler, name: str, **changes: Any) -> str:
    """A long best-effort task, from submission to its end; returns where it ran."""
    where = start(scheduler, name, **changes)
    scheduler.step(Finished(f"acme/{name}", 1024, 10, 1024, 200), T0_MS)
    return where


def start(scheduler: Scheduler, name: str, **changes: Any) -> str:
    fields: dict[str, Any] = {
        "determinism": Determinism.BEST_EFFORT,
        "prompt_tokens": 1024,
        "cost_tokens": 1034,
        "prefix_blocks": BLOCKS,
    }
    return placed(submit(scheduler, name, **(fields | changes)))


def warm_second(scheduler: Scheduler) -> None:
    """r1, which nobody would choose for its id, has read BLOCKS."""
    assert placed(submit(scheduler, "first")) == "r0"
    assert read(scheduler, "reader") == "r1"
    scheduler.step(finished("acme/first"), T0_MS)


TWO = (make_replica("r0", slots=4), make_replica("r1", slots=4))


@pytest.mark.req("ORCH-3205")
class TestPoolsWithPrefixReuse:
    def test_what_a_replica_has_read_draws_tasks_that_begin_alike(self) -> None:
        scheduler = ready_scheduler(make_pool(prefix_reuse=BEST_EFFORT), TWO)
        warm_second(scheduler)

        assert read(scheduler, "alike") == "r1"
        assert read(scheduler, "other", prefix_blocks=(77, 78)) == "r0"

    @pytest.mark.parametrize(
        "changes",
        [{"determinism": Determinism.STRICT}, {"kv_hint": "cold"}, {"prefix_blocks": ()}],
        ids=["strict", "cold", "unknown"],
    )
    def test_a_task_that_reuses_nothing_goes_by_load(self, changes: dict[str, Any]) -> None:
        scheduler = ready_scheduler(make_pool(prefix_reuse=BEST_EFFORT), TWO)
        warm_second(scheduler)

        assert start(scheduler, "next", **changes) == "r0"

    def test_strict_tasks_take_part_where_the_pool_says_that_it_changes_no_byte(self) -> None:
        scheduler = ready_scheduler(make_pool(prefix_reuse=frozenset(Determinism)), TWO)
        warm_second(scheduler)

        assert start(scheduler, "next", determinism=Determinism.STRICT) == "r1"

    def test_without_it_only_load_counts(self) -> None:
        scheduler = ready_scheduler(make_pool(), TWO)
        warm_second(scheduler)

        assert start(scheduler, "next") == "r0"

    def test_a_replica_that_comes_back_has_read_nothing(self) -> None:
        scheduler = ready_scheduler(make_pool(prefix_reuse=BEST_EFFORT), TWO)
        warm_second(scheduler)

        scheduler.step(ReplicaLost("p", "r1"), T0_MS)
        scheduler.step(ReplicaReady(TWO[1]), T0_MS)

        assert start(scheduler, "next") == "r0"

    def test_a_warm_prefill_teaches_nothing_of_the_speed_of_a_cold_one(self) -> None:
        scheduler = ready_scheduler(make_pool(prefix_reuse=BEST_EFFORT))
        for number in range(3):
            read(scheduler, f"cold{number}")  # 1 ms per token of prompt
        for number in range(3):
            start(scheduler, f"warm{number}")
            warm = Finished(f"acme/warm{number}", 1024, 10, 30, 200, 0, True, cached_tokens=1023)
            scheduler.step(warm, T0_MS)

        start(scheduler, "running")
        submit(scheduler, "waiting")
        # Still 1024 tokens at 1 ms and 10 at 20 ms.
        assert scheduler.predicted_start_ms("acme/waiting", T0_MS) == 1224


@pytest.mark.req("ORCH-3008")
class TestPoolsWithAntiAffinity:
    NODES = (labelled("r0", node="x"), labelled("r1", node="x"), labelled("r2", node="y"))

    def test_a_tenants_tasks_alternate_between_nodes_and_fill_what_is_left(self) -> None:
        nodes = (labelled("r0", 2, node="x"), labelled("r1", 2, node="x"), labelled("r2", node="y"))
        scheduler = ready_scheduler(make_pool(anti_affinity=("node",)), nodes)

        where = [placed(submit(scheduler, f"t{n}")) for n in range(8)]

        assert where == ["r0", "r2", "r1", "r2", "r0", "r2", "r1", "r2"]

    def test_an_ended_task_makes_its_node_eligible_again(self) -> None:
        scheduler = ready_scheduler(make_pool(anti_affinity=("node",)), self.NODES)
        submit(scheduler, "a")
        submit(scheduler, "b")
        scheduler.step(finished("acme/b"), T0_MS)

        assert placed(submit(scheduler, "c")) == "r2"

    def test_a_pool_that_gets_it_later_counts_what_already_runs(self) -> None:
        scheduler = ready_scheduler(make_pool(), self.NODES)
        submit(scheduler, "a")

        scheduler.step(PoolAdded(make_pool(anti_affinity=("node",))), T0_MS)

        assert placed(submit(scheduler, "b")) == "r2"

    def test_labels_may_change_under_a_running_task(self) -> None:
        scheduler = ready_scheduler(make_pool(anti_affinity=("node",)), self.NODES[1:])
        submit(scheduler, "a")  # on r1, node x

        scheduler.step(ReplicaReady(labelled("r1", node="z")), T0_MS)
        scheduler.step(ReplicaReady(labelled("r0", node="x")), T0_MS)

        assert placed(submit(scheduler, "b")) == "r0"
        scheduler.step(finished("acme/a"), T0_MS)
        assert placed(submit(scheduler, "c")) == "r1"


@pytest.mark.req("ORCH-3013")
def test_a_pool_whose_topology_is_known_keeps_busy_neighbours_apart() -> None:
    spread_over = (labelled("r0", numa="0"), labelled("r1", numa="0"), labelled("r2", numa="1"))
    scheduler = ready_scheduler(make_pool(), spread_over)

    assert [placed(submit(scheduler, name)) for name in "abc"] == ["r0", "r2", "r1"]
