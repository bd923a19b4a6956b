"""What a run prints and writes: tables for people, JSON for machines, from the same values.

Last step of the bench. Invariant: nothing is computed here that the JSON does not hold.
"""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.admission import Admission
from bench.core import CoreCost
from bench.goals import Goal, admission_goals, relay_goals, spread
from bench.load import Quantiles
from bench.relay import Relayed


@dataclass(slots=True)
class Results:
    """Everything that one run measured, in the order it was measured."""

    settings: dict[str, Any]
    core: list[CoreCost] = field(default_factory=list)
    admission: list[Admission] = field(default_factory=list)
    relay: list[Relayed] = field(default_factory=list)
    profile: dict[str, list[tuple[str, float]]] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    @property
    def goals(self) -> list[Goal]:
        """What this run says about the goals."""
        return relay_goals(self.relay) + admission_goals(self.admission)

    @property
    def errors(self) -> int:
        """Failed requests over everything."""
        return sum(one.errors for one in self.relay) + sum(one.errors for one in self.admission)

    def document(self) -> dict[str, Any]:
        """The JSON form."""
        return {
            "machine": {
                "cores": os.cpu_count(),
                "kernel": platform.release(),
                "python": platform.python_version(),
            },
            "settings": self.settings,
            "core": [asdict(cost) for cost in self.core],
            "admission": [one.figures() for one in self.admission],
            "relay": [one.figures() for one in self.relay],
            "goals": [{**asdict(goal), "met": goal.met} for goal in self.goals],
            "profile": self.profile,
            "failures": self.failures,
        }


def write_json(results: Results, path: Path) -> None:
    """Write the JSON form. Raises OSError."""
    path.write_text(json.dumps(results.document(), indent=1) + "\n")


def show(results: Results, console: Console) -> None:
    """Print the tables of what was measured."""
    tables = [
        core_table(results.core),
        admission_table(results.admission),
        relay_table(results.relay),
        *(profile_table(phase, frames) for phase, frames in results.profile.items()),
        goal_table(results.goals),
    ]
    for table in tables:
        if table.row_count:
            console.print(table)
    for failure in results.failures:
        console.print(f"failed: {failure}", markup=False)


def _table(title: str, first: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def core_table(costs: Sequence[CoreCost]) -> Table:
    """Per number of waiting tasks."""
    table = _table(
        "Core: one enqueue + dispatch", "waiting", "µs per cycle", "µs per enqueue (fill)"
    )
    for waiting in sorted({cost.waiting for cost in costs}):
        of_size = [cost for cost in costs if cost.waiting == waiting]
        table.add_row(
            f"{waiting:,}",
            str(spread([cost.cycle_ns / 1e3 for cost in of_size])),
            str(spread([cost.fill_ns_per_task / 1e3 for cost in of_size])),
        )
    return table


def admission_table(repetitions: Sequence[Admission]) -> Table:
    """Per phase of POSTs."""
    columns = (
        "202/s",
        "p50 ms",
        "p99 ms",
        "from first byte p99 ms",
        "CPU ms/task",
        "drain s",
        "errors",
    )
    table = _table("Admission: POST /v1/tasks, journal on", "clients", *columns)
    if not repetitions:
        return table
    named = [
        (str(clients), [one.closed[clients] for one in repetitions])
        for clients in repetitions[0].closed
    ]
    named.append(("64, open loop", [one.open for one in repetitions]))
    for name, phases in named:
        outcomes = [phase.outcome for phase in phases]
        table.add_row(
            name,
            str(spread([outcome.requests_per_s for outcome in outcomes])),
            _rank([outcome.total_ms for outcome in outcomes], "p50"),
            _rank([outcome.total_ms for outcome in outcomes], "p99"),
            _rank([outcome.service_ms for outcome in outcomes], "p99"),
            str(spread([phase.task_ms for phase in phases])),
            str(spread([phase.drain_s for phase in phases])),
            str(sum(outcome.errors for outcome in outcomes)),
        )
    return table


def _rank(quantiles: Sequence[Quantiles | None], rank: str) -> str:
    found = [getattr(one, rank) for one in quantiles if one is not None]
    return str(spread(found)) if found else "-"


def relay_table(repetitions: Sequence[Relayed]) -> Table:
    """A column per peer."""
    measured = list(dict.fromkeys(one.peer for one in repetitions))
    table = _table("Relay: median (min-max), CPU of the peer's processes", "figure", *measured)
    columns = [_relay_figures([one for one in repetitions if one.peer == p]) for p in measured]
    for name in columns[0] if columns else ():
        table.add_row(name, *(column[name] for column in columns))
    return table


def _relay_figures(mine: Sequence[Relayed]) -> dict[str, str]:
    cpu = {
        "CPU ms/task, 16 clients": spread([one.task_ms for one in mine]),
        "same, client without delayed ACKs": spread([one.task_quickack_ms for one in mine]),
        "CPU µs/token, firehose of 32 streams": spread([one.firehose_us for one in mine]),
        "CPU µs/token, 256 streams at 20/s": spread([one.paced_us for one in mine]),
    }
    others = [phase.foreign_cores for one in mine for phase in one.phases().values()]
    return {
        # The engine itself has no process in front of it.
        **{name: str(figure) if figure.high else "-" for name, figure in cpu.items()},
        "task p50 ms, 16 clients": _rank([one.task.outcome.total_ms for one in mine], "p50"),
        "tasks/s, 16 clients": str(spread([one.task.outcome.requests_per_s for one in mine])),
        "tokens/s, firehose": str(spread([one.firehose.outcome.tokens_per_s for one in mine])),
        "gap p99 ms, 256 streams at 20/s": _rank([one.paced.outcome.gap_ms for one in mine], "p99"),
        "peak RSS MiB": f"{max(one.peak_rss_mib for one in mine):.0f}",
        "cores used by others": str(spread(others)),
        "errors": str(sum(one.errors for one in mine)),
    }


def profile_table(phase: str, frames: Sequence[tuple[str, float]]) -> Table:
    """The most expensive frames of one profiled phase."""
    table = _table(f"Profile of the service: {phase}", "frame", "share")
    for frame, share in frames:
        table.add_row(frame, f"{100 * share:.1f} %")
    return table


def goal_table(goals: Sequence[Goal]) -> Table:
    """Goals with their verdicts."""
    table = _table("Goals", "goal", "median (min-max)", "at most", "verdict")
    for goal in goals:
        table.add_row(
            goal.name, str(goal.figure), f"{goal.limit:g}", "met" if goal.met else "missed"
        )
    return table
