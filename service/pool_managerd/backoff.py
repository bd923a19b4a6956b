"""How long a launched replica waits before it is started again.

Invariant: between two starts lies at least half of 0.5 s, 1 s, 2 s … 30 s; only 60 s in good
health make it begin anew, so a replica that crashes on every request cannot restart in a storm.
"Equal jitter" (Brooker, Exponential Backoff and Jitter, AWS 2015) keeps replicas that died
together from starting together. Requirements: OC-POOL-3011.
"""

from __future__ import annotations

from collections.abc import Callable

FIRST_DELAY_S = 0.5
LONGEST_DELAY_S = 30.0
HEALTHY_RESET_S = 60.0


class Backoff:
    """Delays of one replica; `jitter` gives numbers from 0 to 1."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        self._jitter = jitter
        self._failures = 0

    def after_failure(self, healthy_s: float) -> float:
        """Seconds to wait, after a life of which it was Ready for `healthy_s` seconds."""
        if healthy_s >= HEALTHY_RESET_S:
            self._failures = 0
        # The exponent is bounded too: 2.0 ** 1100 overflows.
        ceiling = min(LONGEST_DELAY_S, FIRST_DELAY_S * 2.0 ** min(self._failures, 16))
        self._failures += 1
        return ceiling / 2 + ceiling / 2 * self._jitter()
