"""A start that is called off while its thread still reads files: what it takes, it gives back."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest

from gpu_telemetry.snapshot import HostGpus
from harness_kit.scripted_engine import ReplicaRecorder, ScriptedAdapter
from pool_managerd.backoff import Backoff
from pool_managerd.engine_ledger import EngineLedger
from pool_managerd.engine_output import EngineOutput
from pool_managerd.launched_replica import LaunchedSupervisor
from pool_managerd.memory_estimate import GIB, MIB, Room
from pool_managerd.preload_check import PreloadCheck
from pool_managerd.replica import Replica
from pool_managerd.settings import LaunchSettings, MemorySettings, PoolSettings

# SmolLM2 on the CPU with 4 slots of 2048 tokens needs 335 MiB: there is room for one engine.
ROOM = Room(400 * MIB, 64 * GIB)
LAUNCH = LaunchSettings()
POOL = PoolSettings(
    "p",
    "llamacpp",
    "builtin:smollm2",
    ctx=2048,
    launch=LAUNCH,
    memory=MemorySettings(headroom_ratio=0.0),
)
WAIT_S = 10.0


@pytest.mark.req("ORCH-3003")
def test_a_start_that_is_called_off_gives_its_memory_back(tmp_path: Path) -> None:
    reading, may_go_on = threading.Event(), threading.Event()

    def look() -> Room:
        reading.set()
        may_go_on.wait(WAIT_S)
        return ROOM

    check = PreloadCheck(HostGpus, look)

    async def scenario() -> None:
        supervisor = LaunchedSupervisor(
            Replica("p", "p-0", (), ReplicaRecorder(), lambda: 0),
            POOL,
            LAUNCH,
            ScriptedAdapter(),
            lambda: 0,
            marker="0" * 32,
            ledger=EngineLedger(tmp_path / "engines.json", "0" * 32),
            output=EngineOutput(tmp_path / "p-0.log"),
            backoff=Backoff(lambda: 1.0),
            preload=check,
        )
        work = asyncio.create_task(supervisor.run())
        assert await asyncio.to_thread(reading.wait, WAIT_S)
        work.cancel()
        await asyncio.wait([work])
        await supervisor.stop(1.0)
        may_go_on.set()
        await asyncio.get_running_loop().shutdown_default_executor()  # its thread has ended

    asyncio.run(scenario())

    plan, _ = check.admit(POOL, LAUNCH)
    assert plan.slots == 4
