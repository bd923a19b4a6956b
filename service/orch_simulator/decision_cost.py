"""What a decision of the core costs in real time, by how much waits.

Beside a simulated task's path. The invariant: measuring changes no decision, and what is measured
is `Scheduler.step` alone: no event loop, no statistics. Requirements: ORCH-3075.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass

from orchestrator_core.effects import Effect
from orchestrator_core.events import Event
from orchestrator_core.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class CostRow:
    """Steps of one kind of event while at least `waiting` tasks (and less than ten times as many)
    waited; microseconds."""

    event: str
    waiting: int
    steps: int
    mean_us: float
    p50_us: float
    p99_us: float


class DecisionMeter:
    """Times every step; `clock_ns` is a monotonic clock."""

    def __init__(self, clock_ns: Callable[[], int]) -> None:
        self._clock_ns = clock_ns
        self._samples: dict[tuple[str, int], array[int]] = {}

    def step(
        self, scheduler: Scheduler, event: Event, now_ms: int, waiting: int
    ) -> tuple[Effect, ...]:
        """`scheduler.step(event, now_ms)`, timed."""
        begun_ns = self._clock_ns()
        effects = scheduler.step(event, now_ms)
        took_ns = self._clock_ns() - begun_ns
        name = (type(event).__name__, len(str(waiting)) if waiting else 0)
        if (samples := self._samples.get(name)) is None:
            samples = self._samples[name] = array("Q")
        samples.append(took_ns)
        return effects

    def rows(self) -> tuple[CostRow, ...]:
        """By kind of event and power of ten of what waited."""
        return tuple(
            _row(event, 10 ** (digits - 1) if digits else 0, sorted(samples))
            for (event, digits), samples in sorted(self._samples.items())
        )


def _row(event: str, waiting: int, ascending_ns: list[int]) -> CostRow:
    count = len(ascending_ns)
    return CostRow(
        event=event,
        waiting=waiting,
        steps=count,
        mean_us=sum(ascending_ns) / count / 1000,
        p50_us=ascending_ns[count // 2] / 1000,
        p99_us=ascending_ns[count * 99 // 100] / 1000,
    )
