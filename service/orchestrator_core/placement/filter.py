"""Filter: the replicas a task may run on at all.

On a task's path: first of filter, score, pick. The invariant: only replicas of the task's own pool
come in (a device mask is a pool's, so there is no spillover to check), and only Ready ones with a
free slot and of the required set go out. Requirements: ORCH-3010, ORCH-3011, ORCH-3046,
OC-CORE-1010, OC-CORE-1011.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator_core.replica_sets import ReplicaSet
from orchestrator_core.replicas import Replica


def usable(replicas: Iterable[Replica], group: ReplicaSet | None) -> list[Replica]:
    """Ready replicas with a free slot, of `group` only unless it is None; order is kept. Cordoned
    ones only where there are no others: new work is not asked about them (`serving`), a task that
    resumes has no better place."""
    found = [
        replica
        for replica in replicas
        if (group is None or replica.group is group) and replica.slots_free
    ]
    return [replica for replica in found if not replica.cordoned] or found


def serving(replicas: Iterable[Replica], group: ReplicaSet | None) -> list[Replica]:
    """Replicas that new work may go to: Ready, not cordoned, of `group` (of any set when None),
    free or not; order is kept."""
    return [
        r for r in replicas if r.ready and not r.cordoned and (group is None or r.group is group)
    ]
