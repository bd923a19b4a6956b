"""Tokens per minute: how much a tenant may ask of one pool.

On a task's path: looked at before the queue, reserved at admission, settled when the task ends. The
invariants: a bucket never holds more than a minute's worth; what is taken less what is given back
within any span of time is at most a minute's worth and what flows in meanwhile, however many tasks
are admitted at once and however they end; a refused task takes nothing. Requirements: ORCH-3036.

A token bucket (RFC 2697's committed bucket) in whole numbers: a unit is the 60,000th part of a
token, so that one millisecond brings exactly `per_minute` units and no rounding adds up. A task
that ends gives back what it did not use; one that used more than was reserved for it (an engine
that counts otherwise) takes the rest, so that the level may fall below zero.
"""

from __future__ import annotations

from collections.abc import Collection

from orchestrator_core.pool import TenantPolicy

# Units per token; a bucket is filled anew in as many milliseconds.
MINUTE_MS = 60_000


class TokenBucket:
    """The tokens of one tenant in one pool; at most a minute's worth."""

    __slots__ = ("_at_ms", "_units")

    def __init__(self, per_minute: int, now_ms: int) -> None:
        # The level at `_at_ms`; what is above a minute's worth is cut when it is read.
        self._units = per_minute * MINUTE_MS
        self._at_ms = now_ms

    def wait_ms(self, tokens: int, per_minute: int, now_ms: int) -> int:
        """Milliseconds until so many tokens are there, 0 when they are now. More than `per_minute`
        never are."""
        missing = tokens * MINUTE_MS - self._level(per_minute, now_ms)
        return max(-(-missing // per_minute), 0)

    def reserve(self, tokens: int, per_minute: int, now_ms: int) -> None:
        """Take what `wait_ms` found to be there."""
        self._units = self._level(per_minute, now_ms) - tokens * MINUTE_MS
        self._at_ms = now_ms

    def settle(self, reserved_tokens: int, used_tokens: int) -> None:
        """A task has ended: what it did not use comes back."""
        self._units += (reserved_tokens - used_tokens) * MINUTE_MS

    def _level(self, per_minute: int, now_ms: int) -> int:
        # The wall clock may step back: then the bucket refills from there on, as it would have.
        passed_ms = max(now_ms - self._at_ms, 0)
        return min(self._units + passed_ms * per_minute, per_minute * MINUTE_MS)


class TenantTokens:
    """The buckets of one pool. The policy comes with each call, so a reload takes effect at once;
    who has no bucket yet has a full one."""

    def __init__(self) -> None:
        self._buckets: dict[str, TokenBucket] = {}

    def __len__(self) -> int:
        return len(self._buckets)

    def wait_ms(self, policy: TenantPolicy, tokens: int, now_ms: int) -> int:
        """Milliseconds until the tenant may take so many tokens; 0 when it may now, or always."""
        per_minute, bucket = policy.tokens_per_minute, self._buckets.get(policy.id)
        if per_minute is None or bucket is None:
            return 0
        return bucket.wait_ms(tokens, per_minute, now_ms)

    def reserve(self, policy: TenantPolicy, tokens: int, now_ms: int) -> TokenBucket | None:
        """Take them; returns where to settle when the task ends, None where nothing is bounded."""
        if (per_minute := policy.tokens_per_minute) is None:
            return None
        if (bucket := self._buckets.get(policy.id)) is None:
            bucket = self._buckets[policy.id] = TokenBucket(per_minute, now_ms)
        bucket.reserve(tokens, per_minute, now_ms)
        return bucket

    def keep(self, policies: Collection[TenantPolicy]) -> None:
        """Forget the tenants that are bounded no more."""
        bounded = {policy.id for policy in policies if policy.tokens_per_minute is not None}
        self._buckets = {name: kept for name, kept in self._buckets.items() if name in bounded}
