"""An outcome as tables and bars, for whatever prints them.

After a simulated task's path. The invariant: tables hold text and values only, no markup, so that
a terminal, a pipe and a test read the same. Requirements: ORCH-3075, ORCH-3079, ORCH-3081.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orch_simulator.outcome import (
    ALL,
    CALIBRATION_MIN_TASKS,
    CalibrationRow,
    FlowOutcome,
    Outcome,
)

_BAR_CELLS = 32
_EIGHTHS = " ▏▎▍▌▋▊▉█"


@dataclass(frozen=True, slots=True)
class ReportTable:
    """One table; every row has a cell for each column."""

    title: str
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


_FLOW_COLUMNS = (
    "tenant", "priority", "arrived", "refused", "evicted", "finished", "aborted",
    "wait p50", "p90", "p99", "share", "fair share", "on time", "preempted", "resumed",
)  # fmt: skip


def tables(outcome: Outcome, *, most_flows: int) -> list[ReportTable]:
    """What a person wants to see of a run, most important first; at most `most_flows` flows, those
    that were served most."""
    shown = outcome.flows[:most_flows]
    title = "By tenant and priority"
    if len(shown) < len(outcome.flows):
        title += f" (the {len(shown)} most served of {len(outcome.flows)})"
    built = [
        ReportTable(
            "By priority",
            _FLOW_COLUMNS,
            tuple(_flow_row(row) for row in (*outcome.priorities, outcome.total)),
        ),
        ReportTable(title, _FLOW_COLUMNS, tuple(_flow_row(row) for row in shown)),
        ReportTable("Waiting time by priority", ("priority", "p", "wait", ""), _wait_bars(outcome)),
    ]
    reasons = _reason_rows(outcome)
    if reasons:
        columns = ("priority", "what", "reason", "tasks")
        built.append(ReportTable("Refused and evicted", columns, reasons))
    for moment, rows in (
        ("admission", outcome.calibration_at_admission),
        ("start", outcome.calibration_at_start),
    ):
        if rows:
            built.append(_calibration(f"on_time_probability as told at {moment}", rows))
    if outcome.costs:
        built.append(_costs(outcome))
    return built


def headline(outcome: Outcome) -> str:
    """The run in one line."""
    total = outcome.total
    return (
        f"{total.arrived} tasks in {duration(outcome.simulated_ms)}: {total.finished} finished, "
        f"{sum(total.refused.values())} refused, {sum(total.evicted.values())} evicted, "
        f"{total.aborted} aborted; {outcome.slots} slots {outcome.busy_ratio:.0%} busy, "
        f"{outcome.peak_waiting} waited at most at once"
    )


def bar(ratio: float) -> str:
    """`ratio` (0..1) as a bar of up to 32 cells, to an eighth of a cell."""
    eighths = round(min(max(ratio, 0.0), 1.0) * _BAR_CELLS * 8)
    full, rest = divmod(eighths, 8)
    return "█" * full + (_EIGHTHS[rest] if rest else "")


def duration(span_ms: float) -> str:
    """Milliseconds as people say them: 250 ms, 1.5 s, 3 min 20 s, 2 h 5 min."""
    if span_ms < 1000:
        return f"{span_ms:.0f} ms"
    if span_ms < 60_000:
        return f"{span_ms / 1000:.1f} s"
    minutes, seconds = divmod(round(span_ms / 1000), 60)
    if minutes < 60:
        return f"{minutes} min {seconds} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _flow_row(row: FlowOutcome) -> tuple[str, ...]:
    return (
        "all" if row.tenant == ALL else row.tenant,
        "all" if row.priority == ALL else row.priority,
        str(row.arrived),
        str(sum(row.refused.values())),
        str(sum(row.evicted.values())),
        str(row.finished),
        str(row.aborted),
        duration(row.wait.p50_ms),
        duration(row.wait.p90_ms),
        duration(row.wait.p99_ms),
        _percent(row.share_ratio),
        _percent(row.fair_ratio),
        _percent(row.deadlines_met_ratio),
        str(row.preemptions),
        str(row.resumptions),
    )


def _wait_bars(outcome: Outcome) -> tuple[tuple[str, ...], ...]:
    longest_ms = max((cdf[100] for cdf in outcome.wait_cdf.values() if cdf), default=0) or 1
    return tuple(
        (row.priority, f"{percent}", duration(cdf[percent]), bar(cdf[percent] / longest_ms))
        for row in outcome.priorities
        if (cdf := outcome.wait_cdf.get(row.priority))
        for percent in (10, 50, 90, 99, 100)
    )


def _reason_rows(outcome: Outcome) -> tuple[tuple[str, ...], ...]:
    return tuple(
        (row.priority, what, reason, str(count))
        for row in outcome.priorities
        for what, reasons in (("refused", row.refused), ("evicted", row.evicted))
        for reason, count in reasons.items()
    )


def _calibration(title: str, rows: Sequence[CalibrationRow]) -> ReportTable:
    return ReportTable(
        title,
        ("told", "tasks", "mean told", "on time", "off by", ""),
        tuple(
            (
                f"{row.from_ratio:.1f}-{row.from_ratio + 0.1:.1f}",
                str(row.tasks),
                f"{row.predicted_ratio:.2f}",
                f"{row.on_time_ratio:.2f}",
                f"{row.on_time_ratio - row.predicted_ratio:+.2f}"
                if row.tasks >= CALIBRATION_MIN_TASKS
                else f"too few (< {CALIBRATION_MIN_TASKS})",
                bar(row.on_time_ratio),
            )
            for row in rows
        ),
    )


def _costs(outcome: Outcome) -> ReportTable:
    return ReportTable(
        "Real time of a decision",
        ("event", "waiting", "decisions", "mean µs", "p50 µs", "p99 µs"),
        tuple(
            (
                row.event,
                f"{row.waiting}+",
                str(row.steps),
                f"{row.mean_us:.1f}",
                f"{row.p50_us:.1f}",
                f"{row.p99_us:.1f}",
            )
            for row in outcome.costs
        ),
    )


def _percent(ratio: float | None) -> str:
    return "" if ratio is None else f"{ratio:.1%}"
