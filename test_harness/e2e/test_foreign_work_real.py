"""An engine that somebody else uses as well, with a real model behind it.

Nothing is decided by a clock: the foreign answer lasts far longer than the test and is ended by it.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness_kit.http_probe import HttpProbe, task
from harness_kit.llamacpp_engine import LlamaCppEngine
from harness_kit.service_process import CONTROL_KEY, MODEL, ServiceProcess, external_pool
from harness_kit.waiting import wait_until

CTX = 8192  # somebody else's answer fills it: a minute and more
SLOW_S = 60.0


def begin_directly(somebody: HttpProbe) -> None:
    """A completion that the service knows nothing of has begun; closing the connection ends it."""
    body = {"prompt": "Once upon a time", "n_predict": CTX, "ignore_eos": True, "stream": True}
    headers = {"Content-Type": "application/json"}
    somebody.send("POST", "/completion", json.dumps(body).encode(), headers)
    assert somebody.read_head()[0] == 200
    assert somebody.take(1)


def free_slots(control: HttpProbe) -> float:
    figures = control.get("/v1/pools/p0/health").json()["metrics"]
    return float(figures["slots_free"])


@pytest.mark.req("ORCH-3019")
def test_a_slot_that_somebody_else_keeps_busy_is_not_offered_until_it_is_free(
    tmp_path: Path,
) -> None:
    with (
        LlamaCppEngine(ctx=CTX, parallel=1) as engine,
        ServiceProcess(tmp_path, external_pool(engine.url)) as service,
        service.probe() as probe,
        service.probe(CONTROL_KEY) as control,
        HttpProbe(engine.port, timeout_s=SLOW_S) as somebody,
    ):
        service.wait_metric("replica_ready", 1, SLOW_S)
        assert free_slots(control) == 1

        begin_directly(somebody)
        wait_until(lambda: free_slots(control) == 0, SLOW_S, "the foreign answer is noticed")
        document = task(MODEL, max_tokens=4)
        promised = probe.post("/v1/tasks", document)

        assert promised.status == 202
        assert promised.json()["predicted_start_ms"] >= 1000
        assert (service.metric("queue_depth"), service.metric("slots_busy")) == (1, 0)

        somebody.close()

        assert probe.stream(document["task_id"]).rest()[-1].name == "end"
        wait_until(lambda: free_slots(control) == 1, SLOW_S, "all slots are free again")
