"""The generated metrics: names on the wire, bounded labels, and contracts that are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from orch_metrics import LABEL_BUDGETS, OrchMetrics
from orch_tools.codegen_metrics import MetricsContractError, check

CONTRACT: dict[str, Any] = {
    "labels": {"engine": {"budget": 2, "values": ["a", "b"]}},
    "buckets": {"ms": [1, 2]},
    "suffixes": {"ms": "_ms", "bytes": "_bytes"},
    "suffix_exceptions": [],
    "metrics": [
        {
            "name": "waits_ms",
            "type": "histogram",
            "unit": "ms",
            "help": "h",
            "labels": ["engine"],
            "buckets": "ms",
            "req": ["ORCH-3028"],
        }
    ],
}


def exposed(metrics: OrchMetrics) -> list[str]:
    text = generate_latest(metrics.registry).decode()
    return [line for line in text.splitlines() if not line.startswith("#")]


def test_a_counter_is_exposed_under_the_contract_s_name_and_labels() -> None:
    metrics = OrchMetrics(CollectorRegistry())

    metrics.tasks_rejected_total.labels(engine="llamacpp", reason="queue-full").inc(2)

    lines = [line for line in exposed(metrics) if line.startswith("tasks_rejected")]
    assert lines == ['tasks_rejected_total{engine="llamacpp",reason="queue-full"} 2.0']


@pytest.mark.req("OC-METRICS-7101")
def test_no_series_outside_the_contract_is_exposed() -> None:
    metrics = OrchMetrics(CollectorRegistry())

    metrics.latency_first_token_ms.labels(
        engine="vllm", engine_version="1", pool_id="p", priority="batch"
    ).observe(3)

    assert not [line for line in exposed(metrics) if "_created" in line]


@pytest.mark.req("OC-METRICS-7102")
def test_values_beyond_a_label_s_budget_are_counted_under_other() -> None:
    metrics = OrchMetrics(CollectorRegistry())
    tenants = [f"t{number}" for number in range(LABEL_BUDGETS["tenant"] + 50)]

    for tenant in tenants:
        metrics.admission_share.labels(tenant=tenant, priority="batch").set(1)

    lines = [line for line in exposed(metrics) if line.startswith("admission_share")]
    assert len(lines) == 256
    assert 'admission_share{priority="batch",tenant="other"} 1.0' in lines
    assert 'admission_share{priority="batch",tenant="t254"} 1.0' in lines


@pytest.mark.req("OC-METRICS-7102")
def test_a_value_that_was_there_before_the_budget_ran_out_keeps_its_series() -> None:
    metrics = OrchMetrics(CollectorRegistry())
    policies = metrics.admission_backpressure_events_total
    for policy in "abcdefghijklmnopqr":
        policies.labels(engine="tgi", policy=policy).inc()

    policies.labels(engine="tgi", policy="a").inc()

    lines = [line for line in exposed(metrics) if line.startswith("admission_backpressure")]
    assert 'admission_backpressure_events_total{engine="tgi",policy="a"} 2.0' in lines
    assert 'admission_backpressure_events_total{engine="tgi",policy="other"} 3.0' in lines


def test_a_value_outside_a_closed_list_is_counted_under_other() -> None:
    metrics = OrchMetrics(CollectorRegistry())

    metrics.errors_total.labels(code="NOT_A_CODE").inc()
    metrics.errors_total.labels(code="INTERNAL").inc()

    lines = [line for line in exposed(metrics) if line.startswith("errors_total")]
    assert sorted(lines) == ['errors_total{code="INTERNAL"} 1.0', 'errors_total{code="other"} 1.0']


def test_a_gauge_that_was_cleared_shows_only_what_is_set_again() -> None:
    metrics = OrchMetrics(CollectorRegistry())
    for device in ("0", "1"):
        metrics.gpu_lost.labels(device=device).set(1)

    metrics.gpu_lost.clear()
    metrics.gpu_lost.labels(device="1").set(0)

    assert [line for line in exposed(metrics) if "gpu_lost" in line] == ['gpu_lost{device="1"} 0.0']


def test_two_registries_do_not_share_series_or_budgets() -> None:
    first, second = OrchMetrics(CollectorRegistry()), OrchMetrics(CollectorRegistry())

    first.stream_readers.set(3)

    assert "stream_readers 3.0" in exposed(first)
    assert "stream_readers 0.0" in exposed(second)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "WaitsMs"}, "lower_snake_case"),
        ({"name": "waits_total"}, "exactly the counters end in _total"),
        ({"type": "summary"}, "unknown type"),
        ({"type": "gauge"}, "exactly the histograms have buckets"),
        ({"labels": ["client"]}, "no budget for client"),
        ({"help": ""}, "must not be empty"),
        ({"req": []}, "must not be empty"),
        ({"unit": "bytes"}, "wants the ending _bytes"),
        ({"unit": "tasks"}, "_ms is the ending of ms"),
        ({"planned": "later"}, "planned is true or absent"),
    ],
)
def test_a_contract_that_contradicts_itself_is_refused(
    change: dict[str, Any], message: str
) -> None:
    contract = copy.deepcopy(CONTRACT)
    contract["metrics"][0].update(change)

    check(CONTRACT)
    with pytest.raises(MetricsContractError, match=message):
        check(contract)


def test_a_closed_list_longer_than_its_budget_is_refused() -> None:
    contract = copy.deepcopy(CONTRACT)
    contract["labels"]["engine"]["budget"] = 1

    with pytest.raises(MetricsContractError, match="engine"):
        check(contract)
