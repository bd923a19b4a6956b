"""The replicas of one pool: which are Ready, how many slots are leased, which set is pinned.

On a task's path: what placement looks at. The invariants: a slot is leased by at most one task, a
replica never has more tasks than it was given, and none is offered that its engine shows busy with
somebody else's; work goes to replicas of the pinned set only
(unless the pool says otherwise), and the pin moves only when that set has no Ready replica, no
running task and no task that must come back to it, or is cordoned; what is known of a replica's KV
is forgotten with the process that held it. Requirements: ORCH-2101, ORCH-3007, ORCH-3010,
ORCH-3019, ORCH-3022, ORCH-3046, OC-CORE-1031.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from orchestrator_core.errors import InvariantViolation
from orchestrator_core.placement.prefix_tree import PrefixTree, nodes_for
from orchestrator_core.pool import ReplicaSpec
from orchestrator_core.replica_sets import ReplicaSet, ReplicaView
from orchestrator_core.sessions.resident_kv import ResidentKv


class Replica:
    """One worker process. `epoch` differs after each time it was lost: its KV did not survive.
    A `cordoned` one gets no new work.

    `prefixes` is what it has read, `kv` which sessions it is taken to hold; so many `foreign` slots
    are busy in its engine without a lease of ours.
    """

    __slots__ = (
        "_surplus",
        "cordoned",
        "epoch",
        "foreign",
        "group",
        "kv",
        "leased",
        "prefixes",
        "ready",
        "spec",
    )

    def __init__(self, spec: ReplicaSpec, group: ReplicaSet, epoch: int) -> None:
        self.spec = spec
        self.group = group
        self.epoch = epoch
        self.ready = True
        self.cordoned = False
        self.leased = 0
        self.start_cold()

    def start_cold(self) -> None:
        """A new process: nothing of what the last one held is left."""
        spec = self.spec
        self.prefixes = PrefixTree(nodes_for(spec.slots_total * spec.ctx_max))
        self.kv = ResidentKv(spec.kv_bytes_max)
        self.foreign = self._surplus = 0

    def label(self, name: str) -> str:
        """The value of a configured label; empty where it has none. O(labels)."""
        for known, value in self.spec.labels:
            if known == name:
                return value
        return ""

    @property
    def slots_free(self) -> int:
        """Slots nobody holds; 0 while not Ready, and when it came back with fewer than it runs."""
        free = self.spec.slots_total - self.leased - self.foreign
        return free if free > 0 and self.ready else 0

    @property
    def load_ratio(self) -> float:
        """Slots in use, ours or not, over all slots, 0..1; without slots it is full."""
        total, used = self.spec.slots_total, self.leased + self.foreign
        return used / total if used < total else 1.0

    def observe(self, busy: int, leased_before: int) -> bool:
        """Its engine showed `busy` slots, asked when `leased_before` were leased; whether `foreign`
        is another now (ORCH-3019).

        Two looks in a row must agree: a task that began or ended while the answer was on its way is
        busy without a lease only once.
        """
        surplus = max(busy - max(leased_before, self.leased), 0)
        known, self.foreign = self.foreign, min(surplus, self._surplus)
        self._surplus = surplus
        return self.foreign != known

    def acquire(self) -> None:
        """Lease a slot. Raises InvariantViolation when there is none."""
        if self.slots_free < 1:
            raise InvariantViolation(f"no free slot on {self.spec.pool_id}/{self.spec.id}")
        self.leased += 1

    def release(self) -> None:
        """Give a slot back. Raises InvariantViolation when none is leased."""
        if self.leased < 1:
            raise InvariantViolation(f"slot released twice on {self.spec.pool_id}/{self.spec.id}")
        self.leased -= 1

    def view(self) -> ReplicaView:
        spec = self.spec
        return ReplicaView(
            spec.pool_id, spec.id, self.load_ratio, spec.slots_total, self.slots_free, spec.labels
        )


class ReplicaTable:
    """Replicas by id; iteration is in the order of ids, so that decisions are reproducible."""

    def __init__(self) -> None:
        self._replicas: dict[str, Replica] = {}
        self._sorted: list[Replica] = []
        self.pinned: ReplicaSet | None = None
        self.ever_ready = False
        self.changed = False  # what is Ready has changed since `repin` looked
        self._cordoned: set[str] = set()  # ids, also of replicas that are not here now

    def __iter__(self) -> Iterator[Replica]:
        return iter(self._sorted)

    def get(self, replica_id: str) -> Replica | None:
        return self._replicas.get(replica_id)

    def announce(self, spec: ReplicaSpec, group: ReplicaSet, epoch: int) -> None:
        """The replica is Ready as `spec` says; slots of tasks not yet reported lost stay leased."""
        self.ever_ready = self.changed = True
        known = self._replicas.get(spec.id)
        if known is None:
            known = self._replicas[spec.id] = Replica(spec, group, epoch)
            known.cordoned = spec.id in self._cordoned
            self._sort()
            return
        came_back = not known.ready or known.group is not group
        known.spec, known.group, known.ready = spec, group, True
        if came_back:
            known.epoch = epoch
            known.start_cold()

    def cordon(self, replica_id: str, cordoned: bool) -> None:
        """Give the replica no new work, or lift that; one that is not here when it comes."""
        self.changed = True
        if cordoned:
            self._cordoned.add(replica_id)
        else:
            self._cordoned.discard(replica_id)
        if (known := self._replicas.get(replica_id)) is not None:
            known.cordoned = cordoned

    def observe(self, replica_id: str, busy: int, leased_before: int) -> bool:
        """What its engine showed of a replica's slots; whether that changes what is offered."""
        known = self._replicas.get(replica_id)
        if known is None or not known.ready or not known.observe(busy, leased_before):
            return False
        self.changed = True
        return True

    def absorb(self, other: ReplicaTable, pool_id: str) -> None:
        """Take over another pool's replicas as they are, cordoned or not. Raises InvariantViolation
        for an id that both have."""
        for replica in other:
            if replica.spec.id in self._replicas:
                raise InvariantViolation(f"replica {replica.spec.id} is in pool {pool_id} already")
            replica.spec = dataclasses.replace(replica.spec, pool_id=pool_id)
            self._cordoned.discard(replica.spec.id)  # said of one that had this id before
            self._replicas[replica.spec.id] = replica
        self._cordoned |= other._cordoned
        self.ever_ready = self.ever_ready or other.ever_ready
        self.changed = True
        self._sort()

    def lose(self, replica_id: str) -> None:
        """The replica takes no more work; it is forgotten once its last task is reported."""
        if (known := self._replicas.get(replica_id)) is not None:
            known.ready = False
            self.changed = True
            self.forget_if_gone(known)

    def forget_if_gone(self, replica: Replica) -> None:
        """Drop a lost replica that holds no task any more."""
        if replica.ready or replica.leased or self._replicas.pop(replica.spec.id, None) is None:
            return
        self._sort()

    def has_ready(self, group: ReplicaSet) -> bool:
        """Whether a task of this set may find a slot here sooner or later. O(replicas)."""
        return any(r.ready and r.group is group for r in self._sorted)

    def groups(self) -> list[ReplicaSet]:
        """Sets with Ready replicas that take new work, most replicas first, then by id."""
        ready: dict[str, tuple[int, ReplicaSet]] = {}
        for replica in self._sorted:
            if replica.ready and not replica.cordoned:
                count = ready.get(replica.group.id, (0, replica.group))[0]
                ready[replica.group.id] = (count + 1, replica.group)
        return [group for _, group in sorted(ready.values(), key=lambda e: (-e[0], e[1].id))]

    def repin(self, held: list[ReplicaSet]) -> None:
        """Move the pin if nothing of the pinned set is left; `held` are the sets of tasks that run
        or wait to resume. They do not hold it where somebody has cordoned the set: its own tasks
        still go there, new ones do not."""
        self.changed = False
        ready = self.groups()
        pinned = self.pinned
        if not ready or (pinned is not None and pinned in ready):
            return
        cordoned = any(r.cordoned and r.group is pinned for r in self._sorted)
        if pinned is None or cordoned or pinned not in held:
            self.pinned = ready[0]

    def _sort(self) -> None:
        self._sorted = sorted(self._replicas.values(), key=lambda replica: replica.spec.id)
