"""Pick: the one replica a task gets.

On a task's path: last of filter, score, pick. The invariant: the same state gives the same replica
(equal scores go to the smaller id). Requirements: ORCH-3008, ORCH-3009, ORCH-3010.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator_core.placement.filter import usable
from orchestrator_core.placement.score import score
from orchestrator_core.replica_sets import ReplicaSet
from orchestrator_core.replicas import Replica


def pick(
    replicas: Iterable[Replica],
    group: ReplicaSet | None,
    preferred: Replica | None = None,
    avoid: Replica | None = None,
) -> Replica | None:
    """The best usable replica, or None. `replicas` come in the order of their ids. O(replicas).

    `avoid` (where the task's worker died) is taken only when it is the only one.
    """
    second_choice: Replica | None = None
    best: Replica | None = None
    best_score = -1.0
    for replica in usable(replicas, group):
        if replica is avoid:
            second_choice = replica
            continue
        if (value := score(replica, preferred)) > best_score:
            best, best_score = replica, value
    return best or second_choice
