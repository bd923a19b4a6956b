"""Token buckets: how often a tenant or a client may ask.

On a task's path: the first check that costs the caller something. The invariant: a bucket holds
between 0 and max(1, rps) tokens; a refused task takes none (`wait_ms` only looks, `take` pays after
every other check has passed). Requirements: ORCH-3006, ORCH-3077.
"""

from __future__ import annotations

from collections import OrderedDict
from math import ceil

# A bucket per tenant and per (client, priority) of a pool. The least recently used go first: beyond
# this many concurrent clients a forgotten bucket is a full one: the error is on the lenient side.
MAX_BUCKETS = 65_536

# The hint where waiting does not help at all; callers cap their hints at less.
NEVER_MS = 3_600_000


class _Bucket:
    __slots__ = ("tokens", "updated_ms")

    def __init__(self, tokens: float, updated_ms: int) -> None:
        self.tokens = tokens
        self.updated_ms = updated_ms


class RateLimiter:
    """Buckets by an opaque key; the rate comes with each call, so a reload takes effect at once."""

    def __init__(self, max_buckets: int = MAX_BUCKETS) -> None:
        self._buckets: OrderedDict[tuple[str, ...], _Bucket] = OrderedDict()
        self._max_buckets = max_buckets

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_ms(self, key: tuple[str, ...], rps: float, now_ms: int) -> int:
        """Milliseconds until a request may pass; 0 when it may now. With an `rps` of 0 never."""
        if rps <= 0:
            return NEVER_MS
        tokens = self._tokens(key, rps, now_ms)
        # A token lost to rounding must not cost a client a millisecond it has already waited.
        missing = 1.0 - tokens
        return 0 if missing <= 1e-9 else max(1, ceil(missing * 1000.0 / rps))

    def take(self, key: tuple[str, ...], rps: float, now_ms: int) -> None:
        """Pay for one request that `wait_ms` let pass."""
        tokens = self._tokens(key, rps, now_ms)
        bucket = self._buckets.get(key)
        if bucket is None:
            if len(self._buckets) >= self._max_buckets:
                self._buckets.popitem(last=False)
            bucket = self._buckets[key] = _Bucket(tokens, now_ms)
        bucket.tokens = max(0.0, tokens - 1.0)
        bucket.updated_ms = now_ms
        self._buckets.move_to_end(key)

    def _tokens(self, key: tuple[str, ...], rps: float, now_ms: int) -> float:
        burst = max(1.0, rps)
        bucket = self._buckets.get(key)
        if bucket is None:
            return burst
        # The wall clock may step back: then the bucket refills from there on, as it would have.
        bucket.updated_ms = min(bucket.updated_ms, now_ms)
        return min(burst, bucket.tokens + (now_ms - bucket.updated_ms) * rps / 1000.0)
