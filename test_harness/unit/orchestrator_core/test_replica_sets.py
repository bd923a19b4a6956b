"""Which replicas decode the same bytes, and what joins or parts them."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest

from harness_kit.core_builders import (
    SET_KEY,
    T0_MS,
    finished,
    make_pool,
    make_replica,
    ready_scheduler,
    submit,
)
from orchestrator_core.events import PoolAdded, ReplicaLost, ReplicaReady
from orchestrator_core.limits import Limits
from orchestrator_core.pool import SetKey
from orchestrator_core.replica_sets import MAX_SETS, ReplicaSet, ReplicaSetRegistry, set_id


def nobody() -> set[ReplicaSet]:
    return set()


def differing_keys() -> list[SetKey]:
    """The standard key and one that differs in each single field."""
    changes: list[dict[str, Any]] = [
        {f.name: 1 if f.name == "ctx" else "other"} for f in fields(SetKey)
    ]
    return [SET_KEY, *(replace(SET_KEY, **change) for change in changes)]


@pytest.mark.req("ORCH-3007", "OC-CORE-1032")
def test_any_difference_that_may_change_a_byte_makes_another_set() -> None:
    registry = ReplicaSetRegistry(Limits())

    groups = [registry.of(key, "p", nobody) for key in differing_keys()]

    assert len({id(group) for group in groups}) == len(fields(SetKey)) + 1
    assert len({set_id(key) for key in differing_keys()}) == len(fields(SetKey)) + 1


@pytest.mark.req("ORCH-3007")
def test_pools_with_equal_keys_form_one_set() -> None:
    registry = ReplicaSetRegistry(Limits())

    assert registry.of(SET_KEY, "p", nobody) is registry.of(replace(SET_KEY), "q", nobody)


def test_an_unknown_digest_is_equal_only_within_its_own_pool() -> None:
    registry = ReplicaSetRegistry(Limits())
    key = replace(SET_KEY, model_digest="")

    in_p = registry.of(key, "p", nobody)

    assert registry.of(key, "p", nobody) is in_p
    assert registry.of(key, "q", nobody) is not in_p
    assert registry.of(key, "q", nobody).id != in_p.id


def test_a_set_id_is_the_same_in_every_process() -> None:
    assert set_id(SET_KEY) == set_id(replace(SET_KEY))
    assert set_id(SET_KEY).startswith("llamacpp-")
    assert len(set_id(SET_KEY)) == len("llamacpp-") + 16


def test_sets_without_replicas_are_swept_and_those_in_use_are_kept() -> None:
    registry = ReplicaSetRegistry(Limits())
    used = registry.of(SET_KEY, "p", nobody)

    for version in range(2 * MAX_SETS):
        registry.of(replace(SET_KEY, engine_version=f"v{version}"), "p", lambda: {used})

    assert len(registry) <= MAX_SETS
    assert registry.of(SET_KEY, "p", nobody) is used


@pytest.mark.req("ORCH-3007")
def test_a_set_shows_the_replicas_and_slots_of_all_its_pools() -> None:
    scheduler = ready_scheduler(make_pool("p"), [make_replica("r0", "p", slots=3)])
    scheduler.step(PoolAdded(make_pool("q")), T0_MS)
    scheduler.step(ReplicaReady(make_replica("r0", "q", slots=1)), T0_MS)
    submit(scheduler, "a")

    (shown,) = scheduler.replica_sets()

    assert (shown.engine, shown.slots_total, shown.slots_free, shown.load) == (
        "llamacpp",
        4,
        3,
        0.25,
    )
    assert [(r.pool_id, r.id, r.slots_free) for r in shown.replicas] == [
        ("p", "r0", 2),
        ("q", "r0", 1),
    ]


def test_lost_replicas_are_not_shown() -> None:
    scheduler = ready_scheduler()

    submit(scheduler, "a")
    scheduler.step(ReplicaLost("p", "r0"), T0_MS)

    assert scheduler.replica_sets() == ()
    assert scheduler.step(finished("acme/a"), T0_MS) == ()
    assert "replica r0" not in scheduler.describe()
