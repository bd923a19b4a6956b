"""Replica sets: replicas that must give equal bytes, and what is known about their speed.

On a task's path: placement dispatches within one set, failover stays within one, the estimator
learns per set. The invariant: two replicas share a `ReplicaSet` object exactly when their keys are
equal and the model digest is known, or when both are of one pool (an unknown digest, the empty one,
is equal only within its own pool). Requirements: ORCH-3007, ORCH-3046, OC-CORE-1031, OC-CORE-1032.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import astuple, dataclass
from hashlib import blake2b

from orchestrator_core.estimator import ServiceTimes
from orchestrator_core.limits import Limits
from orchestrator_core.pool import SetKey

# Keys come and go with engine updates; sets without replicas are swept beyond this many.
MAX_SETS = 1024


class ReplicaSet:
    """One set, alive as long as a replica, a task or the registry refers to it."""

    __slots__ = ("id", "key", "times")

    def __init__(self, set_id: str, key: SetKey, limits: Limits) -> None:
        self.id = set_id
        self.key = key
        self.times = ServiceTimes(limits)


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A Ready replica as `GET /v1/replicasets` shows it; `load_ratio` is 0..1."""

    pool_id: str
    id: str
    load_ratio: float
    slots_total: int
    slots_free: int
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class ReplicaSetView:
    """The Ready replicas of one set; `load` is slots in use over all slots, 0..1."""

    id: str
    engine: str
    load: float
    slots_total: int
    slots_free: int
    key: SetKey
    replicas: tuple[ReplicaView, ...]


class ReplicaSetRegistry:
    """Interns sets, so that "same set" is one identity comparison on the hot path."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._sets: dict[tuple[str, SetKey], ReplicaSet] = {}

    def __len__(self) -> int:
        return len(self._sets)

    def of(self, key: SetKey, pool_id: str, in_use: Callable[[], set[ReplicaSet]]) -> ReplicaSet:
        """The set of a replica in `pool_id`; `in_use` tells which sets a sweep must keep."""
        scope = pool_id if not key.model_digest else ""
        identity = (scope, key)
        if (known := self._sets.get(identity)) is not None:
            return known
        if len(self._sets) >= MAX_SETS:
            keep = in_use()
            self._sets = {name: entry for name, entry in self._sets.items() if entry in keep}
        new = self._sets[identity] = ReplicaSet(set_id(key, scope), key, self._limits)
        return new


def set_id(key: SetKey, scope: str = "") -> str:
    """A stable public id: the engine and 64 bits of the key's digest. `scope` is the pool id where
    the key holds only within one pool."""
    fields = "".join(f"{len(str(part))}:{part}" for part in (scope, *astuple(key)))
    return f"{key.engine}-{blake2b(fields.encode(), digest_size=8).hexdigest()}"


def view(group: ReplicaSet, replicas: tuple[ReplicaView, ...]) -> ReplicaSetView:
    """What is shown of a set with these Ready replicas."""
    total = sum(replica.slots_total for replica in replicas)
    free = sum(replica.slots_free for replica in replicas)
    load = (total - free) / total if total else 1.0
    return ReplicaSetView(group.id, group.key.engine, load, total, free, group.key, replicas)
