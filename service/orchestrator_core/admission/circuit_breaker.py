"""The circuit breaker of a pool: which priorities are refused while an objective stays violated.

On no task's path: a periodic look feeds it what is violated; `admission.checks` reads the outcome.
The rules, for priorities from the most urgent to the lowest:

- An objective of the lowest priority opens nothing: there is nobody whose load could go for it.
- An objective of a higher one that is violated for `open_after_ms` without a pause has the lowest
  admitted priority refused. After as long again the next one above it goes, as long as an
  objective of that one or of a more urgent one is among the violated.
- Once none of those is violated for `close_after_ms` without a pause, the priority that was refused
  last is admitted again; after as long again the next one.
- While everything is refused nothing new is measured. So this lasts `close_after_ms` and no
  longer: the most urgent priority is then admitted again, on trial (half-open), and the count to
  `open_after_ms` begins anew.

Invariants: what is refused is always the tail of the order; one look changes at most one priority,
and an admission follows a refusal no sooner than `close_after_ms`, a refusal an admission no sooner
than `open_after_ms`; without violations everything is admitted again. Requirements: ORCH-3040.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from orchestrator_core.task import Priority
from orchestrator_core.value import Value

# Most urgent first.
PRIORITIES = tuple(sorted(Priority, key=lambda priority: priority.rank))


@dataclass(frozen=True, slots=True)
class BreakerPolicy:
    """How long a violation, and its absence, must last before the breaker believes it."""

    open_after_ms: int
    close_after_ms: int


class Shed(Value, frozen=True):
    """A priority that a pool refuses. `until_ms` is the earliest instant, in wall-clock
    milliseconds, at which it may be admitted again; `cause` tells people what is violated."""

    priority: Priority
    until_ms: int
    cause: str


class CircuitBreaker:
    """State of one pool. Times are milliseconds of any clock that does not go backwards."""

    __slots__ = ("_calm_since_ms", "_changed_ms", "_order", "_refused", "_since_ms", "policy")

    def __init__(self, policy: BreakerPolicy, order: Sequence[Priority] = PRIORITIES) -> None:
        """`order`: the pool's priorities, most urgent first."""
        self.policy = policy
        self._order = tuple(order)
        self._refused = 0  # that many at the end of the order
        self._since_ms: int | None = None  # violated without a pause
        self._calm_since_ms: int | None = None
        self._changed_ms = 0

    @property
    def shed(self) -> tuple[Priority, ...]:
        """What is refused, most urgent first."""
        return self._order[len(self._order) - self._refused :]

    def observe(self, violated: Collection[Priority], now_ms: int) -> bool:
        """Take in whose objectives are violated now; returns whether `shed` has changed."""
        # With everything refused the last one refused is the one on whose behalf it is.
        next_place = max(len(self._order) - self._refused - 1, 0)
        above = min(next_place + 1, len(self._order) - 1)
        if any(priority in violated for priority in self._order[:above]):
            self._calm_since_ms = None
            self._since_ms = now_ms if self._since_ms is None else self._since_ms
        else:
            self._since_ms = None
            self._calm_since_ms = now_ms if self._calm_since_ms is None else self._calm_since_ms
        if self._refused == len(self._order):
            if now_ms - self._changed_ms < self.policy.close_after_ms:
                return False
            return self._change(-1, now_ms)
        if self._since_ms is not None and now_ms - self._since_ms >= self.policy.open_after_ms:
            return self._change(+1, now_ms)
        if self._refused and self._wait_ms(now_ms) <= 0:
            return self._change(-1, now_ms)
        return False

    def admits_in_ms(self, priority: Priority, now_ms: int) -> int:
        """Milliseconds until a priority may be admitted again at the earliest; 0: it is."""
        place = len(self._order) - 1 - self._order.index(priority)
        if place >= self._refused:
            return 0
        before = self._refused - 1 - place  # these are admitted first
        return max(self._wait_ms(now_ms), 0) + before * self.policy.close_after_ms

    def _wait_ms(self, now_ms: int) -> int:
        """Until the one refused last may be admitted again."""
        if self._refused == len(self._order):
            since_ms = self._changed_ms
        else:
            since_ms = now_ms if self._calm_since_ms is None else self._calm_since_ms
        return self.policy.close_after_ms - (now_ms - since_ms)

    def _change(self, step: int, now_ms: int) -> bool:
        self._refused += step
        self._changed_ms = now_ms
        # The next change takes as long again, whatever led to this one.
        self._since_ms = None if self._since_ms is None else now_ms
        self._calm_since_ms = None if self._calm_since_ms is None else now_ms
        return True
