"""What the figures of a run amount to: medians, ratios to the router, goals met or missed.

Between the measurements and the report; pure. Invariant: a ratio pairs two figures of the same
repetition, so that a busy minute of the machine falls on both.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from bench.admission import Admission
from bench.peers import ROUTER, SERVICE
from bench.relay import Relayed

TOKEN_RATIO_MAX = 1.2  # CPU per token at 20 tokens/s, ours to SGLang's router
TASK_RATIO_MAX = 1.2  # CPU per task, 16 clients, ours to SGLang's router
ADMISSION_P99_MAX_MS = 10.0  # of the 202 at 1,000 requests/s over 64 connections


@dataclass(frozen=True, slots=True)
class Spread:
    """A figure over repetitions."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        median, low, high = map(_short, (self.median, self.low, self.high))
        return median if low == high else f"{median} ({low}-{high})"


def _short(value: float) -> str:
    """Three digits, large values without an exponent."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def spread(values: Sequence[float]) -> Spread:
    """Median, smallest and largest of at least one value."""
    return Spread(statistics.median(values), min(values), max(values))


@dataclass(frozen=True, slots=True)
class Goal:
    """One goal and how far this run is from it; smaller is better."""

    name: str
    figure: Spread
    limit: float

    @property
    def met(self) -> bool:
        """Whether the median keeps to the limit."""
        return self.figure.median <= self.limit


def relay_goals(repetitions: Sequence[Relayed]) -> list[Goal]:
    """The ratios to the router; none where either was not measured.

    The router's answers wait for the client's delayed ACKs (Nagle), which keeps its rate, and the
    work it shares between requests, low. So the ratio per task comes twice: with the same normal
    client for both, and against the router's better figure of the two clients.
    """
    theirs = {one.repetition: one for one in repetitions if one.peer == ROUTER}
    pairs = [
        (one, theirs[one.repetition])
        for one in repetitions
        if one.peer == SERVICE and one.repetition in theirs
    ]
    if not pairs:
        return []
    best = [min(router.task_ms, router.task_quickack_ms) for _, router in pairs]
    return [
        Goal(
            "CPU per token, paced, ratio to router",
            spread([mine.paced_us / router.paced_us for mine, router in pairs]),
            TOKEN_RATIO_MAX,
        ),
        Goal(
            "CPU per task, ratio to router, same client",
            spread([mine.task_ms / router.task_ms for mine, router in pairs]),
            TASK_RATIO_MAX,
        ),
        Goal(
            "CPU per task, ratio to router at its best",
            spread([mine.task_ms / least for (mine, _), least in zip(pairs, best, strict=True)]),
            TASK_RATIO_MAX,
        ),
    ]


def admission_goals(repetitions: Sequence[Admission]) -> list[Goal]:
    """The latency of the 202 under the open loop, from the time a request was due."""
    p99_ms = [
        one.open.outcome.total_ms.p99
        for one in repetitions
        if one.open.outcome.total_ms is not None
    ]
    if not p99_ms:
        return []
    return [Goal("202 p99 ms at 1,000/s, 64 connections", spread(p99_ms), ADMISSION_P99_MAX_MS)]
