"""The task as the scheduler sees it: who asks, for what, until when, at which estimated cost.

Prompts and sampling stay outside (services own them): a decision needs their size, never their
text. Keys are opaque strings that the services build; a task key is unique per tenant.
"""

from __future__ import annotations

from enum import StrEnum

from orchestrator_core.value import Value


class Priority(StrEnum):
    """Admission classes, most urgent first (ORCH-3075)."""

    INTERACTIVE = "interactive"
    BATCH = "batch"

    @property
    def rank(self) -> int:
        """0 is the most urgent."""
        return 0 if self is Priority.INTERACTIVE else 1


class Workload(StrEnum):
    COMPLETION = "completion"
    EMBEDDING = "embedding"
    RERANK = "rerank"


class Determinism(StrEnum):
    STRICT = "strict"
    BEST_EFFORT = "best_effort"


class Task(Value, frozen=True):
    """One admitted or to-be-admitted task.

    Args:
        key: unique id of the task over all tenants.
        session_key: unique id of its session over all tenants.
        arrived_ms / deadline_at_ms: absolute wall-clock milliseconds.
        prompt_tokens: counted by the engine, or an upper bound where counting was not needed.
        cost_tokens: what fairness charges: prompt_tokens + (expected_tokens or max_tokens).
        prefix_blocks: chain hashes of the prompt's blocks (`placement.prefix_tree`), where a warm
            prefix may be reused; else empty.
    """

    key: str
    tenant: str
    session_key: str
    engine: str
    model_ref: str
    priority: Priority
    workload: Workload
    determinism: Determinism
    ctx: int
    max_tokens: int
    prompt_tokens: int
    cost_tokens: int
    arrived_ms: int
    deadline_at_ms: int
    client_id: str = ""
    kv_hint: str | None = None
    sampler_profile_version: str | None = None
    prefix_blocks: tuple[int, ...] = ()
