"""Pools and replicas that come and go while the pool host runs."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from harness_kit.scripted_engine import ReplicaRecorder, ScriptedAdapter, ScriptedEngine
from harness_kit.virtual_time import run_virtual
from pool_managerd.observer import CauseCode
from pool_managerd.pool_host import PoolHost
from pool_managerd.settings import ExternalReplica, LaunchSettings, PoolSettings

POOL = PoolSettings(
    "p",
    "llamacpp",
    "m",
    external=(
        ExternalReplica("r0", "http://127.0.0.1:9001"),
        ExternalReplica("r1", "http://127.0.0.1:9002"),
    ),
)
OTHER = PoolSettings("q", "llamacpp", "m", external=(ExternalReplica("r0", "http://127.0.0.1:3"),))

Scenario = Callable[[PoolHost, ReplicaRecorder], Awaitable[None]]


def run(tmp_path: Path, scenario: Scenario) -> None:
    recorder = ReplicaRecorder()

    async def main() -> None:
        host = PoolHost(
            [POOL],
            {"llamacpp": ScriptedAdapter(anywhere=ScriptedEngine())},
            recorder,
            cpu_carve_out=False,
            run_dir=tmp_path,
            clock=lambda: 1000,
            jitter=lambda: 1.0,
            has_gpu=lambda: False,
        )
        await host.start()
        await asyncio.sleep(1.0)
        try:
            await scenario(host, recorder)
        finally:
            await host.stop(1.0)

    run_virtual(main())


def states(host: PoolHost, pool_id: str = "p") -> dict[str, str]:
    return {replica.id: str(replica.state) for replica in host.health(pool_id).replicas}


@pytest.mark.req("ORCH-2101", partial="the pool host's part")
def test_a_replica_drains_is_lifted_stops_and_starts_again(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, recorder: ReplicaRecorder) -> None:
        assert host.drain_replica("p", "r0")
        assert not host.drain_replica("p", "r0")
        draining, ready_meanwhile = states(host)["r0"], host.health("p").ready
        assert host.lift_replica("p", "r0")
        lifted = states(host)["r0"]
        await host.stop_replica("p", "r0", 1.0, "maintenance")
        await asyncio.sleep(10.0)
        stopped = host.health("p").replicas[0]
        host.report_broken("p", "r0")  # nobody looks after it
        host.start_replica("p", "r0")
        await asyncio.sleep(1.0)

        assert (draining, ready_meanwhile, lifted) == ("Draining", True, "Ready")
        assert str(stopped.state) == "Stopped"
        assert states(host) == {"r0": "Ready", "r1": "Ready"}
        assert recorder.events.count(("ready", "r0")) == 2
        assert recorder.events.count(("lost", "r0")) == 1
        assert recorder.causes[-1].code is CauseCode.DRAINED
        assert recorder.causes[-1].message == "maintenance"

    run(tmp_path, scenario)


def test_a_start_that_overtakes_the_end_waits_for_it(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, recorder: ReplicaRecorder) -> None:
        ending = asyncio.ensure_future(host.stop_replica("p", "r0", 1.0, "maintenance"))
        host.start_replica("p", "r0")
        host.start_replica("p", "r0")  # it is on its way already
        await ending
        await asyncio.sleep(1.0)

        assert states(host) == {"r0": "Ready", "r1": "Ready"}
        assert recorder.events.count(("ready", "r0")) == 2

    run(tmp_path, scenario)


def test_two_ends_of_one_replica_are_one(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, recorder: ReplicaRecorder) -> None:
        await asyncio.gather(
            host.stop_replica("p", "r0", 1.0, "once"),
            host.stop_replica("p", "r0", 1.0, "twice"),
        )
        await host.remove_replica("p", "r0", 1.0)
        await host.remove_replica("p", "r0", 1.0)

        assert states(host) == {"r1": "Ready"}
        assert host.replica_ids("p") == ("r1",)
        assert recorder.events.count(("lost", "r0")) == 1

    run(tmp_path, scenario)


@pytest.mark.req("ORCH-3031", partial="the pool host's part")
def test_pools_come_and_go(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, recorder: ReplicaRecorder) -> None:
        host.add_pool(OTHER)
        with pytest.raises(ValueError, match="pool q exists already"):
            host.add_pool(OTHER)
        await asyncio.sleep(1.0)
        there = states(host, "q")
        await host.remove_pool("q", 1.0)
        with pytest.raises(KeyError):
            host.health("q")
        host.add_pool(OTHER)
        await asyncio.sleep(1.0)

        assert there == states(host, "q") == {"r0": "Ready"}
        assert states(host) == {"r0": "Ready", "r1": "Ready"}

    run(tmp_path, scenario)


@pytest.mark.req("ORCH-1101", partial="all but the part of pool_managerd")
def test_replicas_of_a_reload_obey_the_carve_out_too(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, recorder: ReplicaRecorder) -> None:
        launched = PoolSettings("l", "llamacpp", "builtin:smollm2", launch=LaunchSettings(2))
        host.add_pool(launched)
        host.launch_model("l", "file:/other.gguf", ["l-r1-0", "l-r1-1"])
        await asyncio.sleep(1.0)

        assert (host.launch_count("l"), host.launch_count("p")) == (2, 0)
        assert set(states(host, "l").values()) == {"Unready"}
        assert host.replica_ids("l") == ("l-0", "l-1", "l-r1-0", "l-r1-1")
        assert all(view.pid is None for view in host.health("l").replicas)
        with pytest.raises(ValueError, match="l/l-r1-0 exists already"):
            host.launch_model("l", "file:/other.gguf", ["l-r1-0"])
        await host.stop_replica("l", "l-0", 1.0, "maintenance")
        stopped = states(host, "l")["l-0"]
        host.start_replica("l", "l-0")
        assert (stopped, states(host, "l")["l-0"]) == ("Stopped", "Unready")

    run(tmp_path, scenario)


def test_nothing_starts_once_the_host_has_stopped(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, recorder: ReplicaRecorder) -> None:
        await host.stop(1.0)
        host.start_replica("p", "r0")
        await asyncio.sleep(1.0)

        assert states(host) == {"r0": "Stopped", "r1": "Stopped"}

    run(tmp_path, scenario)


def test_a_pool_s_health_can_leave_replicas_out(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, recorder: ReplicaRecorder) -> None:
        await host.stop_replica("p", "r1", 1.0, "maintenance")

        health = host.health("p", lambda name: name == "r1")

        assert ([view.id for view in health.replicas], health.ready) == (["r1"], False)

    run(tmp_path, scenario)
