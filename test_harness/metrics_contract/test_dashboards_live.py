"""Every panel of every generated dashboard has data in a real Prometheus that scraped a busy run.

The pictures drawn of it go to the reports; `make previews` keeps a copy in docs/dashboards.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness_kit.contract_files import CONTRACTS
from harness_kit.prometheus_process import Series
from harness_kit.report_files import report_file
from metrics_contract.previews import draw, legend_of
from metrics_contract.stage import Stage
from orch_metrics import DEFINITIONS
from orch_tools.codegen_dashboards import DIRECTORY
from orch_tools.observability import series_of

FILES = sorted((CONTRACTS.parent / DIRECTORY).glob("*.json"))
STEP_S = 0.1  # below the time between two scrapes: what one of them saw is found
PREVIEW_BYTES_MAX = 150_000


def asked(expression: str) -> str:
    """The expression as Grafana sends it, with a rate window that fits the scrapes of this run."""
    return expression.replace("$__rate_interval", "3s").replace("$pool_id", ".*")


def dashboard_of(uid: str) -> dict[str, Any]:
    (path,) = (path for path in FILES if path.stem == uid)
    document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return document


def test_there_are_the_five_dashboards_and_each_metric_is_on_one_of_them() -> None:
    expressions = [
        target["expr"]
        for path in FILES
        for panel in dashboard_of(path.stem)["panels"]
        for target in panel["targets"]
    ]

    shown = {name for each in expressions for name, _ in series_of(asked(each))}

    assert [path.stem.removeprefix("llama-orch-") for path in FILES] == [
        *("admission", "failover", "fairness", "gpu", "latency")
    ]
    for metric in DEFINITIONS:
        names = {metric.name + part for part in ("", "_bucket", "_count", "_sum")}
        # slo_tasks_total is shown as the recording rules make it a share.
        assert metric.planned or metric.name == "slo_tasks_total" or names & shown, metric.name


@pytest.mark.req("ORCH-3028", "OC-CORE-1041")
@pytest.mark.parametrize("uid", [path.stem for path in FILES])
def test_every_query_of_every_panel_returns_data(stage: Stage, uid: str) -> None:
    dashboard = dashboard_of(uid)
    graphs: dict[str, list[tuple[str, Series]]] = {}
    empty = []
    for panel in dashboard["panels"]:
        drawn = graphs[panel["title"]] = []
        for target in panel["targets"]:
            query = asked(target["expr"])
            found = stage.prometheus.graph(query, stage.began_s, stage.ended_s, STEP_S)
            drawn += [(legend_of(target["legendFormat"], each.labels), each) for each in found]
            if not found:
                empty.append((panel["title"], query))
    picture = report_file(f"dashboards/{uid}.png")
    draw(dashboard, graphs, stage.began_s, picture)

    assert empty == []
    assert 0 < picture.stat().st_size < PREVIEW_BYTES_MAX


@pytest.mark.req("ORCH-3041")
def test_the_recorded_share_of_missed_objectives_is_that_of_the_tasks(stage: Stage) -> None:
    query = 'priority_objective:slo_missed:ratio_rate5m{objective="error_ratio"}'
    missed = 'sum by (priority) (slo_tasks_total{result="missed",objective="error_ratio"})'

    recorded = stage.prometheus.graph(query, stage.began_s, stage.ended_s, STEP_S)
    failed = stage.prometheus.graph(missed, stage.began_s, stage.ended_s, STEP_S)

    assert {series.labels["priority"] for series in recorded} == {"interactive", "batch"}
    assert all(value == 0 for series in (*recorded, *failed) for _, value in series.points)
