"""Which sessions' KV one replica is taken to hold, least recently used first.

On a task's path: a finished task adds its session's KV, which may push out others'. The invariant:
the sum over sessions never exceeds what the engine has (`bytes_max`), so that what `GET
/v1/sessions/{id}` says of warmth and size is never more than there can be. It is an account, not a
cache: the engine evicts by its own clock, and what it really reused is in `cached_tokens`.
Requirements: ORCH-3022, ORCH-3027.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Protocol


class KvHolder(Protocol):
    """A session, as far as its KV goes."""

    key: str

    def lose_kv(self) -> None:
        """Its KV is gone."""
        ...


class ResidentKv:
    """One replica's account; sessions whose KV has no known size are not in it. `evictions` counts
    those that lost theirs to another one."""

    __slots__ = ("_held", "bytes_max", "bytes_used", "evictions")

    def __init__(self, bytes_max: int) -> None:
        self.bytes_max = bytes_max
        self.bytes_used = 0
        self.evictions = 0
        self._held: OrderedDict[str, tuple[KvHolder, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._held)

    def hold(self, holder: KvHolder, kv_bytes: int) -> None:
        """`holder` has that much here now, used last. Whoever was used longest ago goes for it.

        Nothing is entered that has no size or does not fit at all. O(1) amortised.
        """
        self.drop(holder.key)
        if not 0 < kv_bytes <= self.bytes_max:
            return
        while self.bytes_used + kv_bytes > self.bytes_max:
            _, (oldest, freed_bytes) = self._held.popitem(last=False)
            self.bytes_used -= freed_bytes
            self.evictions += 1
            oldest.lose_kv()
        self._held[holder.key] = (holder, kv_bytes)
        self.bytes_used += kv_bytes

    def drop(self, key: str) -> None:
        """That session has nothing here any more; no effect where it had nothing."""
        if (held := self._held.pop(key, None)) is not None:
            self.bytes_used -= held[1]
