"""The linter of `/metrics`: clean on the live service at every moment, and red for each rule."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest

from harness_kit.report_files import report_file
from harness_kit.service_process import METRICS_KEY
from metrics_contract.stage import Stage
from orch_metrics import LABEL_BUDGETS, OrchMetrics
from orch_tools import metrics_lint
from orch_tools.metrics_lint import Finding

RULES = metrics_lint.rules()


def exposition() -> str:
    """One that keeps the contract, with a few series."""
    metrics = OrchMetrics(CollectorRegistry())
    metrics.queue_depth.labels(
        engine="llamacpp", engine_version="1", pool_id="p", priority="batch"
    ).set(1)
    metrics.deadlines_met_ratio.labels(priority="batch").set(0.5)
    metrics.failover_recovery_ms.labels(engine="llamacpp", pool_id="p").observe(3)
    return bytes(generate_latest(metrics.registry)).decode()


@pytest.mark.req("OC-METRICS-7101", "OC-METRICS-7102", "ORCH-3028")
def test_the_live_service_keeps_its_contract_whatever_happens(stage: Stage) -> None:
    last = stage.seen["lose_gpu"].after
    report_file("metrics/exposition.txt").write_text(last, "utf-8")

    found = {deed: metrics_lint.lint(seen.after, RULES) for deed, seen in stage.seen.items()}

    assert found == {deed: [] for deed in stage.seen}
    assert metrics_lint.promtool_lint(last, RULES) == []


def test_an_exposition_that_keeps_the_contract_has_no_findings() -> None:
    assert metrics_lint.lint(exposition(), RULES) == []


@pytest.mark.req("OC-METRICS-7101", "OC-METRICS-7102")
@pytest.mark.parametrize(
    ("old", "new", "metric", "rule"),
    [
        ("stream_readers", "stream_viewers", "stream_viewers", "undeclared"),
        ("stream_readers", "stream_viewers", "stream_readers", "missing"),
        ("stream_readers gauge", "stream_readers untyped", "stream_readers", "type"),
        ("Open event streams.", "Streams.", "stream_readers", "help"),
        ('pool_id="p",priority', "priority", "queue_depth", "labels"),
        ('pool_id="p",priority', 'pool_id="p",zone="z",priority', "queue_depth", "labels"),
        ('priority="batch"} 0.5', 'priority="urgent"} 0.5', "deadlines_met_ratio", "value"),
        ('priority="batch"} 0.5', 'priority="batch"} 50', "deadlines_met_ratio", "unit"),
        ('priority="batch"} 0.5', 'priority="batch"} -0.5', "deadlines_met_ratio", "unit"),
        ("journal_failing 0.0", "journal_failing 0.5", "journal_failing", "unit"),
        ("journal_commits_total 0.0", "journal_commits_total NaN", "journal_commits_total", "unit"),
        ('le="20.0"', 'le="30.0"', "failover_recovery_ms", "buckets"),
        (
            "TYPE model_state gauge",
            "TYPE model_state gauge\nmodel_state 1",
            "model_state",
            "planned",
        ),
        ("stream_readers 0.0", "stream_readers zero", "", "syntax"),
    ],
)
def test_what_breaks_a_rule_is_found(old: str, new: str, metric: str, rule: str) -> None:
    broken = exposition().replace(old, new)

    found = metrics_lint.lint(broken, RULES)

    assert broken != exposition()
    assert (metric, rule) in [(each.metric, each.rule) for each in found]


@pytest.mark.req("OC-METRICS-7102")
def test_a_label_with_more_values_than_its_budget_is_found() -> None:
    one = 'admission_share{priority="batch",tenant="%d"} 0.1'
    budget = LABEL_BUDGETS["tenant"]
    head = "# TYPE admission_share gauge"

    def with_tenants(count: int) -> list[Finding]:
        lines = "\n".join([head, *(one % number for number in range(count))])
        return metrics_lint.lint(exposition().replace(head, lines), RULES)

    assert with_tenants(budget) == []
    (found,) = with_tenants(budget + 1)
    assert (found.metric, found.rule) == ("admission_share", "budget")


def test_promtool_says_what_every_exposition_must_keep() -> None:
    broken = exposition().replace("# HELP stream_readers Open event streams.\n", "")

    (found,) = metrics_lint.promtool_lint(broken, RULES)

    assert metrics_lint.promtool_lint(exposition(), RULES) == []
    assert (found.metric, found.message) == ("stream_readers", "no help text")


def test_without_promtool_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")

    with pytest.raises(metrics_lint.PromtoolMissing, match="apt-get install prometheus"):
        metrics_lint.promtool_lint("", RULES)


def command(*words: str, key: str = METRICS_KEY) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orch_tools", "metrics-lint", *words],
        env=os.environ | {"LLAMA_ORCH_API_KEY": key},
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_the_command_judges_a_running_service_and_a_file(stage: Stage, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{stage.service.port}"
    broken = tmp_path / "metrics.txt"
    broken.write_text(exposition().replace("stream_readers", "stream_viewers"), "utf-8")

    live, keyless = command(url), command(url, key="")
    text, as_json = command(str(broken), "--no-promtool"), command(str(broken), "--json")

    assert (live.returncode, live.stdout.split(", ")[1]) == (0, "0 findings\n")
    assert (keyless.returncode, "401" in keyless.stderr) == (2, True)
    assert text.returncode == 1
    assert text.stdout.startswith("stream_readers: missing: ")
    found = [(each["metric"], each["rule"]) for each in json.loads(as_json.stdout)]
    assert found == [("stream_readers", "missing"), ("stream_viewers", "undeclared")]
