"""`/metrics` of a service at work against the hand-written metrics contract."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import yaml
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families

from harness_kit.contract_files import CONTRACTS
from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import HttpProbe, task
from harness_kit.service_process import MODEL, POOL, ServiceProcess, external_pool, metric_in

_CONTRACT = yaml.safe_load((CONTRACTS / "metrics.yaml").read_text(encoding="utf-8"))
METRICS: dict[str, dict[str, Any]] = {metric["name"]: metric for metric in _CONTRACT["metrics"]}
LABELS: dict[str, dict[str, Any]] = _CONTRACT["labels"]
_SUFFIXES = {"counter": ("_total", "_created"), "histogram": ("_bucket", "_count", "_sum")}


@pytest.fixture(scope="module")
def engine() -> Iterator[GatedEngine]:
    with GatedEngine(slots=1) as running:
        yield running


@pytest.fixture(scope="module")
def lived(
    engine: GatedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[ServiceProcess, str]]:
    """A service, and its metrics after every outcome that such a pool can have."""
    pool = external_pool(engine.url, queue={"capacity": 1, "full_policy": "drop-lru"})
    with ServiceProcess(tmp_path_factory.mktemp("metrics"), pool) as running:
        with running.probe() as probe:
            live_through_everything(probe, engine)
        yield running, running.metrics()


def live_through_everything(probe: HttpProbe, engine: GatedEngine) -> None:
    for priority in ("interactive", "batch"):
        read(probe, admit(probe, priority=priority))
    engine.hold(2)
    cancelled = admit(probe)
    engine.wait_busy(1)
    dropped = admit(probe, priority="batch")
    waiting = admit(probe)
    refused = task(MODEL, priority="batch")
    assert probe.post("/v1/tasks", refused).status == 429
    assert probe.post(f"/v1/tasks/{cancelled}/cancel").status == 204
    late = admit(probe, determinism="best_effort")
    engine.allow()
    for task_id in (dropped, waiting, late):
        read(probe, task_id)
    assert probe.post("/v1/tasks", task("file:/models/none.gguf")).status == 503
    assert probe.get("/docs/nowhere").status == 404


@pytest.fixture
def service(lived: tuple[ServiceProcess, str]) -> ServiceProcess:
    return lived[0]


@pytest.fixture
def scenario(lived: tuple[ServiceProcess, str]) -> str:
    return lived[1]


def admit(probe: HttpProbe, **fields: Any) -> str:
    document = task(MODEL, **fields)
    assert probe.post("/v1/tasks", document).status == 202
    return str(document["task_id"])


def read(probe: HttpProbe, task_id: str) -> None:
    assert probe.stream(task_id).rest()[-1].terminal


def families(service: ServiceProcess) -> dict[str, Metric]:
    """The exposition, by the name of the contract."""
    found = {}
    for family in text_string_to_metric_families(service.metrics()):
        name = f"{family.name}_total" if family.type == "counter" else family.name
        found[name] = family
    return found


@pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
@pytest.mark.req("OC-CTRL-2051", partial="their values")
@pytest.mark.req("OC-CORE-1041", partial="the values of GPU utilisation")
def test_every_name_type_and_label_is_the_contract_s(service: ServiceProcess) -> None:
    shown = families(service)

    assert set(shown) <= set(METRICS)
    for name, family in shown.items():
        wanted = METRICS[name]
        assert family.type == wanted["type"], name
        assert family.documentation == wanted["help"], name
        for sample in family.samples:
            assert set(sample.labels) - {"le"} == set(wanted["labels"]), sample
            if family.type == "histogram":
                assert sample.name.removeprefix(name) in _SUFFIXES["histogram"]


@pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
def test_every_metric_of_the_contract_is_exposed(service: ServiceProcess) -> None:
    assert set(METRICS) - set(families(service)) == set()


@pytest.mark.req("OC-METRICS-7102")
@pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
def test_label_values_stay_within_their_budgets_and_closed_lists(service: ServiceProcess) -> None:
    for name, family in families(service).items():
        values: dict[str, set[str]] = {}
        for sample in family.samples:
            for label, value in sample.labels.items():
                values.setdefault(label, set()).add(value)
        for label, seen in values.items():
            if label == "le":
                continue
            assert len(seen) <= LABELS[label]["budget"] + 1, (name, label)
            closed = LABELS[label].get("values")
            if closed is not None:
                assert seen <= {*closed, "other", ""}, (name, label)


@pytest.mark.req("OC-CTRL-2051")
@pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
@pytest.mark.req("ORCH-3087", partial="values: nothing is preempted here")
def test_counters_tell_what_has_happened(scenario: str) -> None:
    finished = {
        outcome: metric_in(scenario, "tasks_finished_total", pool_id=POOL, outcome=outcome)
        for outcome in ("completed", "canceled", "dropped")
    }

    assert finished == {"completed": 4, "canceled": 1, "dropped": 1}
    assert metric_in(scenario, "tasks_enqueued_total", pool_id=POOL) == 6
    assert metric_in(scenario, "tasks_canceled_total", pool_id=POOL) == 1
    assert metric_in(scenario, "admission_backpressure_events_total", policy="drop-lru") >= 1
    assert metric_in(scenario, "errors_total", code="POOL_UNAVAILABLE") == 1
    assert metric_in(scenario, "errors_total", code="QUEUE_FULL_DROP_LRU") == 2
    assert metric_in(scenario, "http_requests_total", operation="submit_task", status="202") == 6
    assert metric_in(scenario, "http_requests_total", operation="submit_task", status="429") == 1
    assert metric_in(scenario, "latency_queue_ms_count", pool_id=POOL) == 5
    assert metric_in(scenario, "cpu_carve_out") == 1
    assert metric_in(scenario, "build_info") == 1
    assert metric_in(scenario, "replica_ready", pool_id=POOL) == 1
    assert metric_in(scenario, "slots", pool_id=POOL) == 1
    assert metric_in(scenario, "journal_commits_total") >= 1


@pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
def test_token_counters_grow_by_what_was_sent(service: ServiceProcess) -> None:
    before = service.metric("tokens_out_total"), service.metric("tokens_in_total")
    with service.probe() as probe:
        read(probe, admit(probe, max_tokens=17, prompt="one two three"))

    after = service.metric("tokens_out_total"), service.metric("tokens_in_total")

    assert (after[0] - before[0], after[1] - before[1]) == (17, 3)


@pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
@pytest.mark.req("ORCH-3004", partial="all but the gauge of its depth")
def test_gauges_follow_queue_slots_and_readers(
    service: ServiceProcess, engine: GatedEngine
) -> None:
    names = ("queue_depth", "tasks_running", "slots_busy", "stream_readers")
    engine.hold()
    with service.probe() as probe, service.probe() as reader:
        running = admit(probe)
        admit(probe, priority="batch")
        stream = reader.stream(running)
        stream.take(1)
        at_work = {name: service.metric(name) for name in names}
        engine.allow()
        stream.rest()
    engine.wait_busy(0)
    service.wait_metric("queue_depth", 0)
    service.wait_metric("stream_readers", 0)
    service.wait_metric("tasks_running", 0)

    assert at_work == {"queue_depth": 1, "tasks_running": 1, "slots_busy": 1, "stream_readers": 1}
    assert service.metric("slots_busy") == 0
