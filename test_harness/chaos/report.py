"""What a chaos run has to say: faults survived per kind, requests checked, recovery times, SLOs."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from statistics import quantiles
from typing import Any

from chaos.faults import Survived
from chaos.history import TaskHistory
from harness_kit.report_files import report_file


def summary(
    seed: int,
    disk: str,
    survived: Sequence[Survived],
    tasks: Sequence[TaskHistory],
    replica_sets: Iterable[Mapping[str, Any]],
) -> dict[str, Any]:
    """The figures of a run; recovery in milliseconds from a fault's end to everything whole."""
    kinds = sorted({fault.kind for fault in survived})
    return {
        "seed": seed,
        "disk": disk,
        "faults_survived": len(survived),
        "faults": {
            kind: {"survived": sum(fault.kind == kind for fault in survived)}
            | percentiles([fault.recovery_ms for fault in survived if fault.kind == kind])
            for kind in kinds
        },
        "recovery": percentiles([fault.recovery_ms for fault in survived]),
        "requests_checked": sum(len(task.answers) for task in tasks),
        "tasks_checked": len(tasks),
        "tokens_checked": sum(e.name == "token" for task in tasks for e in task.joined),
        "outcomes": dict(sorted(Counter(task.outcome for task in tasks).items())),
        "refusals": dict(sorted(Counter(_refusals(tasks)).items())),
        "slo": {entry["id"]: entry.get("slo", {}) for entry in replica_sets},
    }


def percentiles(times_ms: Sequence[float]) -> dict[str, float]:
    """p50_ms and p99_ms; of one value that value."""
    if len(times_ms) < 2:
        return {"p50_ms": times_ms[0], "p99_ms": times_ms[0]} if times_ms else {}
    cuts = quantiles(times_ms, n=100, method="inclusive")
    return {"p50_ms": round(cuts[49], 1), "p99_ms": round(cuts[98], 1)}


def publish(figures: Mapping[str, Any]) -> None:
    """Print them, shown by pytest with -s, and leave them for the proof."""
    print(f"\n{json.dumps(figures, indent=2)}")
    report_file("chaos/chaos.json").write_text(json.dumps(figures, indent=2) + "\n", "utf-8")


def _refusals(tasks: Iterable[TaskHistory]) -> list[str]:
    return [
        str(answer.json().get("code"))
        for t in tasks
        for answer in t.answers
        if answer.status != 202
    ]
