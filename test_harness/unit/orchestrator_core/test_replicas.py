"""Slots and their leases, of replicas that come, go and come back."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness_kit.core_builders import SET_KEY, make_replica
from orchestrator_core.errors import InvariantViolation
from orchestrator_core.limits import Limits
from orchestrator_core.replica_sets import ReplicaSet
from orchestrator_core.replicas import Replica, ReplicaTable

BLUE = ReplicaSet("blue", SET_KEY, Limits())
GREEN = ReplicaSet("green", replace(SET_KEY, engine_version="b2"), Limits())


def table(**replicas: ReplicaSet) -> ReplicaTable:
    made = ReplicaTable()
    for epoch, (name, group) in enumerate(replicas.items()):
        made.announce(make_replica(name), group, epoch)
    made.repin([])
    return made


def known(replicas: ReplicaTable, name: str) -> Replica:
    replica = replicas.get(name)
    assert replica is not None
    return replica


@pytest.mark.req("ORCH-3019")
def test_a_slot_is_leased_once_and_released_once() -> None:
    replica = known(table(a=BLUE), "a")

    replica.acquire()
    with pytest.raises(InvariantViolation, match="p/a"):
        replica.acquire()
    replica.release()
    with pytest.raises(InvariantViolation, match="twice"):
        replica.release()

    assert replica.slots_free == 1


def test_a_lost_replica_offers_no_slots_and_is_forgotten_with_its_last_task() -> None:
    replicas = table(a=BLUE)
    replica = known(replicas, "a")
    replica.acquire()

    replicas.lose("a")

    assert replica.slots_free == 0
    assert replicas.get("a") is replica
    replica.release()
    replicas.forget_if_gone(replica)
    assert replicas.get("a") is None


def test_a_replica_that_comes_back_still_owes_the_slots_of_unreported_tasks() -> None:
    replicas = table(a=BLUE)
    replica = known(replicas, "a")
    replica.acquire()
    replicas.lose("a")

    replicas.announce(make_replica("a", slots=2), BLUE, epoch=7)

    assert known(replicas, "a") is replica
    assert (replica.slots_free, replica.epoch) == (1, 7)


def test_announcing_a_ready_replica_again_keeps_its_epoch() -> None:
    replicas = table(a=BLUE)

    replicas.announce(make_replica("a", slots=3), BLUE, epoch=9)

    assert (known(replicas, "a").epoch, known(replicas, "a").slots_free) == (0, 3)


@pytest.mark.req("OC-CORE-1031")
class TestPin:
    def test_the_set_with_most_replicas_is_pinned_first(self) -> None:
        assert table(a=BLUE, b=GREEN, c=GREEN).pinned is GREEN

    def test_another_set_does_not_move_the_pin(self) -> None:
        replicas = table(a=BLUE)

        replicas.announce(make_replica("b"), GREEN, 1)
        replicas.announce(make_replica("c"), GREEN, 2)
        replicas.repin([])

        assert replicas.pinned is BLUE

    def test_the_pin_stays_while_work_of_its_set_is_left(self) -> None:
        replicas = table(a=BLUE, b=GREEN)
        replicas.pinned = BLUE
        replicas.lose("a")

        replicas.repin([BLUE])
        while_work_is_left = replicas.pinned
        replicas.repin([])

        assert while_work_is_left is BLUE
        assert replicas.pinned is GREEN

    def test_the_pin_waits_when_nothing_else_is_ready(self) -> None:
        replicas = table(a=BLUE)
        replicas.lose("a")

        replicas.repin([])

        assert replicas.pinned is BLUE
