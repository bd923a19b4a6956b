"""A pool by the index of its GPU, on a host whose GPUs fall off the bus: what its engines see.

The scripted NVML is loaded by the processes themselves; the engines are real ones that compute on
the CPU, and what they were given is read from the kernel.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from harness_kit import nvml_library as stub
from harness_kit.nvml_library import Gpu, ScriptedNvml, mig_uuid_of, uuid_of
from harness_kit.service_process import ServiceProcess, launched_pool
from harness_kit.waiting import wait_until
from pool_managerd.model_files import SMOLLM2_SHA256


@pytest.fixture
def host(nvml: ScriptedNvml, monkeypatch: pytest.MonkeyPatch) -> ScriptedNvml:
    """Processes that start now have the scripted GPUs."""
    for name, value in nvml.environment.items():
        monkeypatch.setenv(name, value)
    return nvml


def mask_of(pid: int) -> str:
    """The device mask that a process was started with."""
    environment = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(entry.split("=", 1) for entry in environment if entry)["CUDA_VISIBLE_DEVICES"]


def model_of(pid: int) -> str:
    """The model that a process was started with."""
    words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
    return words[words.index("--model") + 1]


@pytest.mark.req("ORCH-3001", "ORCH-3011", "OC-POOL-3020")
def test_an_engine_waits_for_its_own_gpu_and_is_never_given_another(
    host: ScriptedNvml, tmp_path: Path
) -> None:
    host.gpus(Gpu(0), Gpu(1), Gpu(2, instances={0: {"total_mib": 10240, "used_mib": 0}}))
    pools = [launched_pool(1, f"p{index}", devices=[index]) for index in (0, 2)]
    platform = {"cpu_carve_out": True, "gpu_telemetry_ms": 20}
    with ServiceProcess(tmp_path, *pools, platform=platform) as service:
        service.wait_metric("replica_state", 2, timeout_s=60.0, state="Ready")
        before = service.engine_pids()
        models = {name: model_of(pid) for name, pid in before.items()}
        with service.probe() as probe:
            sets = probe.get("/v1/replicasets").json()
        masks = {name: mask_of(pid) for name, pid in before.items()}
        host.set(0, lost=stub.LOST)
        service.wait_metric("gpu_lost", 1, device="0")
        refused, *_ = service.wait_log("replica.state", pool_id="p0", code="device")
        running = service.engine_pids()
        failures = service.metric("driver_reset_events_total", pool_id="p0")
        host.set(0, lost=None)
        service.wait_log("gpu.back", device=0)
        service.wait_metric("replica_state", 2, timeout_s=60.0, state="Ready")
        after = service.engine_pids()

        assert len(set(before.values())) == 2  # a process of its own each
        assert models == dict.fromkeys(before, "builtin:smollm2")
        assert {entry["model_digest"] for entry in sets} == {f"sha256:{SMOLLM2_SHA256}"}
        assert masks == {"p0-0": uuid_of(0), "p2-0": mig_uuid_of(2, 0)}
        assert (refused["state"], refused["cause"]) == (
            "Unready",
            f"GPU 0 ({uuid_of(0)}): the GPU does not answer: it is lost (fallen off the bus, or "
            "its driver hangs); no engine is started on another one",
        )
        assert running == {name: pid for name, pid in before.items() if name != "p0-0"}
        assert failures == 1
        assert mask_of(after["p0-0"]) == uuid_of(0)
        assert model_of(after["p0-0"]) == "builtin:smollm2"
        assert after["p0-0"] != before["p0-0"]


@pytest.mark.req("ORCH-3011")
def test_two_names_of_one_gpu_are_seen_before_anything_starts(
    host: ScriptedNvml, tmp_path: Path
) -> None:
    host.gpus(Gpu(0), Gpu(1))
    pools = [launched_pool(1, "a", devices=[1]), launched_pool(1, "b", devices=[uuid_of(1)])]
    service = ServiceProcess(tmp_path, *pools, platform={"cpu_carve_out": True})

    with pytest.raises(AssertionError):
        service.start()
    status = service.wait_exit(20.0)
    planned = plan(tmp_path, pools)

    assert status != 0
    assert "pools[1].devices[0]" in service.log_text()
    assert "is 1 of pool a, which launches engines on it too" in service.log_text()
    assert [entry["starts"] for entry in planned] == [True, False]
    assert planned[1]["message"].startswith(f"pools[b].devices names {uuid_of(1)}, which is 1 of")
    assert planned[0]["environment"]["CUDA_VISIBLE_DEVICES"] == uuid_of(1)


@pytest.mark.req("OC-POOL-3021", "ORCH-3012")
def test_an_unequal_split_is_explicit_and_the_smallest_gpu_caps_the_kv(
    host: ScriptedNvml, tmp_path: Path
) -> None:
    """The engine is a program that notes how it was started, in llama-server's place."""
    host.gpus(Gpu(0, {"total_mib": 24576}), Gpu(1, {"total_mib": 3072, "used_mib": 1024}))
    noted, server = tmp_path / "noted", tmp_path / "llama-server"
    server.write_text(
        f'#!/bin/sh\necho "$@" > {noted}.new\necho "$CUDA_VISIBLE_DEVICES" >> {noted}.new\n'
        f"mv {noted}.new {noted}\nexec sleep 1000\n"
    )
    server.chmod(0o755)
    launch = {"count": 1, "program": str(server), "slots": 1}
    pool = launched_pool(
        1, ctx=1 << 20, devices=[0, 1], launch=launch, memory={"ctx_min": 512, "headroom_ratio": 0}
    )

    (silent,) = plan(tmp_path, [pool]) or [{}]
    (alike,) = plan(tmp_path, [pool | {"homogeneous": True}])
    (split,) = plan(tmp_path, [pool | {"tensor_split": [3, 1]}])
    platform = {"cpu_carve_out": True}
    service = ServiceProcess(tmp_path, pool | {"tensor_split": [3, 1]}, platform=platform)
    try:
        service.start(until_ready=False)
        wait_until(noted.exists, 20.0, "the engine was started")
    finally:
        service.kill()
    arguments, mask = noted.read_text().splitlines()

    assert silent == {}  # the configuration is refused
    assert (alike["starts"], "give tensor_split" in alike["message"]) == (False, True)
    large, small, _ = split["memory"]
    # 24 and 6 of the 30 layers, 768 bytes of KV each.
    room = [
        (place["free_bytes"] - place["total_bytes"] + place["kv_bytes"]) // (layers * 768)
        for place, layers in ((large, 24), (small, 6))
    ]
    assert split["kv_tokens_max"] == room[1] < room[0]
    assert 512 <= split["ctx"] <= room[1] < pool["ctx"]
    words = arguments.split()
    assert words[words.index("--tensor-split") + 1] == "3,1"
    assert words[words.index("--ctx-size") + 1] == str(split["ctx"])
    assert mask == f"{uuid_of(0)},{uuid_of(1)}"


def plan(directory: Path, pools: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """`llama-orch pools plan`, one document per engine."""
    file = directory / "plan.json"
    document = {"auth": {"enabled": False}, "platform": {"cpu_carve_out": True}, "pools": pools}
    file.write_text(json.dumps(document))
    command = [sys.executable, "-m", "orch_cli.main", "pools", "plan", "--json"]
    done = subprocess.run(
        [*command, "--config", str(file)], capture_output=True, text=True, timeout=60
    )
    return [json.loads(line) for line in done.stdout.splitlines()]
