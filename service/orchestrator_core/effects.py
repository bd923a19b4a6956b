"""What is to be done: the core's decisions as values. Services turn them into I/O."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator_core.errors import Refusal


@dataclass(frozen=True, slots=True)
class Admitted:
    """The promise of the 202 (ORCH-2001). `queue_position` counts the tasks before it (0: next, or
    dispatched at once); `predicted_start_ms` is milliseconds from now."""

    task_key: str
    pool_id: str
    queue_position: int
    predicted_start_ms: int
    backoff_ms: int


@dataclass(frozen=True, slots=True)
class Rejected:
    """Refused before it entered a queue."""

    task_key: str
    refusal: Refusal


@dataclass(frozen=True, slots=True)
class Ended:
    """A waiting task reached its terminal state inside the core: evicted, past its deadline, or
    cancelled (`refusal` is None)."""

    task_key: str
    refusal: Refusal | None


@dataclass(frozen=True, slots=True)
class Dispatch:
    """Start (or, with `attempt` > 1, start again) the task on this replica; a slot is leased."""

    task_key: str
    pool_id: str
    replica_id: str
    attempt: int


@dataclass(frozen=True, slots=True)
class Stop:
    """End a running task: close its upstream connection. Its slot is already free in the core."""

    task_key: str
    pool_id: str
    replica_id: str


@dataclass(frozen=True, slots=True)
class SessionExpired:
    session_key: str


Effect = Admitted | Rejected | Ended | Dispatch | Stop | SessionExpired
