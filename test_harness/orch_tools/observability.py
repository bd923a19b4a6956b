"""`contracts/observability.yaml` as the generators of dashboards, alerts and runbooks read it.

Invariant: every expression asks for metrics that the metrics contract has and something sets, by
labels that these metrics have; what is misspelt there fails `make regen`, not an operator at night.
Whether an expression is PromQL `promtool` says (test_harness/metrics_contract). Requirements:
ORCH-3041, OC-METRICS-7101.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import yaml

from orch_tools import codegen_metrics

SOURCE_PATH = "contracts/observability.yaml"

# Labels that Prometheus itself gives.
_SCRAPE_LABELS = {"up": {"job", "instance"}}
_PARTS = ("_bucket", "_sum", "_count")

_STRING = re.compile(r'"[^"]*"' + r"|'[^']*'")
_GROUPING = re.compile(r"\b(?:by|without|on|ignoring)\s*\(([^)]*)\)")
_RANGE = re.compile(r"\[[^\]]*\]")
_SELECTOR = re.compile(r"\b([a-zA-Z_:][\w:]*)(?![\w:])\s*(\{[^}]*\})?(?!\s*\()")
_MATCHER = re.compile(r"([a-zA-Z_]\w*)\s*[=!]")
_KEYWORDS = frozenset({"by", "without", "on", "ignoring", "and", "or", "unless", "bool", "offset"})

# What the recording rules give, by the window's name in front; its labels.
MISSED = "priority_objective:slo_missed:ratio_rate"
MISSED_LABELS = ("priority", "objective")


class ObservabilityError(Exception):
    """The declaration contradicts itself or the metrics contract; names the place and the rule."""


def read(root: Path) -> dict[str, Any]:
    """The declaration, checked. Raises `ObservabilityError`."""
    declared: dict[str, Any] = yaml.safe_load((root / SOURCE_PATH).read_text(encoding="utf-8"))
    contract = yaml.safe_load((root / codegen_metrics.SOURCE_PATH).read_text(encoding="utf-8"))
    check(declared, contract)
    return declared


def check(declared: dict[str, Any], contract: dict[str, Any]) -> None:
    """Raises `ObservabilityError` for a metric or label that nobody exposes, and for a name that
    is taken."""
    labels = metric_labels(contract)
    for rate in declared["burn_rates"]:
        labels[MISSED + rate["long"]] = labels[MISSED + rate["short"]] = set(MISSED_LABELS)
    names = [alert["alert"] for alert in (*declared["slos"], *declared["alerts"])]
    uids = [dashboard["uid"] for dashboard in declared["dashboards"]]
    for taken in (names, uids):
        if twice := {name for name in taken if taken.count(name) > 1}:
            raise ObservabilityError(f"{', '.join(sorted(twice))}: declared twice")
    objectives = contract["labels"]["objective"]["values"]
    for slo in declared["slos"]:
        if slo["objective"] not in objectives:
            raise ObservabilityError(f"{slo['alert']}: no objective {slo['objective']}")
    for place, expression in expressions(declared):
        _check_expression(place, expression, labels)


def metric_labels(contract: dict[str, Any]) -> dict[str, set[str]]:
    """The labels of every series that something sets, by its name in a query."""
    found = {name: set(labels) for name, labels in _SCRAPE_LABELS.items()}
    for metric in contract["metrics"]:
        if metric.get("planned"):
            continue
        if metric["type"] == "histogram":
            for part in _PARTS:
                le = {"le"} if part == "_bucket" else set()
                found[metric["name"] + part] = {*metric["labels"], *le}
        else:
            found[metric["name"]] = set(metric["labels"])
    return found


def expressions(declared: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """(place, expression) of every alert and every query of a panel."""
    for alert in declared["alerts"]:
        yield alert["alert"], alert["expr"]
    for dashboard in declared["dashboards"]:
        for panel in dashboard["panels"]:
            for expression, _ in panel["queries"]:
                yield f"{dashboard['uid']}: {panel['title']}", expression


def series_of(expression: str) -> Iterable[tuple[str, set[str]]]:
    """(name, labels that it is selected by) of every series that an expression asks for."""
    bare = _RANGE.sub("", _GROUPING.sub("", _STRING.sub('""', expression)))
    for name, matchers in _SELECTOR.findall(bare):
        if name not in _KEYWORDS:
            yield name, set(_MATCHER.findall(matchers))


def _check_expression(place: str, expression: str, labels: dict[str, set[str]]) -> None:
    known: set[str] = set()
    for name, selected in series_of(expression):
        if name not in labels:
            raise ObservabilityError(f"{place}: {name} is no metric that something sets")
        if unknown := selected - labels[name]:
            raise ObservabilityError(f"{place}: {name} has no label {', '.join(sorted(unknown))}")
        known |= labels[name]
    for grouping in _GROUPING.findall(expression):
        asked = {label.strip() for label in grouping.split(",")} - {""}
        if unknown := asked - known:
            raise ObservabilityError(f"{place}: grouped by {', '.join(sorted(unknown))}")
