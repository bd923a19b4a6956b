"""What the operator sets for the whole core: sessions, budgets, and the estimator's knobs."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits over all pools; defaults are those of ORCH-3021 and the interface page.

    Args:
        session_ttl_ms: life of a session from its first task, however busy it is.
        session_max_turns: admitted tasks per session.
        budget_tokens / budget_time_ms / budget_cost: per session; None is unlimited.
        cost_per_token: what a token (prompt or generated) adds to a session's cost.
        feasible_after: finished tasks of a replica set before deadlines are judged.
        ewma_weight_ratio: weight of the newest observation, 0..1.
        prior_prefill_ms_per_token / prior_decode_ms_per_token: used for predictions until a
            replica set has finished a task; a small model on a CPU, deliberately not flattering.
        max_sessions: beyond this the least recently used session is forgotten.
    """

    session_ttl_ms: int = 600_000
    session_max_turns: int = 8
    budget_tokens: int | None = None
    budget_time_ms: int | None = None
    budget_cost: float | None = None
    cost_per_token: float = 1.0
    feasible_after: int = 3
    ewma_weight_ratio: float = 0.25
    prior_prefill_ms_per_token: float = 1.0
    prior_decode_ms_per_token: float = 20.0
    max_sessions: int = 100_000
