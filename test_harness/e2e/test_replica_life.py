"""Launched engines that crash, print GPU errors or outlive the service, seen from outside.

The engines are real processes that speak llama.cpp's protocol; what befalls them is scripted.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from harness_kit.http_probe import replica_of, task, text_of
from harness_kit.service_process import MODEL, POOL, ServiceProcess, metric_in
from harness_kit.waiting import wait_until
from pool_managerd.processes import carriers_of, start_ticks

WAIT_S = 60.0
CUDA_ERROR = "CUDA error: an illegal memory access was encountered"

# It crashes for want of GPU memory until somebody makes room.
CRASHES = """
import sys
from pathlib import Path
if not Path({room!r}).exists():
    print("ggml_backend_cuda_buffer_type_alloc_buffer: cudaMalloc failed: out of memory")
    sys.exit(1)
from harness_kit import fake_engine
fake_engine.main()
"""

# It says so at SIGUSR2, and goes on.
PRINTS = f"""
import signal, sys
from harness_kit import fake_engine
signal.signal(signal.SIGUSR2, lambda *_: print({CUDA_ERROR!r}, file=sys.stderr, flush=True))
fake_engine.main()
"""

# The engine is a grandchild in a session of its own, which no parent's death reaches.
SHAKES_OFF = """
import os, signal, sys
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        from harness_kit import fake_engine
        fake_engine.main()
    os._exit(0)
signal.pause()
"""


def pool(directory: Path, program: str, count: int = 1, **fields: Any) -> dict[str, Any]:
    """A pool of `count` processes of a Python program that gets the fake engine's options."""
    script = directory / "engine.py"
    script.write_text(program)
    command = [sys.executable, str(script), "--port", "{port}", "--ctx", "8192"]
    return {
        "id": POOL,
        "engine": "llamacpp",
        "model": MODEL,
        "ctx": 8192,
        "sampler_profile_version": "v1",
        "launch": {"count": count, "command": command, "args": ["--token-interval-ms", "20"]},
        **fields,
    }


def replicas(service: ServiceProcess) -> dict[str, dict[str, Any]]:
    """`ReplicaHealth` of the pool, by id."""
    with service.probe() as probe:
        health = probe.get(f"/v1/pools/{POOL}/health").json()
    return {replica["id"]: replica for replica in health["replicas"]}


def wait_state(service: ServiceProcess, replica_id: str, state: str) -> dict[str, Any]:
    """Its health, once it stands there."""
    seen: dict[str, Any] = {}

    def there() -> bool:
        seen.update(replicas(service)[replica_id])
        return bool(seen["state"] == state)

    wait_until(there, WAIT_S, f"{replica_id} {state}")
    return seen


@pytest.mark.req("ORCH-3053", "ORCH-3039", "OC-POOL-3011", "OC-POOL-3003", "OC-POOL-3030")
@pytest.mark.req("ORCH-2103", partial="the figures")
def test_a_crashing_engine_ends_in_broken_for_all_to_see_and_heals(tmp_path: Path) -> None:
    room = tmp_path / "room"
    restarts = {"max_failures": 3, "window_s": 60, "broken_s": 1}
    crashes = pool(tmp_path, CRASHES.format(room=str(room)), restarts=restarts)
    service = ServiceProcess(tmp_path / "service", crashes)
    try:
        service.start(until_ready=False)
        broken = wait_state(service, "p0-0", "Broken")
        service.wait_metric("replica_state", 1, WAIT_S, replica_id="p0-0", state="Broken")
        room.touch()
        healed = wait_state(service, "p0-0", "Ready")
        metrics = service.metrics()
        (rest, *_) = service.wait_log("replica.state", state="Broken")
    finally:
        service.kill()

    assert broken["last_error"]["code"] == "vram-oom"
    assert "cudaMalloc failed: out of memory" in broken["last_error"]["message"]
    assert broken["restarts"] == 2
    assert (rest["rest_s"], rest["code"], rest["oom_events"]) == (1.0, "vram-oom", 3)
    assert healed["restarts"] >= 3
    assert healed["engine_version"].startswith("llama.cpp ")
    failures = healed["restarts"]  # all but the last start
    assert metric_in(metrics, "oom_events_total", pool_id=POOL, reason="vram") == failures
    assert metric_in(metrics, "preload_outcomes_total", pool_id=POOL, outcome="failed") == failures
    assert metric_in(metrics, "replica_restarts_total", replica_id="p0-0") == failures
    assert metric_in(metrics, "self_tests_total", pool_id=POOL, outcome="passed") == 1
    states = {
        state: metric_in(metrics, "replica_state", replica_id="p0-0", state=state)
        for state in ("Preloading", "SelfTest", "Ready", "Draining", "Unready", "Backoff", "Broken")
    }
    assert states == dict.fromkeys(states, 0.0) | {"Ready": 1.0}


@pytest.mark.req("ORCH-3038", "ORCH-3053", "OC-POOL-3010", "OC-POOL-3030")
@pytest.mark.req("ORCH-3201", partial="workers that die")
def test_a_cuda_error_in_mid_stream_moves_a_strict_task_and_restarts_the_replica(
    tmp_path: Path,
) -> None:
    with (
        ServiceProcess(tmp_path / "service", pool(tmp_path, PRINTS, 2)) as service,
        service.probe() as probe,
    ):
        service.wait_metric("replica_ready", 2, WAIT_S)
        document = task(MODEL, max_tokens=60, seed=5)
        probe.post("/v1/tasks", document)
        stream = probe.stream(document["task_id"])
        events = [*stream.through("metrics"), *stream.take(12)]
        victim, pids = replica_of(events), service.engine_pids()

        os.kill(pids[victim], signal.SIGUSR2)
        events += stream.rest()

        (lost,) = service.wait_log("replica.state", replica_id=victim, state="Unready")
        service.wait_metric("replica_restarts_total", 1, WAIT_S, replica_id=victim)
        again = wait_state(service, victim, "Ready")
        faults = service.metric("driver_reset_events_total", pool_id=POOL, reason="cuda-error")
        pid_after = service.engine_pids()[victim]
        calm = task(MODEL, max_tokens=60, seed=5)
        probe.post("/v1/tasks", calm)
        undisturbed = probe.stream(calm["task_id"]).rest()

    assert events[-1].name == "end"
    assert text_of(events) == text_of(undisturbed)
    assert [event.id for event in events if event.id is not None] == [*range(1, 63)]
    assert replica_of(events) != victim
    assert (lost["code"], lost["cause"]) == ("cuda-error", f"the engine printed: {CUDA_ERROR}")
    assert (again["restarts"], again["last_error"]["code"]) == (1, "cuda-error")
    assert pid_after != pids[victim]
    assert faults == 1


@pytest.mark.req("OC-POOL-3010")
def test_an_engine_that_outlives_a_killed_service_does_not_outlive_its_next_start(
    tmp_path: Path,
) -> None:
    service = ServiceProcess(tmp_path / "service", pool(tmp_path, SHAKES_OFF))
    try:
        service.start()
        ledger = json.loads((service.state_dir / "engines.json").read_bytes())
        (leader,) = service.engine_pids().values()
        service.kill()
        wait_until(lambda: start_ticks(leader) is None, WAIT_S, "the death of its launcher")
        outlived = list(carriers_of(ledger["marker"]))

        service.restart()
        left, ready = list(carriers_of(ledger["marker"])), replicas(service)["p0-0"]
        assert service.stop() == 0
    finally:
        service.kill()

    assert len(outlived) == 1
    assert left == []
    assert (ready["state"], ready["restarts"]) == ("Ready", 0)
