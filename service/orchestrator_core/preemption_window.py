"""How often a pool may still interrupt running work: a window over the last minute.

On a task's path: asked before a hard preemption. The invariant: in any 60 seconds at most
`max_per_min` preemptions are counted, however they cluster (a token bucket would let twice as many
through around a refill). Requirements: ORCH-3086.
"""

from __future__ import annotations

from collections import deque

MINUTE_MS = 60_000


class PreemptionWindow:
    """When the pool preempted within the last minute."""

    __slots__ = ("_at_ms",)

    def __init__(self) -> None:
        self._at_ms: deque[int] = deque()

    def left(self, max_per_min: int, now_ms: int) -> int:
        """How many more may happen now; the bound comes with each call, as a reload may move it."""
        at_ms = self._at_ms
        while at_ms and at_ms[0] <= now_ms - MINUTE_MS:
            at_ms.popleft()
        while at_ms and at_ms[-1] > now_ms:  # the clock was set back: that future never happened
            at_ms.pop()
        return max(max_per_min - len(at_ms), 0)

    def count(self, now_ms: int) -> None:
        """One happens now, as `left` allowed."""
        self._at_ms.append(now_ms)
