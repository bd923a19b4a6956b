"""What is to be done: the core's decisions as values. Services turn them into I/O."""

from __future__ import annotations

from orchestrator_core.errors import Refusal
from orchestrator_core.value import Value


class Admitted(Value, frozen=True):
    """The promise of the 202 (ORCH-2001). `queue_position` counts the tasks before it (0: next, or
    dispatched at once); `predicted_start_ms` is milliseconds from now."""

    task_key: str
    pool_id: str
    queue_position: int
    predicted_start_ms: int
    backoff_ms: int


class Rejected(Value, frozen=True):
    """Refused before it entered a queue."""

    task_key: str
    refusal: Refusal


class Ended(Value, frozen=True):
    """A waiting task reached its terminal state inside the core: evicted, past its deadline, or
    cancelled (`refusal` is None). `preempted`: it made way for a task of a higher priority."""

    task_key: str
    refusal: Refusal | None
    preempted: bool = False


class Dispatch(Value, frozen=True):
    """Start (or, with `attempt` > 1, start again) the task on this replica; a slot is leased."""

    task_key: str
    pool_id: str
    replica_id: str
    attempt: int


class Stop(Value, frozen=True):
    """End a running task: close its upstream connection. Its slot is already free in the core."""

    task_key: str
    pool_id: str
    replica_id: str


class Preempt(Value, frozen=True):
    """Interrupt a running task for a more urgent one: close its upstream connection. It comes back
    with a `Dispatch`, and is decoded again from its first token (ORCH-3086)."""

    task_key: str
    pool_id: str
    replica_id: str


class Moved(Value, frozen=True):
    """A task that does not run waits in this pool from now on, or runs there with its replica."""

    task_key: str
    pool_id: str


class SessionExpired(Value, frozen=True):
    session_key: str


Effect = Admitted | Rejected | Ended | Dispatch | Stop | Preempt | Moved | SessionExpired
