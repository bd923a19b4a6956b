"""Score: how much a task wants a replica that it may have.

On a task's path: second of filter, score, pick. The invariants: a score is in [0, 1]; the session's
last good replica beats every other (what it saves in prefill is more than what a neighbour in the
same batch costs); among the others a saved prefill is weighed against load in the same unit, the
task's own service time. Requirements: ORCH-3008, ORCH-3009, ORCH-3205, OC-CORE-1012, OC-CORE-1013.
"""

from __future__ import annotations

from orchestrator_core.placement.prefix_tree import BLOCK_TOKENS
from orchestrator_core.replicas import Replica
from orchestrator_core.task import Task


def score(replica: Replica, preferred: Replica | None, saved_ratio: float = 0.0) -> float:
    """The upper half for `preferred` (the session's last good replica), the lower for the others;
    within a half the less loaded scores higher, and the one that saves more.

    Args:
        saved_ratio: share of the task's service time that the replica saves, 0..1. A replica whose
            slots are all leased is taken to need twice as long as an idle one, so this share
            outweighs the same share of leased slots.
    """
    gain = 1.0 - replica.load_ratio + saved_ratio  # 0..2
    return (gain / 2.0 + (1.0 if replica is preferred else 0.0)) / 2.0


def saved_ratio(replica: Replica, task: Task) -> float:
    """Share of the task's expected service time that the replica's known prefix saves, 0..1.

    Prefill and decode rates are those of the replica's set (its priors, while it is new).
    """
    held = replica.prefixes.held(task.prefix_blocks)
    if not held:
        return 0.0
    times = replica.group.times
    saved_ms = times.service_ms(min(held * BLOCK_TOKENS, task.prompt_tokens), 0)
    return min(saved_ms / max(times.task_ms(task), 1e-6), 1.0)
