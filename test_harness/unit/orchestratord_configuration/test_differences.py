"""What differs between two configurations, and what applying it takes."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

import orch_config
from orchestratord.configuration.differences import ABSENT, Difference, Effect, differences

POOL: dict[str, Any] = {
    "id": "p0",
    "engine": "llamacpp",
    "model": "builtin:smollm2",
    "ctx": 512,
    "replicas": [{"id": "r0", "url": "http://127.0.0.1:9000"}],
}


def config(*pools: dict[str, Any], **sections: Any) -> orch_config.Config:
    return msgspec.convert({"pools": list(pools), **sections}, orch_config.Config)


def only(before: orch_config.Config, after: orch_config.Config) -> Difference:
    (found,) = differences(before, after)
    return found


def test_equal_configurations_have_no_differences() -> None:
    assert differences(config(POOL), config(dict(POOL))) == ()


def test_a_default_that_is_written_out_is_no_difference() -> None:
    written = POOL | {"queue": {"capacity": 256}}

    assert differences(config(POOL), config(written)) == ()


@pytest.mark.req("ORCH-3031", partial="that it is applied so")
@pytest.mark.parametrize(
    ("changed", "key", "effect"),
    [
        ({"queue": {"capacity": 7}}, "pools[p0].queue.capacity", Effect.LIVE),
        ({"timeouts": {"wall_ms": 7}}, "pools[p0].timeouts.wall_ms", Effect.LIVE),
        ({"preemption": {"mode": "off"}}, "pools[p0].preemption.mode", Effect.LIVE),
        ({"ctx": 1024}, "pools[p0].ctx", Effect.REPLACE),
        ({"model": "file:/m.gguf"}, "pools[p0].model", Effect.REPLACE),
        ({"devices": [1]}, "pools[p0].devices", Effect.REPLACE),
        (
            {"replicas": [{"id": "r0", "url": "http://127.0.0.1:9001"}]},
            "pools[p0].replicas[r0].url",
            Effect.REPLACE,
        ),
    ],
)
def test_a_key_of_a_pool_is_live_or_replaces_its_engines(
    changed: dict[str, Any], key: str, effect: Effect
) -> None:
    found = only(config(POOL), config(POOL | changed))

    assert (found.key, found.effect) == (key, effect)


@pytest.mark.parametrize(
    ("section", "key", "effect"),
    [
        ({"sessions": {"ttl_ms": 7}}, "sessions.ttl_ms", Effect.LIVE),
        ({"server": {"metrics_public": True}}, "server.metrics_public", Effect.LIVE),
        ({"server": {"port": 7}}, "server.port", Effect.RESTART),
        ({"journal": {"sync": "off"}}, "journal.sync", Effect.RESTART),
        ({"auth": {"enabled": False}}, "auth.enabled", Effect.RESTART),
    ],
)
def test_what_cannot_change_in_a_running_service_needs_a_restart(
    section: dict[str, Any], key: str, effect: Effect
) -> None:
    found = only(config(POOL), config(POOL, **section))

    assert (found.key, found.effect) == (key, effect)


def test_pools_come_and_go_by_their_ids() -> None:
    other = POOL | {"id": "p1"}

    found = differences(config(POOL), config(other))

    assert [(d.key, d.effect) for d in found] == [
        ("pools[p1]", Effect.ADD),
        ("pools[p0]", Effect.REMOVE),
    ]
    assert (found[0].before, found[1].after) == (ABSENT, ABSENT)


def test_another_order_of_pools_changes_nothing_that_runs() -> None:
    other = POOL | {"id": "p1"}

    found = only(config(POOL, other), config(other, POOL))

    assert (found.key, found.effect) == ("pools", Effect.LIVE)


def test_a_changed_weight_names_tenant_and_values() -> None:
    def weighted(weight: int) -> orch_config.Config:
        tenants = [{"id": "acme", "weight": weight}]
        return config(POOL | {"admission": {"fairness": {"tenants": tenants}}})

    found = only(weighted(1), weighted(3))

    assert found == Difference(
        "pools[p0].admission.fairness.tenants[acme].weight", 1, 3, Effect.LIVE
    )


def test_a_new_key_of_an_api_user_is_live() -> None:
    key = {"id": "k", "tenant": "t", "roles": ["data"], "key_env": "K"}

    found = only(config(POOL), config(POOL, auth={"keys": [key]}))

    assert (found.key, found.before, found.effect) == ("auth.keys[k]", ABSENT, Effect.LIVE)
