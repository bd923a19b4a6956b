"""Start-time fair queueing among the members of one level of the hierarchy.

On a task's path: decides whose head is dispatched next; one level shares a pool among priorities,
one level per priority shares it among tenants, so that many interactive tenants do not push batch
below its weight. The invariant: while two members are backlogged and not held, the difference of
their service divided by weight stays below one task of each (so nothing starves).
Source: Goyal, Vin, Cheng: Start-time Fair Queueing, SIGCOMM 1996; used hierarchically as in
Goyal, Guo, Vin, OSDI 1996. Requirements: ORCH-3075, ORCH-3077, OC-CORE-1004.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Callable

# Virtual time units per token at weight 1: the least common multiple of 1..16, so that the usual
# weights divide it exactly and tags stay integers.
UNITS_PER_TOKEN = 720_720

# Idle members are forgotten in sweeps; below this many it is not worth a sweep.
SWEEP_MEMBERS = 64

# Of more members than this, a sample of as many tells how much is before a task.
MEMBERS_COUNTED = 16

_Tag = tuple[int, int, int, str]  # start, rank, activation, key


class _Member:
    __slots__ = ("activation", "backlogged", "held", "key", "rank", "start", "tag", "weight")

    def __init__(self, key: str, rank: int) -> None:
        self.key = key
        self.rank = rank
        self.weight = 1
        self.start = 0  # start tag of the head; while idle, the finish tag of the last one
        self.activation = 0
        self.backlogged = False
        self.held = False
        self.tag: _Tag | None = None


class FairShare:
    """Members with weights; the backlogged, not held one with the smallest start tag is next.

    Equal tags go by rank (smaller first), then by who became backlogged first.
    """

    __slots__ = ("_activations", "_backlogged", "_members", "_order", "_virtual")

    def __init__(self) -> None:
        self._members: dict[str, _Member] = {}
        self._order: list[_Tag] = []
        self._virtual = 0
        self._backlogged = 0
        self._activations = 0

    def __len__(self) -> int:
        """Backlogged members, held ones included."""
        return self._backlogged

    def activate(self, key: str, weight: int, *, rank: int = 0, held: bool = False) -> None:
        """`key` has work from now on; it competes from the present virtual time. O(log n)."""
        member = self._members.get(key)
        if member is None:
            if len(self._members) > SWEEP_MEMBERS + 2 * self._backlogged:
                self._sweep()
            member = self._members[key] = _Member(key, rank)
        member.weight = weight
        member.start = max(self._virtual, member.start)
        self._activations += 1
        member.activation = self._activations
        member.backlogged = True
        member.held = held
        self._backlogged += 1
        self._place(member)

    def retire(self, key: str) -> None:
        """`key` has no work any more. O(log n)."""
        member = self._members[key]
        self._unplace(member)
        member.backlogged = False
        self._backlogged -= 1
        if not self._backlogged:
            # Idle: what was used before is held against nobody (the paper's end of a busy period,
            # without moving virtual time: whoever comes next starts from the same tag).
            self._members.clear()

    def hold(self, key: str, held: bool) -> None:
        """Skip a backlogged member or stop it; its tag, so its place, is kept. O(log n)."""
        member = self._members.get(key)
        if member is not None and member.backlogged and member.held != held:
            member.held = held
            self._unplace(member)
            self._place(member)

    def reweigh(self, key: str, weight: int) -> None:
        """A new weight, from the next charge on."""
        if (member := self._members.get(key)) is not None:
            member.weight = weight

    def pick(self) -> str | None:
        """Whose turn it is; None when nobody is backlogged and free to go. O(1)."""
        return self._order[0][3] if self._order else None

    def charge(self, key: str, cost_tokens: int) -> None:
        """`key` was served at this cost; call it before `retire` if that was its last. O(log n)."""
        member = self._members[key]
        self._virtual = max(self._virtual, member.start)
        self._unplace(member)
        member.start += max(cost_tokens, 1) * UNITS_PER_TOKEN // member.weight
        self._place(member)

    def ahead(
        self,
        key: str,
        own_tokens: int,
        weight: int,
        rank: int,
        backlog: Callable[[str], tuple[int, int] | None],
    ) -> tuple[int, int]:
        """Tasks of others (and their tokens) that go before `key` has used `own_tokens` more.

        Exact where each member's tasks cost the same, else an estimate from their averages. Where
        more than `MEMBERS_COUNTED` are due before, as many of them, evenly spread over their
        order, stand for all. O(log members).

        Args:
            weight, rank: what `key` would be activated with, if it is not backlogged.
            backlog: (waiting tasks, their tokens) of a member; None leaves it out. `key` itself is
                ignored.
        """
        member = self._members.get(key)
        if member is not None and member.backlogged:
            start, activation, weight = member.start, member.activation, member.weight
        else:
            start = max(self._virtual, member.start if member is not None else 0)
            activation = self._activations + 1
        start += own_tokens * UNITS_PER_TOKEN // weight
        tasks_before = tokens_before = 0
        members, order = self._members, self._order
        due = bisect_left(order, (start + 1,))
        counted = min(due, MEMBERS_COUNTED)
        for number in range(counted):
            other_key = order[number * due // counted][3]
            if other_key == key or (waiting := backlog(other_key)) is None:
                continue
            other, (tasks, tokens) = members[other_key], waiting
            # The j-th of its tasks starts at other.start + j * (tokens / tasks) / weight.
            per_task = max(tokens, tasks) * UNITS_PER_TOKEN
            before, rest = divmod((start - other.start) * tasks * other.weight, per_task)
            if rest or (other.rank, other.activation) < (rank, activation):
                before += 1
            before = min(before, tasks)
            tasks_before += before
            tokens_before += before * tokens // tasks
        if due > counted:
            return tasks_before * due // counted, tokens_before * due // counted
        return tasks_before, tokens_before

    def describe(self) -> str:
        """Backlogged members in the order of their turns, with tags relative to virtual time."""
        shown = [
            f"{key}+{(start - self._virtual) // UNITS_PER_TOKEN}"
            for start, _, _, key in self._order
        ]
        shown += [
            f"{key}(held)"
            for key, member in sorted(self._members.items())
            if member.backlogged and member.held
        ]
        return " ".join(shown)

    def _place(self, member: _Member) -> None:
        if member.backlogged and not member.held:
            member.tag = (member.start, member.rank, member.activation, member.key)
            insort(self._order, member.tag)

    def _unplace(self, member: _Member) -> None:
        if member.tag is not None:
            del self._order[bisect_left(self._order, member.tag)]
            member.tag = None

    def _sweep(self) -> None:
        """Forget idle members that would come back at the present virtual time anyway."""
        for key in [
            key for key, m in self._members.items() if not m.backlogged and m.start <= self._virtual
        ]:
            del self._members[key]
