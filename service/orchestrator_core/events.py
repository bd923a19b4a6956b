"""What happened: the only way facts reach the core. `Scheduler.step(event, now_ms)` takes one.

All values are frozen; times are wall-clock milliseconds; keys are the services' opaque strings.
"""

from __future__ import annotations

from orchestrator_core.admission.circuit_breaker import Shed
from orchestrator_core.pool import PoolSpec, ReplicaSpec, SetKey
from orchestrator_core.task import Task
from orchestrator_core.value import Value


class PoolAdded(Value, frozen=True):
    spec: PoolSpec


class PoolDraining(Value, frozen=True):
    """Take no more work into this pool and dispatch none; `False` lifts it."""

    pool_id: str
    draining: bool = True


class Shedding(Value, frozen=True):
    """The pool's circuit breaker refuses these priorities from now on, and no others (ORCH-3040).
    What waits or runs already keeps its promise."""

    pool_id: str
    shed: tuple[Shed, ...]


class ReplicaReady(Value, frozen=True):
    replica: ReplicaSpec


class ReplicaLost(Value, frozen=True):
    """The replica takes no more work. Tasks on it are reported one by one (`WorkerLost`)."""

    pool_id: str
    replica_id: str


class Submit(Value, frozen=True):
    """A task asks for admission, after every check that needs I/O."""

    task: Task


class Recover(Value, frozen=True):
    """A task admitted before a restart comes back: never refused, turns not charged again.

    `was_running` puts it before everything that waited (ORCH-3203). Recover events come in
    admission order. `pool_id` is where it was admitted; if that pool is gone the task ends
    with POOL_UNAVAILABLE. `set_key` is the replica set it ran in, where known: a running task then
    resumes there and nowhere else. Its budget is reserved again, its session opened if need be.
    """

    task: Task
    pool_id: str
    was_running: bool
    set_key: SetKey | None = None


class Cancel(Value, frozen=True):
    """The client, or a service on its behalf, ends a waiting or running task.

    `tokens_out` is what a running one has generated so far; the session's budget pays for it.
    """

    task_key: str
    tokens_out: int = 0


class Finished(Value, frozen=True):
    """A running task ended on its replica by itself; its slot is free.

    `prefill_ms` and `decode_ms` feed the estimator; `kv_bytes` and `kv_warm` the session.
    `cached_tokens` of `tokens_in` were not read: the engine had them from an earlier task.
    """

    task_key: str
    tokens_in: int
    tokens_out: int
    prefill_ms: int
    decode_ms: int
    kv_bytes: int = 0
    kv_warm: bool = False
    cached_tokens: int = 0


class Aborted(Value, frozen=True):
    """A running task was ended by a service (time-out, mismatch, engine error); its slot is free.

    `tokens_out` is what it had generated; the session's budget pays for it.
    """

    task_key: str
    tokens_out: int = 0


class TokensShown(Value, frozen=True):
    """The first token of a running best_effort task went out: it can be run again no more."""

    task_key: str


class WorkerLost(Value, frozen=True):
    """A running task's worker died. `resume=True` asks for another replica of the same set, before
    everything that waits; with none Ready the task waits for one until its deadline."""

    task_key: str
    resume: bool
    tokens_out: int = 0


class SessionRestored(Value, frozen=True):
    """A session known from the journal, before any `Recover` of its tasks.

    What its finished tasks have used counts against its budgets; live ones reserve again.
    """

    session_key: str
    created_ms: int
    turns: int
    tokens_used: int = 0
    time_used_ms: int = 0


class SessionForgotten(Value, frozen=True):
    session_key: str


class Tick(Value, frozen=True):
    """Time has passed: waiting tasks beyond their deadline end, expired sessions are forgotten."""


Event = (
    PoolAdded
    | PoolDraining
    | Shedding
    | ReplicaReady
    | ReplicaLost
    | Submit
    | Recover
    | Cancel
    | Finished
    | Aborted
    | TokensShown
    | WorkerLost
    | SessionRestored
    | SessionForgotten
    | Tick
)
