"""Objectives of a running service: what operators see of them, and the breaker that acts on them.

No test depends on how fast this machine is: goals are a minute, which everything keeps, or a
millisecond, and four of five tasks are held until the fifth has begun.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import HttpProbe, task
from harness_kit.service_process import CONTROL_KEY, MODEL, POOL, ServiceProcess, external_pool
from harness_kit.waiting import wait_until

MINUTE_MS = 60_000
AT_ONCE = 5
PATIENCE_S = 30.0


@pytest.fixture
def engine() -> Iterator[GatedEngine]:
    with GatedEngine(slots=8) as running:
        yield running


def admit(probe: HttpProbe, model: str = MODEL, **fields: Any) -> str:
    document = task(model, **({"max_tokens": 1} | fields))
    answer = probe.post("/v1/tasks", document)
    assert answer.status == 202, answer
    return str(document["task_id"])


def late_tasks(probe: HttpProbe, engine: GatedEngine) -> None:
    """A few interactive tasks that wait for their first token until the last one has begun; that
    one may have it within a millisecond."""
    engine.hold()
    admitted = [admit(probe) for _ in range(AT_ONCE)]
    engine.wait_busy(AT_ONCE)
    engine.allow()
    for task_id in admitted:
        assert probe.stream(task_id).rest()[-1].name == "end"


def be_late_until_open(service: ServiceProcess, probe: HttpProbe, engine: GatedEngine) -> None:
    def is_open() -> bool:
        late_tasks(probe, engine)
        return service.metric("admission_breaker_open", pool_id=POOL, priority="batch") == 1

    wait_until(is_open, PATIENCE_S, "the circuit breaker opens")


def replica_set(service: ServiceProcess) -> dict[str, Any]:
    with service.probe(CONTROL_KEY) as operator:
        (shown,) = operator.get("/v1/replicasets").json()
    slo: dict[str, Any] = shown["slo"]
    return slo


@pytest.mark.req("ORCH-2104", "OC-CTRL-2004")
@pytest.mark.req("ORCH-3028", partial="SLO attainment")
@pytest.mark.req("ORCH-3041", partial="measured; alerts are not built")
def test_replica_sets_pool_health_and_metrics_tell_what_was_measured(
    engine: GatedEngine, tmp_path: Path
) -> None:
    goals = {"first_token_p95_ms": MINUTE_MS, "tokens_64_p95_ms": MINUTE_MS}
    with (
        ServiceProcess(tmp_path, external_pool(engine.url), slos={"interactive": goals}) as service,
        service.probe() as probe,
    ):
        at_first = replica_set(service)
        for task_id in [admit(probe, max_tokens=2) for _ in range(24)]:
            assert probe.stream(task_id).rest()[-1].name == "end"
        engine.hold(1)
        fails = admit(probe, max_tokens=2, determinism="best_effort")
        stream = probe.stream(fails)
        assert [event.name for event in stream.take(2)] == ["started", "token"]
        engine.break_decodes()
        error = stream.rest()[-1]
        engine.allow()
        service.wait_metric("replica_ready", 1)  # a set without a Ready replica is not listed

        slo = replica_set(service)
        with service.probe(CONTROL_KEY) as operator:
            health = operator.get(f"/v1/pools/{POOL}/health").json()["metrics"]
        where = {"engine": "llamacpp", "pool_id": POOL, "priority": "interactive"}
        metrics = {
            name: (
                service.metric("slo_value", objective=name, **where),
                service.metric("slo_attainment_ratio", objective=name, **where),
            )
            for name in (*goals, "error_ratio")
        }
        batch = service.metric("slo_value", priority="batch")

    assert at_first == {}
    assert error.data["code"] == "WORKER_RESET"
    assert {name for name in slo if not name.endswith("_attainment_ratio")} == {
        "interactive.first_token_p95_ms",
        "interactive.tokens_64_p95_ms",
        "interactive.error_ratio",
    }
    assert 0 < slo["interactive.first_token_p95_ms"] <= MINUTE_MS
    assert slo["interactive.first_token_p95_ms_attainment_ratio"] == 1
    assert slo["interactive.tokens_64_p95_ms_attainment_ratio"] == 1
    assert slo["interactive.error_ratio"] == pytest.approx(1 / 25)
    assert slo["interactive.error_ratio_attainment_ratio"] == pytest.approx(24 / 25)
    assert {name: health[f"slo.{name}"] for name in slo} == slo
    for name, (value, met_ratio) in metrics.items():
        assert slo[f"interactive.{name}"] == pytest.approx(value, abs=1e-4)
        assert slo[f"interactive.{name}_attainment_ratio"] == pytest.approx(met_ratio, abs=1e-4)
    assert batch == 0


@pytest.mark.req("ORCH-3040")
def test_batch_work_is_refused_while_an_interactive_objective_stays_violated(
    engine: GatedEngine, tmp_path: Path
) -> None:
    breaker = {"enabled": True, "open_after_s": 2, "close_after_s": 2}
    pool = external_pool(engine.url, admission={"circuit_breaker": breaker})
    slos = {"window_s": 10, "interactive": {"first_token_p95_ms": 1}}
    with ServiceProcess(tmp_path, pool, slos=slos) as service, service.probe() as probe:
        be_late_until_open(service, probe, engine)
        document = task(MODEL, priority="batch")
        refused = probe.post("/v1/tasks", document)
        attained = service.metric("slo_attainment_ratio", objective="first_token_p95_ms")
        admit(probe)
        counted = service.metric("tasks_rejected_total", reason="circuit-breaker")
        backpressure = service.metric(
            "admission_backpressure_events_total", policy="circuit-breaker"
        )
        wait_until(
            lambda: probe.post("/v1/tasks", document).status == 202, PATIENCE_S, "it is admitted"
        )
        ends = probe.stream(document["task_id"]).rest()
        service.wait_metric("admission_breaker_open", 0, pool_id=POOL)
        told = {
            event: service.wait_log(event, pool_id=POOL)
            for event in ("slo.violated", "breaker.opened", "breaker.closed")
        }

    assert refused.status == 429
    envelope = refused.json()
    assert envelope["code"] == "ADMISSION_REJECT"
    assert (envelope["policy_label"], envelope["pool_id"]) == ("circuit-breaker", POOL)
    assert envelope["retriable"] is True
    assert 1 <= envelope["retry_after_ms"] <= 2_000
    assert refused.headers["x-backoff-ms"] == str(envelope["retry_after_ms"])
    assert "interactive.first_token_p95_ms" in envelope["message"]
    assert attained < 0.5
    assert (counted, backpressure) == (1, 1)
    assert ends[-1].name == "end"
    assert told["slo.violated"][0]["objective"] == "first_token_p95_ms"
    assert told["slo.violated"][0]["met_ratio"] < 0.5
    assert told["breaker.opened"][0]["priority"] == "batch"
    assert told["breaker.opened"][0]["refused"] == ["batch"]
    assert told["breaker.closed"][0]["refused"] == []


@pytest.mark.req("ORCH-3040")
def test_another_pool_of_the_model_takes_what_one_refuses(
    engine: GatedEngine, tmp_path: Path
) -> None:
    breaker = {"enabled": True, "open_after_s": 2, "close_after_s": 600}
    refusing = external_pool(engine.url, admission={"circuit_breaker": breaker})
    slos = {"window_s": 10, "interactive": {"first_token_p95_ms": 1}}
    with (
        GatedEngine(slots=1) as other,
        ServiceProcess(
            tmp_path, refusing, external_pool(other.url, pool_id="p1"), slos=slos
        ) as service,
        service.probe() as probe,
    ):
        for pool_id in (POOL, "p1"):
            service.wait_metric("replica_ready", 1, pool_id=pool_id)
        be_late_until_open(service, probe, engine)
        taken = admit(probe, priority="batch")
        assert probe.stream(taken).rest()[-1].name == "end"
        (line,) = service.wait_log("task.ended", job_id=taken)
        refused = service.metric("tasks_rejected_total", reason="circuit-breaker")

    assert line["pool_id"] == "p1"
    assert refused == 0
