"""External engines are tested only where the pool says so, and are left alone after a failure."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Literal

import pytest

from harness_kit.scripted_engine import ReplicaRecorder, ScriptedAdapter, ScriptedEngine
from harness_kit.virtual_time import run_virtual
from pool_managerd.external_replica import RETEST_S
from pool_managerd.pool_host import PoolHost
from pool_managerd.settings import ExternalReplica, PoolSettings
from worker_adapters.adapter_api.types import Health

pytestmark = pytest.mark.req("ORCH-3049", partial="launched engines")
URL = "http://127.0.0.1:9001"


def host_of(
    engine: ScriptedEngine, run_dir: Path, policy: Literal["auto", "always", "never"]
) -> tuple[PoolHost, ReplicaRecorder]:
    recorder = ReplicaRecorder()
    external = (ExternalReplica("r0", URL),)
    host = PoolHost(
        [PoolSettings("p", "llamacpp", "m", external=external, self_test=policy)],
        {"llamacpp": ScriptedAdapter({URL: engine})},
        recorder,
        cpu_carve_out=False,
        run_dir=run_dir,
        clock=lambda: 0,
        jitter=lambda: 1.0,
    )
    return host, recorder


@pytest.mark.parametrize("policy", ["auto", "never"])
def test_an_engine_of_somebody_else_is_not_disturbed(
    tmp_path: Path, policy: Literal["auto", "never"]
) -> None:
    engine = ScriptedEngine(drifts=True)
    host, recorder = host_of(engine, tmp_path, policy)

    async def scenario() -> None:
        await host.start()
        await asyncio.sleep(60)
        await host.stop(1.0)

    run_virtual(scenario())

    assert recorder.words() == ["preloaded", "ready"]
    assert (engine.decodes, recorder.self_tests) == (0, [])


def test_with_always_it_is_tested_each_time_before_it_is_ready(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    host, recorder = host_of(engine, tmp_path, "always")

    async def scenario() -> None:
        await host.start()
        await asyncio.sleep(2)
        engine.health = Health.DOWN
        await asyncio.sleep(2)
        engine.health = Health.OK
        await asyncio.sleep(2)
        await host.stop(1.0)

    run_virtual(scenario())

    assert [state for _, state in recorder.states] == [
        *("Preloading", "SelfTest", "Ready", "Unready", "SelfTest", "Ready", "Stopped")
    ]
    assert recorder.self_tests == [True, True]


def test_one_that_failed_is_left_alone_for_a_while_and_tested_again(tmp_path: Path) -> None:
    engine = ScriptedEngine(drifts=True)
    host, recorder = host_of(engine, tmp_path, "always")

    async def scenario() -> tuple[list[bool], str]:
        await host.start()
        await asyncio.sleep(RETEST_S - 1)
        tests = list(recorder.self_tests)
        error = host.health("p").last_error
        engine.drifts = False
        await asyncio.sleep(2)
        assert host.health("p").ready
        await host.stop(1.0)
        assert error is not None
        return tests, error.code

    assert run_virtual(scenario()) == ([False], "self-test")
    assert recorder.self_tests == [False, True]


def test_work_of_others_that_comes_during_its_test_is_no_leak(tmp_path: Path) -> None:
    engine = ScriptedEngine()
    host, recorder = host_of(engine, tmp_path, "always")

    async def scenario() -> None:
        await host.start()
        for _ in range(1000):  # turns of the loop
            if engine.decodes == 5:  # the decode that is cancelled
                break
            await asyncio.sleep(0)
        engine.busy_slots += 2
        await asyncio.sleep(60)
        await host.stop(1.0)

    run_virtual(scenario())

    assert recorder.self_tests == [True]
    assert recorder.words() == ["preloaded", "ready"]
