"""Why a task was refused, evicted or aborted: one closed, low-cardinality vocabulary.

`Code` is the public contract (ORCH-2006); `Reason` is the finer, still closed set that labels
metrics and logs. Outcomes are values (`Refusal`); only a broken invariant is an exception.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Code(StrEnum):
    """Public error codes (ORCH-2006)."""

    ADMISSION_REJECT = "ADMISSION_REJECT"
    QUEUE_FULL_DROP_LRU = "QUEUE_FULL_DROP_LRU"
    INVALID_PARAMS = "INVALID_PARAMS"
    POOL_UNREADY = "POOL_UNREADY"
    POOL_UNAVAILABLE = "POOL_UNAVAILABLE"
    REPLICA_EXHAUSTED = "REPLICA_EXHAUSTED"
    DECODE_TIMEOUT = "DECODE_TIMEOUT"
    WORKER_RESET = "WORKER_RESET"
    INTERNAL = "INTERNAL"
    DEADLINE_UNMET = "DEADLINE_UNMET"
    MODEL_DEPRECATED = "MODEL_DEPRECATED"
    UNTRUSTED_ARTIFACT = "UNTRUSTED_ARTIFACT"


class Reason(StrEnum):
    """What exactly decided; the `reason` label of metrics, whose budget is 16
    values for each metric: no refusal is for CLIENT, TIMEOUT or WORKER."""

    QUEUE_FULL = "queue-full"
    DROPPED_LRU = "drop-lru"
    SHED = "shed-low-priority"
    BREAKER = "circuit-breaker"
    PREEMPTED = "preempted"
    RATE_LIMIT = "rate-limit"
    QUOTA = "quota"
    BUDGET = "budget"
    SESSION_TURNS = "session-turns"
    DEADLINE = "deadline"
    CONTEXT = "context"
    INVALID = "invalid"
    POOL_UNREADY = "pool-unready"
    POOL_UNAVAILABLE = "pool-unavailable"
    DRAINING = "draining"
    CLIENT = "client"  # the client cancelled
    TIMEOUT = "timeout"
    WORKER = "worker"


@dataclass(frozen=True, slots=True)
class Refusal:
    """A typed "no", at admission or later; the api layer turns it into status and envelope.

    `retry_after_ms` is None where coming back later does not help. `policy_label` names the
    policy that decided, where one did (ORCH-2007). `figures` are the numbers that the check
    compared, by names that carry their units.
    """

    code: Code
    reason: Reason
    message: str
    retriable: bool = False
    retry_after_ms: int | None = None
    policy_label: str | None = None
    engine: str | None = None
    pool_id: str | None = None
    figures: tuple[tuple[str, float | str], ...] = ()


class InvariantViolation(Exception):
    """The core was driven against its protocol: a programming error, caught nowhere below `app`."""
