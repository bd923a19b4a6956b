"""What was decided about a task and what it was decided from, kept for explanations and logged.

On a task's path: one small value when it is admitted or refused, when it gets a slot, when it loses
one and when it ends; nothing per token. The invariants: a job keeps at most `MAX_DECISIONS` of
them; a decision holds numbers and short words, never a prompt and never another tenant's name.
Requirements: ORCH-3027, ORCH-3091, ORCH-3094.

Field names are those of the log line and of the contract's `values`, with their units. Decisions
are not journaled: after a restart a task's begin with what the journal knows, its promise.
"""

from __future__ import annotations

from typing import Any, ClassVar, TypeVar

import msgspec

from orchestrator_core.value import Value

# A task is interrupted or loses its worker a few times at most: this is never reached in peace.
MAX_DECISIONS = 32
# What one takes in memory (measured with tracemalloc), counted against `streams.retain_bytes`.
DECISION_BYTES = 320

_encoder = msgspec.json.Encoder()


class Decision(Value, frozen=True, omit_defaults=True):
    """One decision; fields of a kind that are None were not known or played no part.

    Args:
        at_ms: wall-clock milliseconds.
        reason: one or two words of a small vocabulary.
    """

    kind: ClassVar[str]

    at_ms: int
    reason: str

    def values(self) -> dict[str, Any]:
        """What it was taken from, without what played no part."""
        values: dict[str, Any] = msgspec.to_builtins(self)
        del values["at_ms"], values["reason"]
        return values

    def json(self) -> bytes:
        """The same with when and why, as a JSON object; a refusal's figures stand in one field."""
        return _encoder.encode(self)


class Admitted(Decision, frozen=True):
    """It may wait or run. Reasons: free-slot, urgent or fair-turn where it starts at once; queued;
    quota where its tenant's own holds it; recovered where only the journal knows of it."""

    kind: ClassVar[str] = "admitted"

    pool_id: str
    queue_position: int
    predicted_start_ms: int
    pools: int | None = None  # that serve its model
    cost_tokens: int | None = None
    weight: int | None = None  # of its priority
    tenant_weight: int | None = None
    service_ms: int | None = None
    slack_ms: int | None = None
    on_time_probability: float | None = None
    share_observed: float | None = None
    share_entitled: float | None = None


class Refused(Decision, frozen=True):
    """It never entered a queue; the reason is the refusal's."""

    kind: ClassVar[str] = "refused"

    code: str
    cause: str
    retry_after_ms: int | None = None
    pool_id: str | None = None
    policy: str | None = None
    figures: tuple[tuple[str, float | str], ...] | None = None  # of `errors.Refusal`

    def values(self) -> dict[str, Any]:
        return _flat(super().values())


class Dispatched(Decision, frozen=True):
    """It got a slot (`orchestrator_core.outlook.Grounds`); `waited_ms` since it arrived."""

    kind: ClassVar[str] = "dispatched"

    pool_id: str
    replica_id: str
    attempt: int
    waited_ms: int
    score: float
    load_ratio: float
    affinity: bool
    saved_ratio: float
    tenant_tasks: int | None = None
    tokens_out: int | None = None  # that its readers have already
    slack_ms: int | None = None
    share_observed: float | None = None
    share_entitled: float | None = None


class Resumed(Dispatched, frozen=True):
    """It got one again: after it was preempted, had to move (its reason) or the service restarted
    (recovered); `waited_ms` since then."""

    kind: ClassVar[str] = "resumed"


class Preempted(Decision, frozen=True):
    """It lost its slot to a more urgent task and will be decoded again (ORCH-3086)."""

    kind: ClassVar[str] = "preempted"

    replica_id: str
    ran_ms: int
    tokens_out: int
    preemptions: int


class Moved(Decision, frozen=True):
    """It cannot stay where it was: its worker was lost (worker-lost) or had to go (drained), or its
    pool takes it no more (pool)."""

    kind: ClassVar[str] = "moved"

    from_pool_id: str
    pool_id: str | None = None
    from_replica_id: str | None = None
    tokens_out: int | None = None
    cause: str | None = None


class Ended(Decision, frozen=True):
    """Its terminal event. Reasons: completed; else that of the refusal, as in shed-low-priority,
    deadline, timeout or worker."""

    kind: ClassVar[str] = "ended"

    outcome: str
    slack_ms: int  # left until its deadline, negative: late
    queue_time_ms: int | None  # None: not in the journal
    decode_time_ms: int | None
    tokens_in: int
    tokens_out: int
    failovers: int
    preemptions: int
    code: str | None = None
    cause: str | None = None
    retry_after_ms: int | None = None
    figures: tuple[tuple[str, float | str], ...] | None = None  # of `errors.Refusal`
    # Sessions whose KV its last replica had given up for others' by then; None: it never ran.
    eviction_events: int | None = None

    def values(self) -> dict[str, Any]:
        values = _flat(super().values())
        if self.queue_time_ms is None:
            del values["queue_time_ms"]
        if self.decode_time_ms is None:
            del values["decode_time_ms"]
        return values


class Canceled(Ended, frozen=True):
    """Its client ended it, or is gone."""

    kind: ClassVar[str] = "canceled"


class Evicted(Ended, frozen=True):
    """It left the queue for another task, or since its deadline has passed."""

    kind: ClassVar[str] = "evicted"


def _flat(values: dict[str, Any]) -> dict[str, Any]:
    """The figures of a refusal stand among the other values."""
    return values | dict(values.pop("figures")) if "figures" in values else values


Kind = TypeVar("Kind", bound=Decision)


def note(decisions: list[Kind], decision: Kind) -> None:
    """One more; of too many the first one stays, and the newest."""
    if len(decisions) >= MAX_DECISIONS:
        del decisions[1]
    decisions.append(decision)
