"""`contracts/metrics.yaml` -> one typed class with every metric, and the rules for linters as JSON.

Each metric with labels gets a small class whose `labels` takes exactly the contract's labels as
keywords, so that a wrong or missing label is a type error and not a new time series; the budget of
every label is enforced there (OC-METRICS-7102). Requirements: ORCH-3028, OC-METRICS-7101.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

SOURCE_PATH = "contracts/metrics.yaml"
PACKAGE = "generated/orch_metrics"
LINT_RULES = f"{PACKAGE}/metrics.lint.json"

_TYPES = {"counter": "Counter", "gauge": "Gauge", "histogram": "Histogram"}
_FIELDS = {"name", "type", "unit", "help", "labels", "buckets", "req", "planned"}
_NAME = re.compile(r"[a-z][a-z0-9_]*\Z")

_HEADER = f'''"""Metrics of the contract, typed. Generated from {SOURCE_PATH}; do not edit.

Bind a child once (`metrics.queue_depth.labels(...)`) and keep it; looking it up costs more than
counting. A label value beyond its budget, or outside a closed list, is counted under `other`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

OTHER = "other"
'''

_BUDGET = '''

@dataclass(frozen=True, slots=True)
class Definition:
    """One metric as the contract has it."""

    name: str
    type: str
    unit: str
    labels: tuple[str, ...]
    help: str
    req: tuple[str, ...]
    # Declared, and nothing sets it yet.
    planned: bool


class LabelBudget:
    """The label values that one metric has taken so far, and the one place that bounds them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._labels = [
            (CLOSED_LABELS.get(name), LABEL_BUDGETS[name], set[str]()) for name in names
        ]
        self._lock = threading.Lock()

    def fit(self, *values: str) -> tuple[str, ...]:
        """The values to use, each as given or `other`; in the order of the metric's labels."""
        return tuple(map(self._fit_one, self._labels, values))

    def _fit_one(self, label: tuple[frozenset[str] | None, int, set[str]], value: str) -> str:
        closed, budget, seen = label
        if closed is not None:
            return value if value in closed else OTHER
        if value in seen:
            return value
        with self._lock:
            # One of the budgeted values is `other` itself.
            if len(seen) >= budget - 1:
                return OTHER
            seen.add(value)
            return value
'''


class MetricsContractError(Exception):
    """The metrics contract contradicts itself; names the metric and the rule."""


def check(contract: dict[str, Any]) -> None:
    """Raises `MetricsContractError` for what would make wrong or missing code."""
    names: set[str] = set()
    for metric in contract["metrics"]:
        name = metric["name"]
        if name in names or not _NAME.match(name):
            raise MetricsContractError(f"{name}: taken, or not in lower_snake_case")
        names.add(name)
        if metric["type"] not in _TYPES or set(metric) - _FIELDS:
            raise MetricsContractError(f"{name}: unknown type or field")
        if (metric["type"] == "counter") != name.endswith("_total"):
            raise MetricsContractError(f"{name}: exactly the counters end in _total")
        if (metric["type"] == "histogram") != ("buckets" in metric):
            raise MetricsContractError(f"{name}: exactly the histograms have buckets")
        unknown = [label for label in metric["labels"] if label not in contract["labels"]]
        if unknown:
            raise MetricsContractError(f"{name}: no budget for {', '.join(unknown)}")
        if not metric["req"] or not metric["help"] or not metric["unit"]:
            raise MetricsContractError(f"{name}: help, unit and req must not be empty")
        if not isinstance(metric.get("planned", False), bool):
            raise MetricsContractError(f"{name}: planned is true or absent")
        check_suffix(contract, name, metric["unit"])
    for label, rule in contract["labels"].items():
        if len(rule.get("values", ())) > rule["budget"]:
            raise MetricsContractError(f"label {label}: more values than its budget")
    for name, bounds in contract["buckets"].items():
        if sorted(set(bounds)) != bounds:
            raise MetricsContractError(f"buckets {name}: must rise")


def check_suffix(contract: dict[str, Any], name: str, unit: str) -> None:
    """A name ends in its unit, and in no other. Raises `MetricsContractError`."""
    suffixes, stem = contract["suffixes"], name.removesuffix("_total")
    if name in contract["suffix_exceptions"]:
        return
    if not stem.endswith(suffixes.get(unit, "")):
        raise MetricsContractError(f"{name}: the unit {unit} wants the ending {suffixes[unit]}")
    for other, suffix in suffixes.items():
        if stem.endswith(suffix) and other != unit:
            raise MetricsContractError(f"{name}: {suffix} is the ending of {other}, not of {unit}")


def strings(values: list[str]) -> str:
    """A Python tuple of strings."""
    comma = "," if len(values) == 1 else ""
    return f"({', '.join(map(_quoted, values))}{comma})"


def _quoted(value: str) -> str:
    return '"' + value.replace("\\", "\\\\").replace('"', '\\"') + '"'


def class_name(metric: str) -> str:
    """tasks_running -> TasksRunning."""
    return "".join(part.capitalize() for part in metric.split("_"))


_CLEAR = '''
    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()
