from __future__ import annotations

from dataclasses import replace

import pytest

from harness_kit.core_builders import SET_KEY, make_replica
from orchestrator_core.limits import Limits
from orchestrator_core.placement.filter import serving, usable
from orchestrator_core.placement.pick import pick
from orchestrator_core.placement.score import score
from orchestrator_core.replica_sets import ReplicaSet
from orchestrator_core.replicas import Replica

BLUE = ReplicaSet("blue", SET_KEY, Limits())
GREEN = ReplicaSet("green", replace(SET_KEY, engine_version="b2"), Limits())


def replica(
    name: str, leased: int = 0, slots: int = 4, group: ReplicaSet = BLUE, *, ready: bool = True
) -> Replica:
    made = Replica(make_replica(name, slots=slots), group, epoch=1)
    made.leased, made.ready = leased, ready
    return made


@pytest.mark.req("OC-CORE-1010", "ORCH-3010")
def test_only_ready_replicas_with_a_free_slot_are_usable() -> None:
    free, full, lost = replica("a"), replica("b", leased=4), replica("c", ready=False)

    assert usable([free, full, lost], None) == [free]
    assert serving([free, full, lost], None) == [free, full]


@pytest.mark.req("ORCH-3046", partial="the filter; pins are tested with the scheduler")
def test_only_replicas_of_the_required_set_are_usable() -> None:
    blue, green = replica("a"), replica("b", group=GREEN)

    assert usable([blue, green], GREEN) == [green]


@pytest.mark.req(
    "OC-CORE-1012", "ORCH-3008", partial="labels for anti-affinity are not configurable"
)
def test_the_least_loaded_replica_is_picked_by_share_not_by_number() -> None:
    half_of_two, quarter_of_eight = replica("a", 1, 2), replica("b", 2, 8)

    assert pick([half_of_two, quarter_of_eight], None) is quarter_of_eight


def test_equal_loads_go_to_the_smaller_id() -> None:
    first, second = replica("a", 1), replica("b", 1)

    assert pick([first, second], None) is first


@pytest.mark.req("OC-CORE-1013")
def test_the_session_stays_on_its_last_good_replica_while_that_has_a_slot() -> None:
    idle, warm = replica("a", 0), replica("b", 3)

    assert pick([idle, warm], None, preferred=warm) is warm
    warm.acquire()
    assert pick([idle, warm], None, preferred=warm) is idle


def test_the_replica_where_the_worker_died_is_the_second_choice() -> None:
    busy, suspect = replica("a", 3), replica("b", 0)

    assert pick([busy, suspect], None, avoid=suspect) is busy
    assert pick([suspect], None, avoid=suspect) is suspect


def test_nothing_usable_is_nothing_picked() -> None:
    assert pick([replica("a", 4)], None) is None


@pytest.mark.parametrize("leased", [0, 1, 4])
def test_scores_stay_between_zero_and_one(leased: int) -> None:
    one = replica("a", leased)

    assert 0.0 <= score(one, None) <= 0.5 <= score(one, one) <= 1.0
