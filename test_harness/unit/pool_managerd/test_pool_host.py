"""What may run where, and in which order: decided before any process starts."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from harness_kit.scripted_engine import ReplicaRecorder, ScriptedAdapter, ScriptedEngine
from harness_kit.virtual_time import run_virtual
from pool_managerd.observer import CauseCode
from pool_managerd.pool_host import PoolHealthView, PoolHost
from pool_managerd.settings import ExternalReplica, LaunchSettings, PoolSettings
from worker_adapters.adapter_api.types import Health


def host_of(
    pools: list[PoolSettings],
    run_dir: Path,
    *,
    adapter: ScriptedAdapter | None = None,
    cpu_carve_out: bool = False,
    has_gpu: bool = False,
) -> PoolHost:
    return PoolHost(
        pools,
        {} if adapter is None else {"llamacpp": adapter},
        ReplicaRecorder(),
        cpu_carve_out=cpu_carve_out,
        run_dir=run_dir,
        clock=lambda: 1000,
        jitter=lambda: 1.0,
        has_gpu=lambda: has_gpu,
    )


def health_after(host: PoolHost, pool_id: str, seconds: float) -> PoolHealthView:
    async def scenario() -> PoolHealthView:
        await host.start()
        await asyncio.sleep(seconds)
        health = host.health(pool_id)
        await host.stop(1.0)
        return health

    return run_virtual(scenario())


@pytest.mark.req("ORCH-1101", partial="all but the part of pool_managerd")
@pytest.mark.req("ORCH-3018", partial="no worker on a CPU; admission answers POOL_UNAVAILABLE")
@pytest.mark.req("OC-POOL-3012")
@pytest.mark.parametrize(
    ("command", "has_gpu", "why"),
    [
        (None, False, "the default launcher runs on the CPU"),
        (None, True, "the default launcher runs on the CPU"),
        (("llama-server",), False, "this host has no NVIDIA GPU"),
    ],
)
def test_without_the_carve_out_nothing_infers_on_a_cpu(
    tmp_path: Path, command: tuple[str, ...] | None, has_gpu: bool, why: str
) -> None:
    pool = PoolSettings("p", "llamacpp", "builtin:smollm2", launch=LaunchSettings(2, command))
    host = host_of([pool], tmp_path, adapter=ScriptedAdapter(), has_gpu=has_gpu)

    health = health_after(host, "p", 3600)

    assert (health.ready, health.state) == (False, "Unready")
    assert [replica.pid for replica in health.replicas] == [None, None]
    assert health.last_error is not None
    assert health.last_error.code is CauseCode.CARVE_OUT
    assert why in health.last_error.message
    assert "platform.cpu_carve_out: true" in health.last_error.message


@pytest.mark.req("ORCH-1101", partial="all but the part of pool_managerd")
def test_external_replicas_need_no_gpu_here(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9001"
    pool = PoolSettings("p", "llamacpp", "m", external=(ExternalReplica("r0", url),))
    adapter = ScriptedAdapter({url: ScriptedEngine()})

    health = health_after(host_of([pool], tmp_path, adapter=adapter), "p", 1)

    assert health.ready


@pytest.mark.req("ORCH-1101", partial="all but the part of pool_managerd")
def test_the_carve_out_is_announced_for_each_pool(tmp_path: Path) -> None:
    pools = [
        PoolSettings(name, "llamacpp", "file:/absent", launch=LaunchSettings(0))
        for name in ("a", "b")
    ]
    host = host_of(pools, tmp_path, adapter=ScriptedAdapter(), cpu_carve_out=True)

    with capture_logs() as logs:
        health_after(host, "a", 0)

    warnings = [line for line in logs if line["event"] == "pool.cpu_carve_out"]
    assert [line["pool_id"] for line in warnings] == ["a", "b"]
    assert all(line["log_level"] == "warning" for line in warnings)


def test_an_engine_without_an_adapter_keeps_its_pool_unready(tmp_path: Path) -> None:
    pool = PoolSettings("p", "vllm", "m", external=(ExternalReplica("r0", "http://127.0.0.1:9"),))

    health = health_after(host_of([pool], tmp_path, adapter=ScriptedAdapter()), "p", 1)

    assert health.last_error is not None
    assert health.last_error.message == (
        "no adapter for engine 'vllm' of pool p (there are: llamacpp)"
    )


def test_a_url_that_the_adapter_refuses_keeps_that_replica_unready(tmp_path: Path) -> None:
    url = "http://127.0.0.1:9001"
    external = (ExternalReplica("bad", "nonsense"), ExternalReplica("good", url))
    pool = PoolSettings("p", "llamacpp", "m", external=external)
    adapter = ScriptedAdapter({url: ScriptedEngine()})

    health = health_after(host_of([pool], tmp_path, adapter=adapter), "p", 1)

    assert [str(replica.state) for replica in health.replicas] == ["Unready", "Ready"]
    assert health.ready


def test_pools_that_need_not_preload_wait_for_those_that_do(tmp_path: Path) -> None:
    urls = {"first": "http://127.0.0.1:9001", "later": "http://127.0.0.1:9002"}
    first, later = ScriptedEngine(health=Health.LOADING), ScriptedEngine()
    pools = [
        PoolSettings(
            name, "llamacpp", "m", preload=name == "first", external=(ExternalReplica("r", url),)
        )
        for name, url in urls.items()
    ]
    adapter = ScriptedAdapter({urls["first"]: first, urls["later"]: later})
    host = host_of(pools, tmp_path, adapter=adapter)

    async def scenario() -> tuple[int, bool]:
        await host.start()
        await asyncio.sleep(30)
        before = later.probes
        first.health = Health.OK
        await asyncio.sleep(1)
        ready = host.health("later").ready
        await host.stop(1.0)
        return before, ready

    assert run_virtual(scenario()) == (0, True)


def test_an_unknown_pool_has_no_health(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        host_of([], tmp_path).health("p")


def test_an_added_replica_serves_and_other_settings_of_the_pool_leave_it_alone(
    tmp_path: Path,
) -> None:
    url, settled = "http://127.0.0.1:9001", "http://127.0.0.1:9002"
    pool = PoolSettings("p", "llamacpp", "m", external=(ExternalReplica("r0", settled),))
    adapter = ScriptedAdapter({url: ScriptedEngine(), settled: ScriptedEngine()})
    host = host_of([pool], tmp_path, adapter=adapter)

    async def scenario() -> tuple[PoolHealthView, tuple[str, ...]]:
        await host.start()
        host.add_external("p", "m0.e0", url, None, [("zone", "a")])
        with pytest.raises(ValueError, match="exists already"):
            host.add_external("p", "m0.e0", url, None, [])
        await asyncio.sleep(1)
        changed = host.changed_external(PoolSettings("p", "llamacpp", "m"))
        health = host.health("p")
        await host.stop(1.0)
        return health, changed

    health, changed = run_virtual(scenario())

    assert [(each.id, str(each.state)) for each in health.replicas] == [
        ("r0", "Ready"),
        ("m0.e0", "Ready"),
    ]
    assert health.replicas[1].labels == (("zone", "a"),)
    assert changed == ("r0",)
