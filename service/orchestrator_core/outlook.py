"""What a decision about one task was taken from, and how the task stands: values for explanations.

On a task's path: read once when it is admitted and once when it starts, and whenever somebody asks
why it is where it is. The invariants: these are the numbers that decided (placement's own score,
the queue's own position), not computed a second time in another way; reading them changes nothing.
Requirements: ORCH-3091, ORCH-3094.
"""

from __future__ import annotations

from orchestrator_core.value import Value


class Grounds(Value, frozen=True):
    """Why a task got its slot, and that of this replica.

    Args:
        why: a `pool_state.Why`.
        score / load_ratio / saved_ratio: 0..1, as `placement.score` has them; the load is that
            before the task began.
        affinity: the replica is the session's last good one.
        tenant_tasks: of the same tenant, next to it (`placement.pick.Choice`); None without
            anti-affinity.
        slack_ms: what is left until its deadline after its expected end, negative where it will be
            late; None while the speed is not known.
    """

    why: str
    score: float
    load_ratio: float
    affinity: bool
    saved_ratio: float
    tenant_tasks: int | None
    slack_ms: int | None


class Outlook(Value, frozen=True):
    """How a task stands that has not ended.

    Args:
        position: tasks before it; 0 for the next one and for one that runs.
        start_ms: from now; 0 for one that runs.
        service_ms / slack_ms: what it should take, and what is then left until its deadline
            (negative: late); None while the speed is not known.
        on_time_probability: 0..1.
        held: a quota of its tenant keeps it waiting, whatever slot is free.
        serving: replicas that take new work of its pool.
    """

    position: int
    start_ms: int
    service_ms: int | None
    slack_ms: int | None
    on_time_probability: float
    held: bool
    serving: int
