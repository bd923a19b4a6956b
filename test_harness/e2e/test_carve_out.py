"""Where inference may run: one configuration without and with leave to use the CPU.

The default launcher is llama.cpp's CPU build, so that its engines infer on a CPU on any machine.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import task
from harness_kit.service_process import (
    CONTROL_KEY,
    MODEL,
    ServiceProcess,
    external_pool,
    launched_pool,
)
from harness_kit.waiting import wait_until


@pytest.mark.req("ORCH-1101")
def test_a_host_without_leave_schedules_and_runs_no_engine_and_leave_is_seen_everywhere(
    tmp_path: Path,
) -> None:
    with GatedEngine() as engine:
        pools = [external_pool(engine.url), launched_pool(1, "here")]
        service = ServiceProcess(tmp_path, *pools, platform={})  # what nobody says is off
        try:
            service.start()
            wait_until(lambda: state(service)["last_error"] is not None, 20.0, "the refusal")
            listed = (service.state_dir / "engines.json").exists()
            without = state(service), listed, capabilities(service)
            without_metric = service.metric("cpu_carve_out")
            with service.probe() as probe:
                elsewhere = probe.post("/v1/tasks", task(MODEL)).status
            service.kill()
            service.config["platform"]["cpu_carve_out"] = True
            service.start()
            wait_until(lambda: state(service)["state"] == "Ready", 60.0, "the engine is Ready")
            with_leave = service.engine_pids(), capabilities(service)
            with_metric = service.metric("cpu_carve_out")
            (warning, *_) = service.wait_log("pool.cpu_carve_out", pool_id="here")
        finally:
            service.kill()

    assert without[0]["state"] == "Unready"
    assert without[0]["last_error"]["code"] == "carve-out"
    assert (without[1], without[2], without_metric) == (False, False, 0)
    assert elsewhere == 202  # the control plane and the scheduler work
    assert ([*with_leave[0]], with_leave[1], with_metric) == (["here-0"], True, 1)
    assert (warning["level"], "INFERENCE ON CPU" in warning["advice"]) == ("warning", True)


def state(service: ServiceProcess) -> dict[str, Any]:
    """Health of the pool that is launched here."""
    with service.probe(CONTROL_KEY) as probe:
        document: dict[str, Any] = probe.get("/v1/pools/here/health").json()
    return {"last_error": None} | document


def capabilities(service: ServiceProcess) -> bool:
    """What the service says of inference on CPUs."""
    with service.probe(CONTROL_KEY) as probe:
        said: bool = probe.get("/v1/capabilities").json().get("cpu_carve_out", False)
    return said
