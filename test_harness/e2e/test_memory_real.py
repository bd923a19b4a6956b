"""The memory check with the real engine: refused, retried, granted; how true the estimate is."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest

from harness_kit.http_probe import task
from harness_kit.scripted_engine import ReplicaRecorder
from harness_kit.service_process import ServiceProcess, launched_pool
from harness_kit.waiting import wait_until_async
from pool_managerd.launch_profiles.llamacpp import CPU_LAUNCHER
from pool_managerd.memory_estimate import GIB, MIB, EstimatedLaunch, Room
from pool_managerd.model_files import find_model
from pool_managerd.model_geometry import read_geometry
from pool_managerd.observer import CauseCode
from pool_managerd.pool_host import PoolHost
from pool_managerd.settings import LaunchSettings, MemorySettings, PoolSettings
from worker_adapters.llamacpp_http.client import LlamaCppAdapter

READY_S = 30.0
SMOLLM2 = "builtin:smollm2"


class Memory:
    """The host's memory as the pool host is told it is."""

    def __init__(self, free_bytes: int) -> None:
        self.free_bytes = free_bytes

    def __call__(self) -> Room:
        return Room(self.free_bytes, 64 * GIB)


def host_of(
    pool: PoolSettings, run_dir: Path, recorder: ReplicaRecorder, memory: Memory
) -> PoolHost:
    return PoolHost(
        [pool],
        {"llamacpp": LlamaCppAdapter()},
        recorder,
        cpu_carve_out=True,
        run_dir=run_dir,
        clock=lambda: int(time.time() * 1000),
        jitter=lambda: 0.0,
        host_memory=memory,
    )


def resident_bytes_of(pid: int) -> int:
    """What the kernel counts of a process: its own memory and the pages of files it has read."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024


@pytest.mark.req("ORCH-3003")
@pytest.mark.req("OC-POOL-3002")
def test_a_model_without_memory_stays_unready_with_the_numbers_until_there_is_enough(
    tmp_path: Path,
) -> None:
    recorder, memory = ReplicaRecorder(), Memory(100 * MIB)
    pool = PoolSettings(
        "p",
        "llamacpp",
        SMOLLM2,
        ctx=512,
        launch=LaunchSettings(slots=1),
        memory=MemorySettings(headroom_ratio=0.0),
    )

    async def scenario() -> tuple[int, str, str]:
        host = host_of(pool, tmp_path, recorder, memory)
        await host.start()
        try:
            # Backoff: 0.25 s, 0.5 s and 1 s lie between these.
            await wait_until_async(lambda: len(recorder.causes) >= 3, READY_S, "three refusals")
            health = host.health("p")
            (replica,) = health.replicas
            assert replica.pid is None
            assert health.last_error is not None
            refused = (len(recorder.causes), health.state, health.last_error.message)
            memory.free_bytes = GIB
            await wait_until_async(lambda: host.health("p").ready, READY_S, "the engine is Ready")
            return refused
        finally:
            await host.stop(10.0)

    refusals, state, message = asyncio.run(scenario())

    assert (refusals, state) == (3, "Unready")
    assert {cause.code for cause in recorder.causes} == {CauseCode.MEMORY}
    assert message == (
        "needs 165 MiB of host memory (weights 92 MiB, KV 11 MiB, scratch 2 MiB, runtime 60 MiB), "
        "100 MiB are free; it would not fit with fewer slots or less context either"
    )
    assert recorder.properties[-1].slots_total == 1


@pytest.mark.req("ORCH-3039", partial="how exhaustion is told apart")
def test_with_less_memory_than_wanted_a_smaller_engine_serves(tmp_path: Path) -> None:
    recorder, memory = ReplicaRecorder(), Memory(250 * MIB)
    pool = PoolSettings(
        "p",
        "llamacpp",
        SMOLLM2,
        ctx=2048,
        launch=LaunchSettings(),
        memory=MemorySettings(headroom_ratio=0.0, slots_min=2, ctx_min=512),
    )

    async def scenario() -> None:
        host = host_of(pool, tmp_path, recorder, memory)
        await host.start()
        try:
            await wait_until_async(lambda: host.health("p").ready, READY_S, "the engine is Ready")
        finally:
            await host.stop(10.0)

    asyncio.run(scenario())

    (properties,) = recorder.properties
    # 250 MiB less 92, 60 and 2 leave 96 for two slots' KV of 22.5 KiB a token.
    assert (properties.slots_total, properties.ctx_max) == (2, 2048)


@pytest.mark.req("ORCH-3003", partial="the check and what follows from it")
@pytest.mark.req("ORCH-3020", partial="what admission does with it")
@pytest.mark.parametrize(
    ("slots", "ctx", "draft"),
    [(1, 512, None), (4, 2048, None), (2, 2048, SMOLLM2)],
)
def test_the_estimate_is_what_the_real_engine_takes(
    tmp_path: Path, slots: int, ctx: int, draft: str | None
) -> None:
    model = read_geometry(find_model(SMOLLM2).path)
    memory = CPU_LAUNCHER.memory
    assert memory is not None
    estimate = EstimatedLaunch(model, memory, draft=None if draft is None else model)
    launch = LaunchSettings(slots=slots, draft_model=draft)
    pool = PoolSettings("p", "llamacpp", SMOLLM2, ctx=ctx, launch=launch)

    async def scenario() -> int:
        host = host_of(pool, tmp_path, ReplicaRecorder(), Memory(32 * GIB))
        await host.start()
        try:
            # Ready comes after a self-test, so that it has decoded.
            await wait_until_async(lambda: host.health("p").ready, READY_S, "the engine is Ready")
            (replica,) = host.health("p").replicas
            assert replica.pid is not None
            return resident_bytes_of(replica.pid)
        finally:
            await host.stop(10.0)

    resident_bytes = asyncio.run(scenario())

    # Measured on an idle machine: 0.5 to 3.3 % below.
    estimated_bytes = estimate.estimate(slots, ctx).host.total_bytes
    assert abs(estimated_bytes - resident_bytes) / resident_bytes < 0.25


@pytest.mark.req("ORCH-3020")
def test_admission_counts_the_kv_of_the_draft_model_and_the_prefix_cache(tmp_path: Path) -> None:
    # SmolLM2 keeps 23040 bytes a token (30 layers, 3 KV heads of 64, two tensors of 2 bytes), once
    # as the model and once as its own draft; 1 MiB of prefix cache is 2048 for each of 512 tokens.
    token_bytes = 2 * 23040 + 2048
    launch = {
        "count": 1,
        "slots": 1,
        "draft_model": SMOLLM2,
        "prefix_cache_bytes": MIB,
    }
    tenants = [{"id": "acme", "kv_bytes": 256 * token_bytes}]
    pool = launched_pool(
        1, ctx=512, launch=launch, admission={"fairness": {"kind": "wfq", "tenants": tenants}}
    )

    with ServiceProcess(tmp_path, pool) as service, service.probe() as probe:
        refused = probe.post("/v1/tasks", task(SMOLLM2, ctx=257, max_tokens=1))
        admitted = probe.post("/v1/tasks", task(SMOLLM2, ctx=256, max_tokens=1))

    assert refused.status == 429
    assert (
        f"kv_bytes: a context of 257 tokens takes {257 * token_bytes} bytes"
        in refused.json()["message"]
    )
    assert admitted.status == 202
