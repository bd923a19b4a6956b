"""Counts what happens to simulated tasks, by tenant and priority, and sums it up at the end.

Beside a simulated task's path. The invariants: constant work per fact; a task that has ended leaves
numbers behind, never an object, so a million of them fit. Requirements: ORCH-3075, ORCH-3081.
"""

from __future__ import annotations

from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from orch_simulator.decision_cost import CostRow
from orch_simulator.fluid_share import FluidShare
from orch_simulator.outcome import (
    ALL,
    Calibration,
    FlowOutcome,
    Moment,
    Outcome,
    quantiles,
)
from orchestrator_core.task import Priority

# Enough for a smooth line; beyond it every second moment goes and the others get rarer.
_MOST_MOMENTS = 512

_PERCENTILES = range(101)

Place = TypeVar("Place")


class Tally:
    """Numbers of one tenant at one priority."""

    __slots__ = (
        "aborted", "admitted", "arrived", "evicted", "finished", "on_time", "preemptions",
        "refused", "resumptions", "start_errors_ms", "tokens_in", "tokens_out", "waits_ms",
    )  # fmt: skip

    def __init__(self) -> None:
        self.arrived = self.admitted = self.finished = self.aborted = self.on_time = 0
        self.tokens_in = self.tokens_out = 0
        self.preemptions = self.resumptions = 0
        self.refused: Counter[str] = Counter()
        self.evicted: Counter[str] = Counter()
        self.waits_ms: array[int] = array("q")
        self.start_errors_ms: array[int] = array("q")

    def add(self, other: Tally) -> None:
        """Take the other's numbers in."""
        for name in (
            "arrived", "admitted", "finished", "aborted", "on_time", "tokens_in", "tokens_out",
            "preemptions", "resumptions",
        ):  # fmt: skip
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.refused.update(other.refused)
        self.evicted.update(other.evicted)
        self.waits_ms.extend(other.waits_ms)
        self.start_errors_ms.extend(other.start_errors_ms)

    def outcome(
        self, tenant: str, priority: str, share: tuple[float, float] | None = None
    ) -> FlowOutcome:
        """The numbers as they are shown; `share` is (share_ratio, fair_ratio)."""
        return FlowOutcome(
            tenant=tenant,
            priority=priority,
            arrived=self.arrived,
            admitted=self.admitted,
            refused=dict(sorted(self.refused.items())),
            evicted=dict(sorted(self.evicted.items())),
            finished=self.finished,
            aborted=self.aborted,
            tokens_in=self.tokens_in,
            tokens_out=self.tokens_out,
            wait=quantiles(sorted(self.waits_ms)),
            start_error=quantiles(sorted(self.start_errors_ms)),
            share_ratio=None if share is None else share[0],
            fair_ratio=None if share is None else share[1],
            deadlines_met_ratio=self.on_time / self.admitted if self.admitted else None,
            preemptions=self.preemptions,
            resumptions=self.resumptions,
        )


