"""The service on a host whose NVML a test scripts: what it shows of GPUs, and what their faults do.

The library is loaded by the service's own process as on any host; the engines are real ones that
compute on the CPU, and the script says that they are on the GPUs.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness_kit import nvml_library as stub
from harness_kit.nvml_library import DRIVER, Gpu, ScriptedNvml, mig_uuid_of, uuid_of
from harness_kit.service_process import CONTROL_KEY, ServiceProcess, launched_pool, metric_in
from harness_kit.waiting import wait_until

MIB = 1 << 20
FIGURES = (
    "gpu_memory_total_bytes",
    "gpu_memory_used_bytes",
    "gpu_temperature_celsius",
    "gpu_power_watts",
    "gpu_sm_clock_mhz",
    "gpu_throttled",
    "gpu_ecc_errors",
)


@pytest.fixture
def host(nvml: ScriptedNvml, monkeypatch: pytest.MonkeyPatch) -> ScriptedNvml:
    """Services that start now have the scripted GPUs."""
    for name, value in nvml.environment.items():
        monkeypatch.setenv(name, value)
    return nvml


def service_on(directory: Path, *pools: dict[str, Any]) -> ServiceProcess:
    """A service that looks at the GPUs often."""
    platform = {"cpu_carve_out": True, "gpu_telemetry_ms": 20}
    return ServiceProcess(directory, *pools, platform=platform)


def pool_on(device: int | str, pool_id: str) -> dict[str, Any]:
    return launched_pool(1, pool_id, devices=[device])


def shown(service: ServiceProcess) -> dict[str, Any]:
    """`GET /v1/devices`."""
    with service.probe(CONTROL_KEY) as probe:
        answer = probe.get("/v1/devices")
    assert answer.status == 200
    document: dict[str, Any] = answer.json()
    return document


def health(service: ServiceProcess, pool_id: str) -> dict[str, Any]:
    with service.probe(CONTROL_KEY) as probe:
        document: dict[str, Any] = probe.get(f"/v1/pools/{pool_id}/health").json()
    return document


def wait_ready(service: ServiceProcess, *pool_ids: str) -> None:
    wait_until(
        lambda: all(health(service, pool_id)["state"] == "Ready" for pool_id in pool_ids),
        60.0,
        "every pool is Ready",
    )


@pytest.mark.req("ORCH-3013")
@pytest.mark.req("ORCH-3028", partial="SLO attainment")
@pytest.mark.req("OC-CORE-1041", partial="all but utilisation")
@pytest.mark.req("OC-POOL-3030")
def test_gpus_and_the_engines_on_them_are_shown(host: ScriptedNvml, tmp_path: Path) -> None:
    host.gpus(
        Gpu(0, {"total_mib": 81920, "throttle": 0x40, "ecc": 2}),
        Gpu(1, {"total_mib": 24576, "node": 1, "used_mib": 2048}),
    )
    host.link(0, 1, stub.SYSTEM, nvlink=False)
    with service_on(tmp_path, pool_on(0, "a"), pool_on(uuid_of(1), "b")) as service:
        wait_ready(service, "a", "b")
        pids = service.engine_pids()
        host.runs(0, pids["a-0"], 300)
        host.runs(1, pids["b-0"], 200)
        host.runs(1, os.getpid(), 999)
        of_a = {"engine": "llamacpp", "pool_id": "a", "replica_id": "a-0", "device": "0"}
        of_b = {"engine": "llamacpp", "pool_id": "b", "replica_id": "b-0", "device": "1"}
        service.wait_metric("vram_used_bytes", 200 * MIB, replica_id="b-0", device="1")
        metrics = service.metrics()
        document = shown(service)
        table = cli(service, "devices")
        as_json = json.loads(cli(service, "devices", "--json"))
        with service.probe(CONTROL_KEY) as probe:
            sets = probe.get("/v1/replicasets").json()

        def metric(name: str, **labels: str) -> float:
            return metric_in(metrics, name, **labels)

        assert metric("vram_used_bytes") == 500 * MIB
        assert metric("vram_used_bytes", **of_a) == 300 * MIB
        assert metric("gpu_utilization", **of_a) == 10
        assert metric("gpu_utilization", **of_b) == 11
        on_0 = [metric(name, device="0") for name in FIGURES]
        assert on_0 == [81920 * MIB, 1024 * MIB, 40, 250.5, 1980, 1, 2]
        on_1 = [metric(name, device="1") for name in FIGURES]
        assert on_1 == [24576 * MIB, 2048 * MIB, 41, 250.5, 1980, 0, 0]
        assert metric("gpu_lost") == 0

        assert document["driver_version"] == DRIVER
        first, second = document["devices"]
        assert first == {
            "index": 0,
            "uuid": uuid_of(0),
            "name": "Scripted H100",
            "lost": False,
            "memory_total_bytes": 81920 * MIB,
            "memory_used_bytes": 1024 * MIB,
            "utilization_percent": 10,
            "temperature_celsius": 40,
            "power_watts": 250.5,
            "sm_clock_mhz": 1980,
            "throttle_reasons": ["hardware-thermal"],
            "ecc_errors": 2,
            "mig": False,
            "numa_node": 0,
            "processes": [{"pool_id": "a", "replica_id": "a-0", "memory_used_bytes": 300 * MIB}],
        }
        assert second["processes"] == [
            {"pool_id": "b", "replica_id": "b-0", "memory_used_bytes": 200 * MIB}
        ]
        assert as_json == document
        assert table.splitlines()[1].split("\t") == [
            *("0", "Scripted H100", "1.0/80.0", "10", "40", "250", "hardware-thermal", ""),
            "a-0 (0.3 GiB)",
        ]
        labels = {r["id"]: r["labels"] for s in sets for r in s["replicas"]}
        assert labels == {
            "a-0": {"numa": "0", "pcie": "00000000:10:00.0"},
            "b-0": {"numa": "1", "pcie": "00000000:11:00.0"},
        }


@pytest.mark.req("ORCH-3053", partial="the circuit breaker")
@pytest.mark.req("ORCH-3038", partial="what engines print")
def test_a_gpu_that_is_lost_takes_its_replicas_with_it_and_gives_them_back(
    host: ScriptedNvml, tmp_path: Path
) -> None:
    host.gpus(Gpu(0), Gpu(1))
    with service_on(tmp_path, pool_on(0, "a"), pool_on(1, "b")) as service:
        wait_ready(service, "a", "b")
        before = service.engine_pids()
        host.set(0, lost=stub.LOST)
        service.wait_metric("gpu_lost", 1, device="0")
        service.wait_metric("driver_reset_events_total", 1, pool_id="a", reason="gpu-lost")
        lost_at, *_ = service.wait_log("replica.state", pool_id="a", code="gpu-lost")
        (line,) = service.wait_log("gpu.fault", kind="gpu-lost")
        frozen = [name for name in FIGURES if f'{name}{{device="0"}}' in service.metrics()]
        (lost, well) = shown(service)["devices"]
        host.set(0, lost=None)
        service.wait_metric("gpu_lost", 0, device="0")
        wait_ready(service, "a", "b")
        after = service.engine_pids()

        assert lost_at["cause"].startswith(f"GPU 0 ({uuid_of(0)}): the GPU does not answer")
        assert (line["device"], line["uuid"], line["level"]) == (0, uuid_of(0), "error")
        assert frozen == []
        assert (lost["lost"], "memory_total_bytes" in lost) == (True, False)
        assert (well["lost"], well["memory_total_bytes"]) == (False, 81920 * MIB)
        assert (before["a-0"] != after["a-0"], before["b-0"] == after["b-0"]) == (True, True)
        assert service.metric("driver_reset_events_total", pool_id="b") == 0
        assert service.wait_log("gpu.back", device=0)


@pytest.mark.req("ORCH-3053", partial="the circuit breaker")
@pytest.mark.req("ORCH-3038", partial="what engines print")
def test_memory_errors_xids_and_resets_are_told_apart(host: ScriptedNvml, tmp_path: Path) -> None:
    host.gpus(*(Gpu(index) for index in range(4)))
    pools = [pool_on(index, f"p{index}") for index in range(4)]
    pools[1]["devices"] = []  # found by its process
    with service_on(tmp_path, *pools) as service:
        wait_ready(service, "p0", "p1", "p2", "p3")
        host.runs(1, service.engine_pids()["p1-0"], 300)
        service.wait_metric("vram_used_bytes", 300 * MIB, replica_id="p1-0", device="1")
        host.set(0, ecc=3)
        host.xid(1, 79)
        host.set(2, lost=stub.RESET_REQUIRED)
        host.xid(3, 31)
        reasons = {"p0": "ecc", "p1": "xid", "p2": "reset"}
        for pool_id, reason in reasons.items():
            service.wait_metric("driver_reset_events_total", 1, pool_id=pool_id, reason=reason)
        for pool_id, code in {"p0": "ecc", "p1": "xid", "p2": "gpu-reset"}.items():
            service.wait_log("replica.state", pool_id=pool_id, code=code)
        (application,) = service.wait_log("gpu.fault", device=3)

        assert service.metric("gpu_ecc_errors", device="0") == 3
        assert service.metric("driver_reset_events_total") == 3
        # A program's own mistake: it ends itself, and its neighbours on the GPU go on.
        assert (application["fatal"], application["cause"]) == (
            False,
            "Xid 31 (the application's own)",
        )
        assert health(service, "p3")["state"] == "Ready"


@pytest.mark.req("ORCH-3028", partial="SLO attainment")
@pytest.mark.req("ORCH-3053", partial="the circuit breaker")
def test_a_mig_instance_has_its_engine_and_falls_with_its_gpu(
    host: ScriptedNvml, tmp_path: Path
) -> None:
    host.gpus(Gpu(0, instances={1: {"total_mib": 10240, "used_mib": 300}}))
    with service_on(tmp_path, pool_on(mig_uuid_of(0, 1), "a")) as service:
        host.runs(0, service.engine_pids()["a-0"], 300, instance=1)
        service.wait_metric("vram_used_bytes", 300 * MIB, replica_id="a-0", device="0:1")
        gpu, instance = shown(service)["devices"]
        host.set(0, lost=stub.LOST)
        service.wait_metric("driver_reset_events_total", 1, pool_id="a", reason="gpu-lost")

        assert (gpu["index"], gpu["mig"], gpu["processes"]) == (0, True, [])
        assert (instance["index"], instance["uuid"]) == (0, mig_uuid_of(0, 1))
        assert instance["memory_total_bytes"] == 10240 * MIB
        assert [process["replica_id"] for process in instance["processes"]] == ["a-0"]


@pytest.mark.req("OC-POOL-3020", partial="what the engine is given")
def test_a_mask_that_names_no_gpu_of_this_host_stops_the_start(
    host: ScriptedNvml, tmp_path: Path
) -> None:
    host.gpus(Gpu(0), Gpu(1))
    service = service_on(tmp_path, pool_on(5, "a"))

    with pytest.raises(AssertionError):
        service.start()

    assert service.wait_exit(20.0) != 0
    assert "pools[0].devices[0] = 5: no such device" in service.log_text()
    assert f"0 ({uuid_of(0)}), 1 ({uuid_of(1)})" in service.log_text()


@pytest.mark.parametrize("broken", ["no driver", "no library"])
def test_without_a_driver_everything_else_works_and_says_so(
    host: ScriptedNvml, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    reason = "the NVIDIA driver is not usable: Driver Not Loaded"
    host.has_driver = False
    host.write()
    if broken == "no library":
        # What the loader finds first is no library at all, whatever else this machine has.
        (tmp_path / stub.LIBRARY).write_bytes(b"not a library")
        monkeypatch.setenv("LD_LIBRARY_PATH", str(tmp_path))
        reason = "no NVIDIA driver is installed here"
    with service_on(tmp_path / "service", pool_on(0, "a")) as service:
        document = shown(service)
        table = cli(service, "devices")

        assert document["devices"] == []
        assert document["message"].startswith(reason)
        assert table.startswith("GPU\t")
        assert health(service, "a")["state"] == "Ready"
        assert "gpu_lost{" not in service.metrics()
        assert service.wait_log("gpu.telemetry_unavailable", level="info")


def test_a_driver_that_hangs_holds_up_neither_tasks_nor_the_end(
    host: ScriptedNvml, tmp_path: Path
) -> None:
    host.gpus(Gpu(0))
    with service_on(tmp_path, launched_pool(1, "a")) as service:
        wait_until(lambda: len(shown(service)["devices"]) == 1, 20.0, "the GPU is seen")
        host.hangs("nvmlDeviceGetUtilizationRates")
        with service.probe(CONTROL_KEY) as probe:
            answers = [probe.get("/v1/devices").status for _ in range(50)]
        status = service.stop()

        assert answers == [200] * 50
        assert status == 0


@pytest.mark.req("ORCH-3013")
def test_an_engine_runs_on_the_cpus_near_its_gpu(host: ScriptedNvml, tmp_path: Path) -> None:
    near = min(os.sched_getaffinity(0))
    host.gpus(Gpu(0, {"cpus": 1 << near}))
    launcher = [sys.executable, "-P", "-m", "pool_managerd.llamacpp_launcher"]
    command = [*launcher, "--model", "builtin:smollm2", "--ctx", "{ctx}", "--port", "{port}"]
    pool = launched_pool(1, "a", devices=[0], launch={"count": 1, "command": command})
    with service_on(tmp_path, pool) as service:
        bound = os.sched_getaffinity(service.engine_pids()["a-0"])

        assert bound == {near}


def test_cpus_that_the_service_may_not_use_bind_an_engine_to_none() -> None:
    own = os.sched_getaffinity(0)
    told = [sys.executable, "-c", "import os; print(sorted(os.sched_getaffinity(0)))"]
    with_parent = [sys.executable, "-P", "-m", "pool_managerd.exec_with_parent"]
    command = [*with_parent, "--parent-pid", str(os.getpid()), "--cpus", "4095", "--", *told]

    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)

    assert json.loads(done.stdout) == sorted(own)


def cli(service: ServiceProcess, *words: str) -> str:
    """A command against the running service; its stdout."""
    command = [sys.executable, "-m", "orch_cli.main", *words]
    environment = os.environ | {"LLAMA_ORCH_API_KEY": CONTROL_KEY}
    url = f"http://127.0.0.1:{service.port}"
    done = subprocess.run(
        [*command, "--url", url], env=environment, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