'''


def metric_class(metric: dict[str, Any]) -> str:
    """The class of a metric with labels."""
    kind, labels = _TYPES[metric["type"]], metric["labels"]
    keywords = ", ".join(f"{label}: str" for label in labels)
    clear = _CLEAR if kind == "Gauge" else ""
    return f'''class {class_name(metric["name"])}:
    """{metric["help"]}"""

    def __init__(self, metric: {kind}) -> None:
        self._metric = metric
        self._budget = LabelBudget({strings(labels)})

    def labels(self, *, {keywords}) -> {kind}:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit({", ".join(labels)}))
{clear}'''


def attribute_line(metric: dict[str, Any]) -> str:
    """The attribute of a metric in `OrchMetrics.__init__`."""
    name, kind = metric["name"], _TYPES[metric["type"]]
    arguments = [_quoted(name), _quoted(metric["help"])]
    if metric["labels"]:
        arguments.append(strings(metric["labels"]))
    arguments.append("registry=registry")
    if "buckets" in metric:
        arguments.append(f"buckets=BUCKETS[{_quoted(metric['buckets'])}]")
    call = f"{kind}({', '.join(arguments)})"
    value = f"{class_name(name)}({call})" if metric["labels"] else call
    return f"        self.{name} = {value}"


def definition_line(metric: dict[str, Any]) -> str:
    """The metric's entry in DEFINITIONS."""
    texts = [_quoted(metric[key]) for key in ("name", "type", "unit")]
    texts += [strings(metric["labels"]), _quoted(metric["help"]), strings(metric["req"])]
    texts.append(str(metric.get("planned", False)))
    return f"    Definition({', '.join(texts)}),"


def definitions_module(contract: dict[str, Any]) -> str:
    """The text of `definitions.py`. Raises `MetricsContractError`."""
    check(contract)
    metrics, labels = contract["metrics"], contract["labels"]
    budgets = [f'    "{label}": {rule["budget"]},' for label, rule in labels.items()]
    closed = [
        f'    "{label}": frozenset({strings(rule["values"])}),'
        for label, rule in labels.items()
        if "values" in rule
    ]
    buckets = [
        f'    "{name}": ({", ".join(str(float(bound)) for bound in bounds)}),'
        for name, bounds in contract["buckets"].items()
    ]
    tables = [
        "\n# How many values a label may have per metric.",
        "LABEL_BUDGETS: dict[str, int] = {",
        *budgets,
        "}",
        "# Labels whose values are all known.",
        "CLOSED_LABELS: dict[str, frozenset[str]] = {",
        *closed,
        "}",
        "BUCKETS: dict[str, tuple[float, ...]] = {",
        *buckets,
        "}",
    ]
    classes = [metric_class(metric) for metric in metrics if metric["labels"]]
    whole = [
        "class OrchMetrics:",
        '    """Every metric of the contract, registered in `registry`; one per process."""',
        "",
        "    def __init__(self, registry: CollectorRegistry) -> None:",
        "        # The contract knows no `_created` series; the library's switch is process-wide.",
        "        disable_created_metrics()  # type: ignore[no-untyped-call]",
        "        self.registry = registry",
        *(attribute_line(metric) for metric in metrics),
    ]
    definitions = [
        "DEFINITIONS: tuple[Definition, ...] = (",
        *(definition_line(metric) for metric in metrics),
        ")",
    ]
    parts = [_HEADER, "\n".join(tables), _BUDGET, ""]
    return (
        "\n".join(parts)
        + "\n"
        + "\n\n".join([*classes, "\n".join(whole) + "\n", "\n".join(definitions) + "\n"])
    )


def lint_rules(contract: dict[str, Any]) -> str:
    """What any linter needs to judge an exposition, as JSON; keys in the contract's order."""
    labels = {
        name: {"budget": rule["budget"], "values": rule.get("values")}
        for name, rule in contract["labels"].items()
    }
    metrics = {
        metric["name"]: {
            "type": metric["type"],
            "unit": metric["unit"],
            "help": metric["help"],
            "labels": metric["labels"],
            "buckets": contract["buckets"].get(metric.get("buckets")),
            "planned": metric.get("planned", False),
        }
        for metric in contract["metrics"]
    }
    document = {"version": contract["version"], "other": "other"}
    document |= {"labels": labels, "metrics": metrics}
    return json.dumps(document, indent=1) + "\n"


_INIT = f'''"""Metrics of the contract. Generated from {SOURCE_PATH}; do not edit."""

from __future__ import annotations

from orch_metrics.definitions import (
    CLOSED_LABELS,
    DEFINITIONS,
    LABEL_BUDGETS,
    OTHER,
    Definition,
    OrchMetrics,
)

__all__ = [
    "CLOSED_LABELS",
    "DEFINITIONS",
    "Definition",
    "LABEL_BUDGETS",
    "OTHER",
    "OrchMetrics",
]
'''


def generate(root: Path) -> dict[str, str | bytes]:
    """The package `orch_metrics`: relative path -> content. Raises `MetricsContractError`."""
    contract = yaml.safe_load((root / SOURCE_PATH).read_text(encoding="utf-8"))
    return {
        f"{PACKAGE}/__init__.py": _INIT,
        f"{PACKAGE}/py.typed": "",
        f"{PACKAGE}/definitions.py": definitions_module(contract),
        LINT_RULES: lint_rules(contract),
    }
