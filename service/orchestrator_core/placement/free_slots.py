"""Which replica has the most room, without looking at all of them.

On a task's path: what admission and dispatch ask first, and all of the pick for a task that wishes
nothing beside load and affinity. The invariants: `total` is the sum of the members' free slots, and
`roomiest` is what `pick` would choose among them. Requirements: ORCH-3010, OC-CORE-1010.

A heap by load with lazy deletion: a change leaves an entry behind that tells a load which is not
the replica's any more; it goes when it comes up, or with a rebuild once most entries are such.
"""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush

from orchestrator_core.replicas import Replica

# The heap is rebuilt beyond this many entries a replica, so a change is O(log replicas) on average.
_ENTRIES_PER_REPLICA = 4


class FreeSlots:
    """Free slots of the replicas that new work may go to, which come in the order of their ids."""

    __slots__ = ("_heap", "_places", "foreign", "total")

    def __init__(self, replicas: Sequence[Replica] = ()) -> None:
        self._places = {replica: place for place, replica in enumerate(replicas)}
        self.total = sum(replica.slots_free for replica in replicas)
        self.foreign = sum(replica.foreign for replica in replicas)  # until the next `repin`
        self._rebuild()

    def __contains__(self, replica: Replica) -> bool:
        return replica in self._places

    def acquire(self, replica: Replica) -> None:
        """Lease a slot of any replica, member or not. Raises InvariantViolation without one."""
        replica.acquire()
        self._note(replica, -1)

    def release(self, replica: Replica) -> None:
        """Give a slot of any replica back. Raises InvariantViolation when none is leased."""
        before = replica.slots_free
        replica.release()
        self._note(replica, replica.slots_free - before)

    def roomiest(self, preferred: Replica | None = None) -> Replica | None:
        """`preferred` if it is a member and has a free slot, else the least loaded of those that
        have one, the first of equals. None when no slot is free. O(log replicas) on average."""
        if preferred is not None and preferred in self._places and preferred.slots_free:
            return preferred
        heap = self._heap
        while heap:
            load_ratio, _, replica = heap[0]
            if replica.slots_free and replica.load_ratio == load_ratio:
                return replica
            heappop(heap)
        return None

    def _note(self, replica: Replica, change: int) -> None:
        if (place := self._places.get(replica)) is None:
            return
        self.total += change
        if replica.slots_free:
            heappush(self._heap, (replica.load_ratio, place, replica))
            if len(self._heap) > _ENTRIES_PER_REPLICA * len(self._places):
                self._rebuild()

    def _rebuild(self) -> None:
        self._heap = [
            (replica.load_ratio, place, replica)
            for replica, place in self._places.items()
            if replica.slots_free
        ]
        heapify(self._heap)
