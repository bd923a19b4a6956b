"""The linter of a live `/metrics` against the metrics contract, for this harness and for operators.

It reads the exposition text and the rules that `regen` writes from `contracts/metrics.yaml`, and
says what differs: names, types, help, labels, buckets, values that the unit or a closed list does
not allow, label values beyond their budget, families that are missing or declared nowhere. What any
exposition must keep `promtool check metrics` says of the same text. Invariant: it only reads.
Requirements: OC-METRICS-7101, OC-METRICS-7102.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import urllib.parse
import urllib.request
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from prometheus_client.metrics_core import Metric
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from orch_tools.codegen_metrics import LINT_RULES

ROOT = Path(__file__).resolve().parents[2]

PROMTOOL_S = 30.0
SCRAPE_S = 10.0
# Its one complaint about names that are the specification's, which says ms and not seconds.
ACCEPTED = "metric names should not contain abbreviated units"

_SERIES = {"counter": ("",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
# What a value may be, by unit; every other unit is one of amounts.
_RANGES: dict[str, tuple[float, float]] = {
    "ratio": (0, 1),
    "percent": (0, 100),
    "bool": (0, 1),
    "info": (1, 1),
}
_WHOLE = frozenset({"bool", "info"})
_ANY_VALUE = frozenset({"value"})

Rules = Mapping[str, Any]


class PromtoolMissing(Exception):
    """promtool is missing: apt-get install prometheus (or the like of it)"""


@dataclass(frozen=True, slots=True, order=True)
class Finding:
    """What is wrong with one metric; `rule` is one word for programs, `message` for people."""

    metric: str
    rule: str
    message: str

    def document(self) -> dict[str, str]:
        """As JSON."""
        return asdict(self)


def lint(text: str, rules: Rules) -> list[Finding]:
    """What differs between an exposition and the rules of `metrics.lint.json`, sorted."""
    try:
        families = list(text_string_to_metric_families(text))
    except ValueError as error:
        return [Finding("", "syntax", str(error))]
    found: list[Finding] = []
    shown: set[str] = set()
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        if name not in rules["metrics"]:
            found.append(Finding(name, "undeclared", "the contract has no such metric"))
            continue
        shown.add(name)
        found += _family(name, family, rules)
    missing = (name for name in rules["metrics"] if name not in shown)
    found += (Finding(name, "missing", "the exposition has no such family") for name in missing)
    return sorted(found)


def _family(name: str, family: Metric, rules: Rules) -> Iterable[Finding]:
    rule = rules["metrics"][name]
    if family.type != rule["type"]:
        yield Finding(name, "type", f"is a {family.type}, not a {rule['type']}")
        return
    if family.documentation != rule["help"]:
        yield Finding(name, "help", f"is {family.documentation!r}, not {rule['help']!r}")
    if rule["planned"] and family.samples:
        yield Finding(name, "planned", "has samples: the contract says that nothing sets it yet")
    series = {f"{name}{ending}" for ending in _SERIES[family.type]}
    values: dict[str, set[str]] = {}
    bounds: set[str] = set()
    for sample in family.samples:
        if sample.name not in series:
            yield Finding(name, "series", f"{sample.name} is no series of a {family.type}")
            continue
        labels = set(sample.labels) - ({"le"} if sample.name.endswith("_bucket") else set())
        if labels != set(rule["labels"]):
            yield Finding(name, "labels", f"are {sorted(labels)}, not {sorted(rule['labels'])}")
            continue
        for label in labels:
            values.setdefault(label, set()).add(sample.labels[label])
        if "le" in sample.labels:
            bounds.add(sample.labels["le"])
        elif not _allowed(sample, rule["unit"]):
            yield Finding(name, "unit", f"{sample.value:g} is no value in {rule['unit']}")
    wanted = {*(rule["buckets"] or ()), math.inf}
    if bounds and {float(bound) for bound in bounds} != wanted:
        yield Finding(name, "buckets", f"are {sorted(map(float, bounds))}, not {sorted(wanted)}")
    for label, seen in values.items():
        yield from _label(name, label, seen, rules)


def _label(name: str, label: str, seen: set[str], rules: Rules) -> Iterable[Finding]:
    budget, closed = rules["labels"][label]["budget"], rules["labels"][label]["values"]
    if closed is not None:
        for value in sorted(seen - {*closed, rules["other"], ""}):
            yield Finding(name, "value", f"{label}={value!r} is not in the label's closed list")
    elif len(seen) > budget:
        yield Finding(name, "budget", f"{label} has {len(seen)} values, its budget is {budget}")


def _allowed(sample: Sample, unit: str) -> bool:
    if unit in _ANY_VALUE:
        return True
    if math.isnan(sample.value):  # a gauge that is not known
        return not sample.name.endswith(("_total", "_count", "_sum"))
    low, high = _RANGES.get(unit, (0, math.inf))
    if sample.name.endswith(("_count", "_sum")):
        high = math.inf
    return low <= sample.value <= high and (unit not in _WHOLE or sample.value in (0, 1))


def promtool() -> str:
    """The path of promtool. Raises `PromtoolMissing`, which names the package."""
    path = shutil.which("promtool")
    if path is None:
        raise PromtoolMissing(PromtoolMissing.__doc__)
    return path


def promtool_lint(text: str, rules: Rules) -> list[Finding]:
    """What `promtool check metrics` says of an exposition, but for the names in milliseconds that
    the contract declares. Raises `PromtoolMissing`."""
    done = subprocess.run(
        [promtool(), "check", "metrics"],
        input=text,
        capture_output=True,
        text=True,
        timeout=PROMTOOL_S,
        check=False,
    )
    found = []
    for line in (done.stdout + done.stderr).splitlines():
        name, _, message = line.partition(" ")
        metric = rules["metrics"].get(name)
        if metric is None or metric["unit"] != "ms" or message != ACCEPTED:
            found.append(Finding(name, "promtool", message))
    return sorted(found)


def rules() -> Rules:
    """The rules that `regen` wrote."""
    found: Rules = json.loads((ROOT / LINT_RULES).read_text(encoding="utf-8"))
    return found


def exposition(target: str, key: str | None) -> str:
    """The text of a URL, whose path is /metrics unless it has one, of a file, or of stdin (-).

    Raises OSError, ValueError.
    """
    if target == "-":
        return sys.stdin.read()
    if not target.startswith(("http://", "https://")):
        return Path(target).read_text(encoding="utf-8")
    url = urllib.parse.urlsplit(target)
    request = urllib.request.Request(url._replace(path=url.path.rstrip("/") or "/metrics").geturl())
    if key:
        request.add_header("Authorization", f"Bearer {key}")
    with urllib.request.urlopen(request, timeout=SCRAPE_S) as answer:
        body: bytes = answer.read()
    return body.decode()


def command(
    target: Annotated[str, typer.Argument(help="URL of a service, a file, or - for stdin.")],
    as_json: Annotated[bool, typer.Option("--json", help="Findings as one JSON array.")] = False,
    ask_promtool: Annotated[
        bool,
        typer.Option("--promtool/--no-promtool", help="Ask promtool too (Debian: prometheus)."),
    ] = True,
) -> None:
    """Compare a service's /metrics with contracts/metrics.yaml and name what differs.

    LLAMA_ORCH_API_KEY is a key of role metrics, where the service wants one. Exit status 1: there
    are findings; 2: there was nothing to compare.
    """
    try:
        contract = rules()
        text = exposition(target, os.environ.get("LLAMA_ORCH_API_KEY"))
        found = lint(text, contract) + (promtool_lint(text, contract) if ask_promtool else [])
    except (OSError, ValueError, PromtoolMissing) as error:
        typer.echo(f"{target}: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(json.dumps([finding.document() for finding in found]))
    else:
        for finding in found:
            typer.echo(f"{finding.metric}: {finding.rule}: {finding.message}")
        typer.echo(f"{len(contract['metrics'])} metrics in the contract, {len(found)} findings")
    raise typer.Exit(1 if found else 0)
