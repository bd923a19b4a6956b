"""External replicas through the pool host, on virtual time."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from harness_kit.scripted_engine import PROPERTIES, ReplicaRecorder, ScriptedAdapter, ScriptedEngine
from harness_kit.virtual_time import run_virtual
from pool_managerd.observer import CauseCode
from pool_managerd.pool_host import PoolHost
from pool_managerd.settings import ExternalReplica, PoolSettings
from worker_adapters.adapter_api.types import EngineFault, Health

URL = "http://127.0.0.1:9001"
Play = Callable[[PoolHost, ScriptedEngine, ReplicaRecorder], Awaitable[None]]


def play(
    run_dir: Path,
    engine: ScriptedEngine,
    scenario: Play,
    *,
    ctx: int = 2048,
    digest: str | None = None,
) -> ReplicaRecorder:
    """Run `scenario` against a pool of one external replica."""
    recorder = ReplicaRecorder()
    external = ExternalReplica("r0", URL, digest, (("zone", "z1"),))
    pool = PoolSettings("p", "llamacpp", "m", ctx=ctx, external=(external,))

    async def all_of_it() -> None:
        loop = asyncio.get_running_loop()
        host = PoolHost(
            [pool],
            {"llamacpp": ScriptedAdapter({URL: engine})},
            recorder,
            cpu_carve_out=False,
            run_dir=run_dir,
            clock=lambda: int(loop.time() * 1000),
            jitter=lambda: 1.0,
        )
        await host.start()
        await scenario(host, engine, recorder)
        await host.stop(1.0)
        assert engine.open_clients == 0

    run_virtual(all_of_it())
    return recorder


async def seconds(number: float) -> None:
    await asyncio.sleep(number)


@pytest.mark.req("ORCH-3002", partial="the start of the service")
@pytest.mark.req("OC-POOL-3001", partial="the start of the service")
def test_a_pool_is_ready_only_after_its_engine_proved_what_it_is(tmp_path: Path) -> None:
    engine = ScriptedEngine(health=Health.LOADING)

    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        assert host.health("p").state == "Unloaded"
        await seconds(60)
        health = host.health("p")
        assert (health.live, health.ready, health.state) == (True, False, "Preloading")
        assert recorder.events == []

        engine.health = Health.OK
        await seconds(1.5)
        health = host.health("p")
        assert (health.live, health.ready, health.state) == (True, True, "Ready")

    recorder = play(tmp_path, engine, scenario)

    assert recorder.events == [("preloaded", "r0"), ("ready", "r0")]
    assert recorder.labels == [(("zone", "z1"),)]


@pytest.mark.req("ORCH-3032")
def test_engine_version_and_digest_are_reported_and_read_again_after_a_loss(
    tmp_path: Path,
) -> None:
    newer = dataclasses.replace(PROPERTIES, engine_version="scripted 2")

    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(1)
        engine.health = Health.DOWN
        await seconds(1)
        engine.health, engine.properties = Health.OK, newer
        await seconds(1)
        assert host.health("p").replicas[0].properties == newer

    recorder = play(tmp_path, ScriptedEngine(), scenario)

    assert recorder.properties == [PROPERTIES, newer]
    assert recorder.words() == ["preloaded", "ready", "lost", "ready"]


@pytest.mark.req("OC-POOL-3003")
def test_an_engine_that_is_not_there_is_unready_at_once_with_the_cause(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(0.1)
        health = host.health("p")
        assert (health.ready, health.state) == (False, "Unready")
        assert health.last_error is not None
        assert health.last_error.code is CauseCode.CONNECTION
        assert URL in health.last_error.message

    recorder = play(tmp_path, ScriptedEngine(health=Health.DOWN), scenario)

    assert recorder.events == [("preload failed", "r0")]


@pytest.mark.req("ORCH-3010", partial="all but how a replica becomes unready")
def test_a_refused_connection_is_a_loss_within_one_probing_period(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(10)
        engine.health = Health.DOWN
        await seconds(0.56)
        assert recorder.words()[-1] == "lost"

    play(tmp_path, ScriptedEngine(), scenario)


def test_one_that_comes_back_is_ready_within_a_second_and_a_half(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(1)
        engine.health = Health.DOWN
        await seconds(600)
        assert not host.health("p").ready
        engine.health = Health.OK
        await seconds(0.51)
        assert host.health("p").ready

    play(tmp_path, ScriptedEngine(), scenario)


def test_a_busy_engine_is_not_a_dead_one(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(1)
        for _ in range(20):
            engine.silent = True
            await seconds(2)
            engine.silent = False
            await seconds(1.1)

    recorder = play(tmp_path, ScriptedEngine(), scenario)

    assert recorder.words() == ["preloaded", "ready"]


def test_three_seconds_of_silence_are_a_loss_and_the_first_answer_ends_it(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(1)
        engine.silent = True
        await seconds(2.9)
        assert host.health("p").ready
        await seconds(1.0)
        assert not host.health("p").ready
        engine.silent = False
        await seconds(1.5)
        assert host.health("p").ready

    recorder = play(tmp_path, ScriptedEngine(), scenario)

    assert [cause.code for cause in recorder.causes] == [CauseCode.TIMEOUT]


@pytest.mark.req("ORCH-3010", partial="all but how a replica becomes unready")
def test_a_broken_connection_is_a_loss_at_once_and_a_healthy_engine_is_back_at_once(
    tmp_path: Path,
) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(1)
        host.report_broken("p", "r0")
        host.report_broken("p", "r0")
        assert recorder.words() == ["preloaded", "ready", "lost"]
        assert not host.health("p").ready
        await seconds(0.1)
        assert host.health("p").ready

    recorder = play(tmp_path, ScriptedEngine(), scenario)

    assert recorder.words() == ["preloaded", "ready", "lost", "ready"]


@pytest.mark.req("ORCH-3010", partial="how a replica becomes unready")
def test_a_doubtful_engine_that_answers_well_is_never_lost(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(1.1)
        probes = engine.probes
        for _ in range(6):
            host.report_doubtful("p", "r0")
            assert host.health("p").ready
        await seconds(0.01)
        assert engine.probes == probes + 1

    recorder = play(tmp_path, ScriptedEngine(), scenario)

    assert recorder.words() == ["preloaded", "ready"]


@pytest.mark.req("ORCH-3010", partial="how a replica becomes unready")
def test_a_doubtful_engine_that_is_gone_is_lost_before_the_next_regular_probe(
    tmp_path: Path,
) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(1.1)
        engine.health = Health.DOWN
        host.report_doubtful("p", "r0")
        await seconds(0.06)
        assert not host.health("p").ready

    recorder = play(tmp_path, ScriptedEngine(), scenario)

    assert recorder.words() == ["preloaded", "ready", "lost"]


def test_a_report_about_an_unknown_replica_is_ignored(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(1)
        host.report_broken("p", "r9")
        host.report_broken("q", "r0")
        host.report_doubtful("p", "r9")
        assert host.health("p").ready

    play(tmp_path, ScriptedEngine(), scenario)


def test_too_little_context_keeps_it_unready_and_names_both_numbers(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(5)
        cause = host.health("p").last_error
        assert cause is not None
        assert cause.code is CauseCode.CONTEXT
        assert "promises ctx 4096" in cause.message
        assert "offers 2048" in cause.message
        engine.properties = dataclasses.replace(PROPERTIES, ctx_max=4096)
        await seconds(1)
        assert host.health("p").ready

    recorder = play(tmp_path, ScriptedEngine(), scenario, ctx=4096)

    assert recorder.words() == ["preload failed", "preloaded", "ready"]


@pytest.mark.req("ORCH-3037", partial="all but external replicas with a configured digest")
def test_an_engine_that_serves_another_model_is_not_ready(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(1)
        cause = host.health("p").last_error
        assert cause is not None
        assert cause.code is CauseCode.DIGEST

    engine = ScriptedEngine()
    recorder = play(tmp_path, engine, scenario, digest="sha256:" + "1" * 64)

    assert recorder.words() == ["preload failed"]
    assert engine.claimed_digests == ["sha256:" + "1" * 64]


@pytest.mark.parametrize(
    ("fault", "code"),
    [
        (EngineFault.RESET, CauseCode.CONNECTION),
        (EngineFault.TIMEOUT, CauseCode.TIMEOUT),
        (EngineFault.UNAVAILABLE, CauseCode.LOADING),
        (EngineFault.MALFORMED, CauseCode.PROTOCOL),
        (EngineFault.UNSUPPORTED, CauseCode.PROTOCOL),
    ],
)
def test_an_engine_whose_properties_cannot_be_read_is_not_ready(
    tmp_path: Path, fault: EngineFault, code: CauseCode
) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(150)  # beyond the preload deadline, which a loading engine is given
        health = host.health("p")
        assert health.state == "Unready"
        assert health.last_error is not None
        assert health.last_error.code is code

    play(tmp_path, ScriptedEngine(properties_fault=fault), scenario)


def test_an_engine_that_loads_for_ever_fails_its_preload_after_two_minutes(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(119)
        assert host.health("p").state == "Preloading"
        await seconds(2)
        assert host.health("p").state == "Unready"

    recorder = play(tmp_path, ScriptedEngine(health=Health.LOADING), scenario)

    assert recorder.words() == ["preload failed"]


def test_nothing_is_probed_after_the_stop(tmp_path: Path) -> None:
    engine = ScriptedEngine()

    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await seconds(1)
        await host.stop(1.0)
        before = engine.probes
        health = host.health("p")
        assert (health.live, health.ready, health.state) == (False, False, "Unloaded")
        await seconds(10)
        assert engine.probes == before

    play(tmp_path, engine, scenario)
