"""Sliding windows over what finished tasks have shown, in constant memory.

A window is a ring of sub-windows; the oldest is forgotten as a whole, so that a window covers nine
tenths to all of its length. Latencies are counted in buckets that grow by a constant factor from
the goal up and down (DDSketch, Masson et al., VLDB 2019): a quantile is at most 5 % off, and on the
right side of the goal, because the goal is a border between two buckets. Off the token path: O(1)
for each task. Invariant: whether a goal is missed is counted, never estimated. Requirements:
ORCH-3041.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from math import ceil, log
from typing import Generic, NamedTuple, TypeVar

SUB_WINDOWS = 10
# Of the short window beside it, which says whether a violation still goes on (The Site Reliability
# Workbook, chapter 5): an hour's bad minute is in the long one for an hour.
RECENT_SUB_WINDOWS = 4
# Below so many samples a share of 95 % says nothing: nothing is judged.
SAMPLES_MIN = 20

ERROR_RATIO = 0.05
_GROWTH = (1 + ERROR_RATIO) / (1 - ERROR_RATIO)
_LOG_GROWTH = log(_GROWTH)
# Buckets above the goal; with a goal of a millisecond the last one begins at three weeks.
_BUCKETS_ABOVE = 215


class Verdict(NamedTuple):
    """How a goal stands. `met_ratio`, 0 to 1, is None below `SAMPLES_MIN` samples; `violated`: it
    is missed over the window, and still in what was measured last (not where that is nothing)."""

    samples: int
    met_ratio: float | None
    violated: bool


Slot = TypeVar("Slot")


class _Ring(Generic[Slot]):
    """The last `count` sub-windows; times are milliseconds of a monotonic clock."""

    __slots__ = ("_current", "_make", "_number", "_slots", "_sub_ms")

    def __init__(self, window_ms: int, count: int, make: Callable[[], Slot]) -> None:
        self._sub_ms = max(window_ms // count, 1)
        self._make = make
        self._number, self._current = -1, make()
        self._slots: list[tuple[int, Slot]] = [(self._number, self._current)] * count

    def current(self, now_ms: int) -> Slot:
        """The sub-window of `now_ms`."""
        number = now_ms // self._sub_ms
        if number != self._number:
            self._number, self._current = number, self._make()
            self._slots[number % len(self._slots)] = number, self._current
        return self._current

    def slots(self, now_ms: int) -> list[Slot]:
        """Those of the window; where nothing happened there is none."""
        oldest = max(now_ms // self._sub_ms - len(self._slots), -1)
        return [slot for number, slot in self._slots if number > oldest]


class _Count:
    __slots__ = ("met", "samples")

    def __init__(self) -> None:
        self.samples = self.met = 0


class _Latencies(_Count):
    __slots__ = ("buckets",)

    def __init__(self) -> None:
        super().__init__()
        self.buckets: Counter[int] = Counter()


class LatencyWindow:
    """Latencies against a goal that 95 % of them should keep."""

    __slots__ = ("_long", "_recent", "goal_ms")

    def __init__(self, goal_ms: int, window_ms: int, recent_ms: int) -> None:
        self.goal_ms = goal_ms
        self._long = _Ring(window_ms, SUB_WINDOWS, _Latencies)
        self._recent = _Ring(recent_ms, RECENT_SUB_WINDOWS, _Count)

    def observe(self, latency_ms: float, now_ms: int) -> bool:
        """One more, 0 ms or longer; whether it keeps the goal."""
        # Bucket k holds (goal * growth**(k - 1), goal * growth**k]: 0 and below keep the goal.
        bucket = ceil(log(max(latency_ms, 1.0) / self.goal_ms) / _LOG_GROWTH)
        met = bucket <= 0
        recent = self._recent.current(now_ms)
        recent.samples += 1
        recent.met += met
        slot = self._long.current(now_ms)
        slot.samples += 1
        slot.met += met
        slot.buckets[min(bucket, _BUCKETS_ABOVE)] += 1
        return met

    @staticmethod
    def judge(windows: Sequence[LatencyWindow], now_ms: int) -> Verdict:
        """All `windows`, which have one goal, together."""
        met, samples = _sum(slot for window in windows for slot in window._long.slots(now_ms))
        if samples < SAMPLES_MIN:
            return Verdict(samples, None, False)
        late = met < _rank(samples)
        if late:
            slots = (slot for window in windows for slot in window._recent.slots(now_ms))
            recently_met, recently = _sum(slots)
            late = recently_met < _rank(recently)
        return Verdict(samples, met / samples, late)

    @staticmethod
    def p95_ms(windows: Sequence[LatencyWindow], now_ms: int) -> float | None:
        """The 95th percentile (nearest rank) within 5 %; None without a sample. O(buckets)."""
        buckets: Counter[int] = Counter()
        for window in windows:
            for slot in window._long.slots(now_ms):
                buckets.update(slot.buckets)
        left = _rank(buckets.total())
        for bucket, count in sorted(buckets.items()):
            left -= count
            if left <= 0:
                return windows[0].goal_ms * 2 * _GROWTH**bucket / (_GROWTH + 1)
        return None


def _rank(samples: int) -> int:
    """How many of so many samples have to keep the goal."""
    return -(-95 * samples // 100)


def _sum(slots: Iterable[_Count]) -> tuple[int, int]:
    met = samples = 0
    for slot in slots:
        met += slot.met
        samples += slot.samples
    return met, samples


class _Share:
    __slots__ = ("part", "samples", "whole")

    def __init__(self) -> None:
        self.samples = 0
        self.part = self.whole = 0.0


class ShareWindow:
    """A part of a whole against a goal: at most, or at least, so much of it, 0 to 1."""

    __slots__ = ("_at_most", "_goal_ratio", "_long", "_recent")

    def __init__(self, goal_ratio: float, window_ms: int, recent_ms: int, *, at_most: bool) -> None:
        self._goal_ratio = goal_ratio
        self._at_most = at_most
        self._long = _Ring(window_ms, SUB_WINDOWS, _Share)
        self._recent = _Ring(recent_ms, RECENT_SUB_WINDOWS, _Share)

    def observe(self, part: float, whole: float, now_ms: int) -> None:
        """One more sample; units are the caller's, `whole` is above 0."""
        for slot in (self._long.current(now_ms), self._recent.current(now_ms)):
            slot.samples += 1
            slot.part += part
            slot.whole += whole

    @staticmethod
    def judge(windows: Sequence[ShareWindow], now_ms: int) -> Verdict:
        """All `windows`, which have one goal, together."""
        samples = sum(slot.samples for window in windows for slot in window._long.slots(now_ms))
        ratio = ShareWindow.ratio(windows, now_ms)
        if ratio is None or samples < SAMPLES_MIN:
            return Verdict(samples, None, False)
        goal = windows[0]
        recent = _ratio(slot for window in windows for slot in window._recent.slots(now_ms))
        violated = goal._misses(ratio) and recent is not None and goal._misses(recent)
        return Verdict(samples, goal._met_ratio(ratio), violated)

    @staticmethod
    def ratio(windows: Sequence[ShareWindow], now_ms: int) -> float | None:
        """The part of the whole, 0 to 1; None without a sample."""
        return _ratio(slot for window in windows for slot in window._long.slots(now_ms))

    def _misses(self, ratio: float) -> bool:
        return ratio > self._goal_ratio if self._at_most else ratio < self._goal_ratio

    def _met_ratio(self, ratio: float) -> float:
        if self._at_most:
            return 1.0 - ratio
        return min(ratio / self._goal_ratio, 1.0) if self._goal_ratio else 1.0


def _ratio(slots: Iterable[_Share]) -> float | None:
    part = whole = 0.0
    for slot in slots:
        part += slot.part
        whole += slot.whole
    return min(part / whole, 1.0) if whole else None
