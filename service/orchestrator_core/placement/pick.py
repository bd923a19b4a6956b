"""Pick: the one replica a task gets.

On a task's path: last of filter, score, pick. The invariants: what is picked has passed the filter,
whatever the task wishes; the same state gives the same replica (equals go by topology where it is
known, then by the smaller id). Requirements: ORCH-3008, ORCH-3009, ORCH-3010, ORCH-3013, ORCH-3205.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from orchestrator_core.placement import topology
from orchestrator_core.placement.anti_affinity import TenantSpread
from orchestrator_core.placement.filter import usable
from orchestrator_core.placement.score import saved_ratio, score
from orchestrator_core.replica_sets import ReplicaSet
from orchestrator_core.replicas import Replica
from orchestrator_core.task import Task


class Choice(NamedTuple):
    """The replica that was picked, and what it was picked for.

    Args:
        load_ratio: its slots in use over all of them, before the task got one; 0..1.
        affinity: the session's last good replica.
        saved_ratio: share of the task's service time that its known prefix saves, 0..1.
        tenant_tasks: tasks of the tenant under its labels, the first that spreads them; None where
            the pool has no anti-affinity.
    """

    replica: Replica
    score: float
    load_ratio: float
    affinity: bool = False
    saved_ratio: float = 0.0
    tenant_tasks: int | None = None


def choice(replica: Replica, preferred: Replica | None) -> Choice:
    """What speaks for a replica where load and affinity decide alone."""
    return Choice(replica, score(replica, preferred), replica.load_ratio, replica is preferred)


@dataclass(frozen=True, slots=True)
class Wish:
    """What beside load and affinity counts for one task.

    Args:
        spread: where the pool has anti-affinity.
        reuse: a warm prefix saves prefill for this task (not for one that is decoded cold).
        neighbours: all replicas of the pool where their topology is known, else none.
    """

    task: Task
    spread: TenantSpread | None = None
    reuse: bool = False
    neighbours: Sequence[Replica] = ()


def pick(
    replicas: Iterable[Replica],
    group: ReplicaSet | None,
    preferred: Replica | None = None,
    avoid: Replica | None = None,
    wish: Wish | None = None,
) -> Choice | None:
    """The best usable replica, or None. `replicas` come in the order of their ids. O(replicas).

    `avoid` (where the task's worker died) is taken only when it is the only one. Without a `wish`
    load and affinity decide alone.
    """
    if wish is not None:
        return _pick_by_wish(usable(replicas, group), preferred, avoid, wish)
    second_choice: Replica | None = None
    best: Replica | None = None
    best_score = -1.0
    for replica in usable(replicas, group):
        if replica is avoid:
            second_choice = replica
            continue
        if (value := score(replica, preferred)) > best_score:
            best, best_score = replica, value
    best = best or second_choice
    return None if best is None else choice(best, preferred)


def _pick_by_wish(
    candidates: list[Replica], preferred: Replica | None, avoid: Replica | None, wish: Wish
) -> Choice | None:
    candidates = [replica for replica in candidates if replica is not avoid] or candidates
    if wish.spread is not None:
        candidates = wish.spread.least_crowded(wish.task.tenant, candidates)
    best: dict[Replica, float] = {}  # what each of them saves
    best_score = -1.0
    for replica in candidates:
        saved = saved_ratio(replica, wish.task) if wish.reuse else 0.0
        value = score(replica, preferred, saved)
        if value > best_score:
            best, best_score = {replica: saved}, value
        elif value == best_score:
            best[replica] = saved
    if not best:
        return None
    chosen = next(iter(best))
    if len(best) > 1 and wish.neighbours:
        chosen = topology.quietest(list(best), wish.neighbours)
    spread, tenant_tasks = wish.spread, None
    if spread is not None and spread.labels:
        label = spread.labels[0]
        tenant_tasks = spread.running(wish.task.tenant, label, chosen.label(label))
    return Choice(
        chosen,
        best_score,
        chosen.load_ratio,
        affinity=chosen is preferred,
        saved_ratio=best[chosen],
        tenant_tasks=tenant_tasks,
    )
