"""Score: how much a task wants a replica that it may have.

On a task's path: second of filter, score, pick. The invariant: a score is in [0, 1], and the
session's last good replica beats every other: what it saves in prefill is more than what a
neighbour in the same batch costs. Requirements: ORCH-3008, ORCH-3009, OC-CORE-1012, OC-CORE-1013.
"""

from __future__ import annotations

from orchestrator_core.replicas import Replica


def score(replica: Replica, preferred: Replica | None) -> float:
    """The upper half for `preferred` (the session's last good replica), the lower for the others;
    within a half the less loaded scores higher."""
    idle_ratio = 1.0 - replica.load_ratio
    return (idle_ratio + (1.0 if replica is preferred else 0.0)) / 2.0