class Ledger:
    """All numbers of a run. Levels are by pool; rows are over all pools."""

    def __init__(self) -> None:
        self.at_admission = Calibration()
        self.at_start = Calibration()
        self._tallies: dict[tuple[str, Priority], Tally] = {}
        self._classes: dict[str, FluidShare] = {}
        self._tenants: dict[tuple[str, Priority], FluidShare] = {}
        self._waiting = dict.fromkeys(Priority, 0)
        self._moments: list[Moment] = []
        self._every_ms = 1
        self.running = 0
        self.busy_ms = 0
        self.waiting = 0
        self.peak_waiting = 0

    def tally(self, tenant: str, priority: Priority) -> Tally:
        """The numbers of one flow; new if need be."""
        if (tally := self._tallies.get((tenant, priority))) is None:
            tally = self._tallies[tenant, priority] = Tally()
        return tally

    def wait(
        self, pool_id: str, tenant: str, priority: Priority, weights: tuple[float, float]
    ) -> None:
        """A task begins to wait; `weights` are those of its tenant and of its priority."""
        if (tenants := self._tenants.get((pool_id, priority))) is None:
            tenants = self._tenants[pool_id, priority] = FluidShare()
            self._classes.setdefault(pool_id, FluidShare())
        tenants.enter(tenant, weights[0])
        self._classes[pool_id].enter(priority.value, weights[1])
        self._count_waiting(priority, +1)

    def serve(self, pool_id: str, tenant: str, priority: Priority, tokens: int) -> None:
        """A waiting task gets its slot; fairness charges `tokens` for it."""
        self._tenants[pool_id, priority].serve(tenant, tokens)
        self._classes[pool_id].serve(priority.value, tokens)
        self.leave(pool_id, tenant, priority)

    def leave(self, pool_id: str, tenant: str, priority: Priority) -> None:
        """A waiting task waits no more."""
        self._tenants[pool_id, priority].leave(tenant)
        self._classes[pool_id].leave(priority.value)
        self._count_waiting(priority, -1)

    def count_resuming(self, priority: Priority, change: int) -> None:
        """A task waits to resume (+1) or does so no more (-1); it was charged at its first start,
        so shares know nothing of it."""
        self._count_waiting(priority, change)

    def sample(self, at_ms: int) -> None:
        """Remember the fleet as it is, unless the last such moment is too near."""
        if self._moments and at_ms - self._moments[-1].at_ms < self._every_ms:
            return
        waiting = tuple(self._waiting[priority] for priority in Priority)
        self._moments.append(Moment(at_ms, waiting, self.running))
        if len(self._moments) > _MOST_MOMENTS:
            del self._moments[1::2]
            self._every_ms = max(2 * self._every_ms, 2 * at_ms // _MOST_MOMENTS)

    def outcome(
        self, *, simulated_ms: int, steps: int, slots: int, costs: tuple[CostRow, ...]
    ) -> Outcome:
        """Everything, summed up."""
        tenant_shares = _shares(self._tenants, lambda place: place[1].value)
        class_shares = _shares(self._classes, lambda pool: ALL)
        flows = [
            tally.outcome(tenant, priority.value, tenant_shares.get((priority.value, tenant)))
            for (tenant, priority), tally in sorted(self._tallies.items())
        ]
        by_priority = self._merged(lambda tenant, priority: priority.value)
        priorities = [
            tally.outcome(ALL, priority.value, class_shares.get((ALL, priority.value)))
            for priority in Priority
            if (tally := by_priority.get(priority.value)) is not None
        ]
        by_tenant = self._merged(lambda tenant, priority: tenant)
        tenants = [tally.outcome(tenant, ALL) for tenant, tally in sorted(by_tenant.items())]
        total = self._merged(lambda tenant, priority: ALL).get(ALL, Tally())
        return Outcome(
            simulated_ms=simulated_ms,
            steps=steps,
            peak_waiting=self.peak_waiting,
            slots=slots,
            busy_ratio=self.busy_ms / (slots * simulated_ms) if slots and simulated_ms else 0.0,
            total=total.outcome(ALL, ALL),
            priorities=tuple(priorities),
            tenants=_most_served(tenants),
            flows=_most_served(flows),
            calibration_at_admission=self.at_admission.rows(),
            calibration_at_start=self.at_start.rows(),
            timeline=tuple(self._moments),
            wait_cdf={name: _percentiles(tally.waits_ms) for name, tally in by_priority.items()},
            costs=costs,
        )

    def _count_waiting(self, priority: Priority, change: int) -> None:
        self._waiting[priority] += change
        self.waiting += change
        self.peak_waiting = max(self.peak_waiting, self.waiting)

    def _merged(self, name_of: Callable[[str, Priority], str]) -> dict[str, Tally]:
        merged: dict[str, Tally] = {}
        for (tenant, priority), tally in sorted(self._tallies.items()):
            merged.setdefault(name_of(tenant, priority), Tally()).add(tally)
        return merged


def _shares(
    levels: Mapping[Place, FluidShare], name_of: Callable[[Place], str]
) -> dict[tuple[str, str], tuple[float, float]]:
    """(level, member) -> (share of what its level received, the share it was entitled to)."""
    sums: dict[tuple[str, str], tuple[int, float]] = {}
    received_by_level: Counter[str] = Counter()
    for place, level in levels.items():
        name = name_of(place)
        for key, (received, entitled) in level.totals().items():
            before = sums.get((name, key), (0, 0.0))
            sums[name, key] = (before[0] + received, before[1] + entitled)
            received_by_level[name] += received
    return {
        (name, key): (received / received_by_level[name], entitled / received_by_level[name])
        for (name, key), (received, entitled) in sums.items()
        if received_by_level[name]
    }


def _most_served(rows: Iterable[FlowOutcome]) -> tuple[FlowOutcome, ...]:
    return tuple(sorted(rows, key=lambda row: (-row.tokens_out, row.tenant, row.priority)))


def _percentiles(waits_ms: Iterable[int]) -> tuple[int, ...]:
    ascending = sorted(waits_ms)
    if not ascending:
        return ()
    return tuple(ascending[(len(ascending) - 1) * percent // 100] for percent in _PERCENTILES)
