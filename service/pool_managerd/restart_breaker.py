"""The circuit breaker against restart storms: when a replica stops being started again and again.

Asked after each life of a launched engine, beside `Backoff`, which spaces the starts while the
circuit is closed. Pure: time comes in as an argument. Circuit breaker as in Nygard, Release It!
(2nd ed., 2018), ch. 5: closed, open for a while, then half open with one trial. Invariant: a window
of `window_s` never sees more than `max_failures` failures while the circuit is closed, and an open
circuit lets through one start per rest. Requirements: ORCH-3053, OC-POOL-3011.
"""

from __future__ import annotations

from collections import deque

# A trial that fails doubles the rest, up to this many times the configured one.
LONGEST_REST_FACTOR = 8


class RestartBreaker:
    """Of one replica. Times are in seconds of any clock that never goes back."""

    def __init__(
        self, max_failures: int, window_s: float, broken_s: float, proven_s: float
    ) -> None:
        """A trial has succeeded once it was Ready for `proven_s`: an engine that crashes with its
        first task would otherwise close the circuit each time."""
        self._max_failures = max_failures
        self._window_s = window_s
        self._broken_s = broken_s
        self._proven_s = proven_s
        self._failed_at_s: deque[float] = deque(maxlen=max_failures)
        # How often in a row it opened; above 0 means that the life just over was a trial.
        self._opened = 0

    def after_failure(self, now_s: float, healthy_s: float) -> float | None:
        """Seconds to rest, after a life of which it was Ready for `healthy_s`; None while the
        circuit is closed and it may be started as soon as `Backoff` says."""
        if self._opened and healthy_s >= self._proven_s:
            self._opened = 0
        self._failed_at_s.append(now_s)
        full = len(self._failed_at_s) == self._max_failures
        in_window = full and now_s - self._failed_at_s[0] <= self._window_s
        if not self._opened and not in_window:
            return None
        # The trial's own failure and those before it are told by the rest from now on.
        self._failed_at_s.clear()
        factor = min(LONGEST_REST_FACTOR, 2.0 ** min(self._opened, 16))
        self._opened += 1
        return self._broken_s * factor
