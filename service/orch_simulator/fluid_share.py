"""What each member of a level would get from an ideal fluid server, beside what it got.

Beside a simulated task's path. The invariant: what all were entitled to equals what all received.
An ideal server (generalized processor sharing; Parekh and Gallager, 1993) serves all backlogged
members at once, each in proportion to its weight; a real scheduler is as fair as it stays close.
Requirements: ORCH-3075, ORCH-3076.

Entitlement grows with a virtual time that advances by tokens / (sum of backlogged weights), so a
change costs O(1) however many members wait. A tenant that its `max_concurrent` holds counts as
backlogged: what a quota takes away shows as received below entitled.
"""

from __future__ import annotations


class _Member:
    __slots__ = ("entitled", "received", "since", "waiting", "weight")

    def __init__(self, weight: float) -> None:
        self.weight = weight
        self.waiting = 0
        self.since = 0.0  # virtual time at which its backlog began
        self.entitled = 0.0
        self.received = 0


class FluidShare:
    """One level: the priorities of a pool, or the tenants of one priority of it."""

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}
        self._virtual = 0.0
        self._weight = 0.0

    def enter(self, key: str, weight: float) -> None:
        """One more task of `key` waits."""
        member = self._members.get(key)
        if member is None:
            member = self._members[key] = _Member(weight)
        if not member.waiting:
            member.since = self._virtual
            self._weight += member.weight
        member.waiting += 1

    def leave(self, key: str) -> None:
        """One of its waiting tasks is gone, served or not."""
        member = self._members[key]
        member.waiting -= 1
        if not member.waiting:
            member.entitled += member.weight * (self._virtual - member.since)
            self._weight -= member.weight

    def serve(self, key: str, tokens: int) -> None:
        """A waiting task of `key` is about to leave for a slot."""
        self._virtual += tokens / self._weight
        self._members[key].received += tokens

    def totals(self) -> dict[str, tuple[int, float]]:
        """By member: tokens received while backlogged, tokens it was entitled to."""
        return {
            key: (
                member.received,
                member.entitled
                + (member.weight * (self._virtual - member.since) if member.waiting else 0.0),
            )
            for key, member in self._members.items()
        }
