"""Which pools may span several devices, and which may share one."""

from __future__ import annotations

import json

import pytest

from orchestratord.configuration import ConfigError, parse_config
from orchestratord.settings import pool_settings
from pool_managerd.settings import MemorySettings, PoolSettings, RestartSettings


def pool(name: str, **settings: object) -> dict[str, object]:
    return {
        **{"id": name, "engine": "llamacpp", "model": "builtin:smollm2", "ctx": 2048},
        **{"launch": {}, "devices": [0]},
        **settings,
    }


def configuration(*pools: dict[str, object]) -> str:
    return json.dumps({"auth": {"enabled": False}, "pools": pools})


def problems(*pools: dict[str, object]) -> list[tuple[str, str]]:
    """Key and rule of every problem."""
    try:
        parse_config(configuration(*pools), environ={})
    except ConfigError as error:
        return [(problem.key, problem.rule) for problem in error.problems]
    return []


@pytest.mark.req("ORCH-3012")
@pytest.mark.req("OC-POOL-3021", partial="what is launched, and its KV")
def test_a_model_spans_several_devices_with_ratios_or_where_they_are_declared_alike() -> None:
    ((key, rule),) = problems(pool("p0", devices=[0, 1]))

    assert key == "pools[0].tensor_split"
    assert rule == (
        "needs one ratio per device, or homogeneous: true where the 2 devices are alike (ORCH-3012)"
    )
    assert problems(pool("p0", devices=[0, 1], tensor_split=[3, 1])) == []
    assert problems(pool("p0", devices=[0, 1], homogeneous=True)) == []
    assert problems(pool("p0", devices=[0])) == []


@pytest.mark.req("ORCH-3012")
def test_ratios_are_positive_and_one_per_device() -> None:
    assert problems(pool("p0", devices=[0, 1], tensor_split=[1, 0]))
    assert problems(pool("p0", devices=[0, 1], tensor_split=[1, 1, 1])) == [
        (
            "pools[0].tensor_split",
            "needs one ratio per device: 3 ratios, 2 devices (ORCH-3012)",
        )
    ]


def test_engines_that_others_run_split_as_they_like() -> None:
    replicas = [{"id": "r0", "url": "http://127.0.0.1:9"}]

    assert problems(pool("p0", devices=[0, 1], launch=None, replicas=replicas)) == []


@pytest.mark.parametrize("engine", ["vllm", "tgi"])
def test_engines_that_share_tensors_evenly_take_no_unequal_ratios(engine: str) -> None:
    uneven = {"engine": engine, "devices": [0, 1], "tensor_split": [3, 1]}

    ((key, rule),) = problems(pool("p0", **uneven))

    assert (key, rule) == (
        "pools[0].tensor_split",
        f"must be equal: {engine} shares tensors evenly only (ORCH-3012)",
    )
    assert problems(pool("p0", **{**uneven, "tensor_split": [2, 2]})) == []
    assert problems(pool("p0", **uneven, launch={"command": ["serve"]})) == []


@pytest.mark.req("ORCH-3011", partial="what the engine is given")
def test_two_launching_pools_share_a_device_only_where_both_say_so() -> None:
    silent = problems(pool("p0"), pool("p1"))
    half = problems(pool("p0", shared_devices=True), pool("p1"))
    both = configuration(pool("p0", shared_devices=True), pool("p1", shared_devices=True))

    assert silent == [
        (
            "pools[1].devices[0]",
            "pool p0 launches engines on this device too; where that is meant, set "
            "shared_devices: true in p0 and p1",
        )
    ]
    assert [rule[-len("true in p1") :] for _, rule in half] == ["true in p1"]
    assert any(
        "pools[1].devices[0]" in warning and "both must fit its memory" in warning
        for warning in parse_config(both, environ={}).warnings
    )


def test_pools_on_devices_of_their_own_need_not_say_anything() -> None:
    assert problems(pool("p0", devices=[0]), pool("p1", devices=["GPU-7f3a"])) == []


def test_what_a_pool_says_of_memory_restarts_and_launch_reaches_its_settings() -> None:
    text = configuration(
        pool(
            "p0",
            devices=[0, 1],
            tensor_split=[3, 1],
            shared_devices=True,
            self_test="never",
            memory={"check": False, "headroom_ratio": 0.2, "slots_min": 1, "ctx_min": 512},
            restarts={"max_failures": 3, "window_s": 60, "broken_s": 30},
            timeouts={"preload_ms": 9000},
            launch={
                **{"count": 2, "program": "llama-server", "slots": 8, "draft_model": "file:/d"},
                "prefix_cache_bytes": 1024,
            },
        )
    )

    settings = pool_settings(parse_config(text, environ={}).config.pools[0])

    assert settings.launch is not None
    assert (settings.launch.count, settings.launch.program) == (2, "llama-server")
    assert (settings.launch.slots, settings.launch.draft_model) == (8, "file:/d")
    assert settings.launch.prefix_cache_bytes == 1024
    assert settings.tensor_split == (3, 1)
    assert (settings.shared_devices, settings.homogeneous) == (True, False)
    assert settings.memory == MemorySettings(False, 0.2, 1, 512)
    assert settings.restarts == RestartSettings(3, 60, 30)
    assert (settings.self_test, settings.preload_ms) == ("never", 9000)


def test_a_pool_that_says_nothing_has_the_contracts_defaults() -> None:
    settings = pool_settings(parse_config(configuration(pool("p0")), environ={}).config.pools[0])

    defaults = PoolSettings("p", "llamacpp", "m")
    assert settings.memory == defaults.memory
    assert settings.restarts == defaults.restarts
    assert (settings.self_test, settings.preload_ms) == (defaults.self_test, defaults.preload_ms)
