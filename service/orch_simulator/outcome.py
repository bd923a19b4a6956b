"""What a simulation shows: frozen values, the same for the same seed, ready for tables and JSON.

After a simulated task's path. The invariant: arrived = finished + refused + evicted + aborted, for
every row. Requirements: ORCH-3075, ORCH-3079, ORCH-3081.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orch_simulator.decision_cost import CostRow

# Stands for "all of them" in a row's tenant or priority.
ALL = "*"

# A decile with fewer tasks says nothing about its probability (the requirement's own bound).
CALIBRATION_MIN_TASKS = 200


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Milliseconds; all 0 where nothing was measured."""

    count: int
    mean_ms: float
    p50_ms: int
    p90_ms: int
    p99_ms: int
    max_ms: int


@dataclass(frozen=True, slots=True)
class FlowOutcome:
    """One tenant at one priority, or `ALL` of either.

    Args:
        refused / evicted: by reason; evicted are those that were admitted and did not start.
        aborted: ended by the pool's wall time-out.
        wait: from arrival to the first start, of those that started.
        start_error: how far `predicted_start_ms` was off (either way), of those that started.
        share_ratio / fair_ratio: of the tokens of its level (see `fluid_share`) while backlogged;
            None for rows that are no member of one level.
        deadlines_met_ratio: finished on time, of the admitted; None without any.
    """

    tenant: str
    priority: str
    arrived: int
    admitted: int
    refused: dict[str, int]
    evicted: dict[str, int]
    finished: int
    aborted: int
    tokens_in: int
    tokens_out: int
    wait: Quantiles
    start_error: Quantiles
    share_ratio: float | None
    fair_ratio: float | None
    deadlines_met_ratio: float | None
    preemptions: int
    resumptions: int


@dataclass(frozen=True, slots=True)
class CalibrationRow:
    """Tasks that were given a probability within one tenth: the mean of what they were given, and
    how many of them finished on time."""

    from_ratio: float
    tasks: int
    predicted_ratio: float
    on_time_ratio: float


@dataclass(frozen=True, slots=True)
class Moment:
    """The fleet at one instant; `waiting` by priority, urgent first."""

    at_ms: int
    waiting: tuple[int, ...]
    running: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """A whole run. `flows` are sorted by tokens served, `priorities` by urgency; `total` is their
    sum. `wait_cdf` has 101 waiting times per priority, by percentile. `costs` are real time, so
    they alone differ between equal runs, and are empty where nobody measured."""

    simulated_ms: int
    steps: int
    peak_waiting: int
    slots: int
    busy_ratio: float
    total: FlowOutcome
    priorities: tuple[FlowOutcome, ...]
    tenants: tuple[FlowOutcome, ...]
    flows: tuple[FlowOutcome, ...]
    calibration_at_admission: tuple[CalibrationRow, ...]
    calibration_at_start: tuple[CalibrationRow, ...]
    timeline: tuple[Moment, ...]
    wait_cdf: dict[str, tuple[int, ...]]
    costs: tuple[CostRow, ...]


class Calibration:
    """Probabilities given, and what became of those who got them; ten counters."""

    def __init__(self) -> None:
        self._tasks = [0] * 10
        self._given = [0.0] * 10
        self._on_time = [0] * 10

    def add(self, probability: float, on_time: bool) -> None:
        """One task was told `probability` (0..1) and met its deadline, or did not."""
        decile = min(int(probability * 10), 9)
        self._tasks[decile] += 1
        self._given[decile] += probability
        self._on_time[decile] += on_time

    def rows(self) -> tuple[CalibrationRow, ...]:
        """Deciles with at least one task, lowest first."""
        return tuple(
            CalibrationRow(decile / 10, tasks, given / tasks, on_time / tasks)
            for decile, (tasks, given, on_time) in enumerate(
                zip(self._tasks, self._given, self._on_time, strict=True)
            )
            if tasks
        )


def worst_calibration_error(rows: Sequence[CalibrationRow]) -> float | None:
    """The largest |given - happened| of the deciles with enough tasks; None without one."""
    errors = [
        abs(row.predicted_ratio - row.on_time_ratio)
        for row in rows
        if row.tasks >= CALIBRATION_MIN_TASKS
    ]
    return max(errors, default=None)


def quantiles(ascending_ms: Sequence[int]) -> Quantiles:
    """Nearest-rank quantiles of sorted milliseconds."""
    if not ascending_ms:
        return Quantiles(0, 0.0, 0, 0, 0, 0)
    last = len(ascending_ms) - 1
    return Quantiles(
        count=len(ascending_ms),
        mean_ms=sum(ascending_ms) / len(ascending_ms),
        p50_ms=ascending_ms[last * 50 // 100],
        p90_ms=ascending_ms[last * 90 // 100],
        p99_ms=ascending_ms[last * 99 // 100],
        max_ms=ascending_ms[last],
    )
