"""How often tasks with this much time to spare were on time: a probability learned from outcomes.

On a task's path: behind `on_time_probability`; a forecast is kept at admission and at each start
and compared with what became of it at the end. The invariants: memory is constant (a few kilobytes
a pool); asking changes nothing; without outcomes the answer is the prior's. Requirements:
ORCH-3081.

The method is reliability by binning (Murphy and Winkler, 1977; "histogram binning" of Zadrozny and
Elkan, ICML 2001) over one number, z = ln(time left / time expected): each bin holds a decaying
count of tasks and of those on time, so the answer is a frequency and not a model's opinion. A
model of the queue cannot know who will come and go first; what it can know is how its own estimates
turned out. Bins are kept apart by priority, and for waiting tasks by how long the deadline was: the
longer, the more others with a nearer one come later and go before (earliest deadline first), which
no position at admission can show. Keys of predicted wait or of the tenant's weight in place of it
were worse, measured over loads from 0.6 to 1.6 of what a pool can do. Up to 1.25 every decile is
right to 0.1 from the first task on; at 1.6 the lowest told (0.1 to 0.2) were up to 0.06 beyond it.
"""

from __future__ import annotations

from math import floor, log
from typing import NamedTuple

from orchestrator_core.task import Priority

# From "2.7 times what is left is needed" to "20 times what is needed is left". Just above 0, where
# admission draws its line, the share rises steeply: twice as wide bins blur it there.
LOWEST_Z, HIGHEST_Z, BIN_WIDTH = -1.0, 3.0, 0.125
_BINS = int((HIGHEST_Z - LOWEST_Z) / BIN_WIDTH)

# Outcomes a bin remembers, about; between 150 and 300 measured best (drift against noise).
_WINDOW_TASKS = 300

# What is believed without outcomes weighs so many of them: the estimator's distribution little (it
# is sure of itself, and wrong where it matters: in the minutes after an overload begins), what
# tasks of all deadlines have shown more.
_PRIOR_TASKS, _WIDER_TASKS = 1.0, 8.0

# Deadlines are classed by powers of 2 seconds; beyond 2^12 s (an hour) they are all alike.
_DEADLINE_CLASSES = 13

# The class of tasks that run: how long they were given decides no more.
_RUNNING = -1

# All classes of waiting tasks together.
_ALL_WAITING = -2


class OnTimeTable:
    """Outcomes by z, of tasks that were alike in every other respect.

    `wider` has those of more tasks, these included; it is believed where these are few.
    """

    __slots__ = ("_on_time", "_tasks", "_wider")

    def __init__(self, wider: OnTimeTable | None = None) -> None:
        self._tasks = [0.0] * _BINS
        self._on_time = [0.0] * _BINS
        self._wider = wider

    def observe(self, z: float, *, on_time: bool) -> None:
        """A task that was forecast with `z` ended on time, or did not. O(1)."""
        at = min(max(int((z - LOWEST_Z) / BIN_WIDTH), 0), _BINS - 1)
        keep = 1 - 1 / _WINDOW_TASKS
        self._tasks[at] = self._tasks[at] * keep + 1
        self._on_time[at] = self._on_time[at] * keep + on_time
        if self._wider is not None:
            self._wider.observe(z, on_time=on_time)

    def probability(self, z: float, prior: float) -> float:
        """Share of tasks on time at `z`, 0..1, from the two nearest bins by how near each is.

        `prior` (0..1) is what is believed without outcomes; it fades as they come. O(1).
        """
        weight = _PRIOR_TASKS
        if self._wider is not None:
            prior, weight = self._wider.probability(z, prior), _WIDER_TASKS
        place = (z - LOWEST_Z) / BIN_WIDTH - 0.5
        low = floor(place)
        part = place - low
        tasks, on_time = self._tasks, self._on_time
        left, right = (min(max(at, 0), _BINS - 1) for at in (low, low + 1))
        # Counts are mixed, not shares: a bin without outcomes (no task is admitted with z below 0)
        # has no say.
        met = (1 - part) * on_time[left] + part * on_time[right]
        seen = (1 - part) * tasks[left] + part * tasks[right]
        return (met + weight * prior) / (seen + weight)


class Forecast(NamedTuple):
    """A task's place in what its pool has seen; `table` is shared by all that are alike."""

    table: OnTimeTable
    z: float


class OnTimeHistory:
    """All tables of one pool: a few for each priority."""

    __slots__ = ("_tables",)

    def __init__(self) -> None:
        self._tables: dict[tuple[Priority, int], OnTimeTable] = {}

    def waiting(
        self, priority: Priority, deadline_ms: int, expected_ms: float, slack_ms: float
    ) -> Forecast | None:
        """Where a waiting task stands that has `slack_ms` of its `deadline_ms` left for what should
        take `expected_ms`, its wait included; None when its time is over. O(1)."""
        kind = min(int(log(max(deadline_ms, 0) / 1000 + 1, 2)), _DEADLINE_CLASSES - 1)
        wider = self._table(priority, _ALL_WAITING, None)
        return _forecast(self._table(priority, kind, wider), expected_ms, slack_ms)

    def running(self, priority: Priority, expected_ms: float, within_ms: float) -> Forecast | None:
        """The same for a run that should take `expected_ms`: will it end `within_ms` of its start?
        None when `within_ms` is not positive. O(1)."""
        return _forecast(self._table(priority, _RUNNING, None), expected_ms, within_ms)

    def _table(self, priority: Priority, kind: int, wider: OnTimeTable | None) -> OnTimeTable:
        if (table := self._tables.get((priority, kind))) is None:
            table = self._tables[priority, kind] = OnTimeTable(wider)
        return table


def _forecast(table: OnTimeTable, expected_ms: float, slack_ms: float) -> Forecast | None:
    return Forecast(table, log(slack_ms / max(expected_ms, 1.0))) if slack_ms > 0 else None
