"""What happened: the only way facts reach the core. `Scheduler.step(event, now_ms)` takes one.

All values are frozen; times are wall-clock milliseconds; keys are the services' opaque strings.
"""

from __future__ import annotations

from orchestrator_core.admission.circuit_breaker import Shed
from orchestrator_core.limits import Limits
from orchestrator_core.pool import PoolSpec, ReplicaSpec, SetKey
from orchestrator_core.task import Task
from orchestrator_core.value import Value


class PoolAdded(Value, frozen=True):
    spec: PoolSpec


class PoolDraining(Value, frozen=True):
    """Take no more work into this pool and start none; `False` lifts it.

    What waits moves to another pool that takes it, else it keeps its place (ORCH-2101); what has
    run and resumes still may. With `in_place` nothing moves or resumes: the service itself stops.
    """

    pool_id: str
    draining: bool = True
    in_place: bool = False


class Evacuated(Value, frozen=True):
    """A drain is over: what is left here, and nobody else takes, ends (ORCH-2101).

    The replicas have been reported lost. `replica_ids`: only tasks that resume and ran on one of
    these; empty for all of the pool, its waiting tasks as well.
    """

    pool_id: str
    replica_ids: tuple[str, ...] = ()


class PoolRemoved(Value, frozen=True):
    """Forget a pool without tasks (InvariantViolation if there are any)."""

    pool_id: str


class PoolMerged(Value, frozen=True):
    """`pool_id` takes over the replicas and all tasks of `source`, which is forgotten: what runs
    there goes on undisturbed (a canary is promoted, ORCH-3033)."""

    pool_id: str
    source: str


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


class ReplicaCordoned(Value, frozen=True):
    """The replica gets no new work; what runs on it goes on. It holds until it is lifted with
    `False`, also while the replica is lost and when it comes back."""

    pool_id: str
    replica_id: str
    cordoned: bool = True


class SlotsObserved(Value, frozen=True):
    """An engine was asked how many of its slots are `busy`, when `leased_before` were leased to
    tasks of ours; 0 for one that does not tell. What is busy beyond our leases in two such answers
    in a row is not offered (ORCH-3019)."""

    pool_id: str
    replica_id: str
    busy: int
    leased_before: int


class Submit(Value, frozen=True):
    """A task asks for admission, after every check that needs I/O."""

    task: Task


class Recover(Value, frozen=True):
    """A task that was admitted before a restart, as the journal tells it: never refused.

    `Recover`, `RecoverStarted` and `RecoverEnded` repeat what the journal holds, of tasks that have
    ended as well and in its order, before a replica of the pool is Ready (else
    InvariantViolation). So queues go through what they went through: order, shares and rates are
    what they were (ORCH-3203, ORCH-3075). `pool_id` is where it was admitted, `admitted_ms` when;
    if that pool is gone the task goes to another that serves its model, and without one it ends
    with POOL_UNAVAILABLE. Its budget is reserved again, its turn not charged again.
    """

    task: Task
    pool_id: str
    admitted_ms: int


class RecoverStarted(Value, frozen=True):
    """It had left the queue for a slot of the replica set `set_key`: it resumes there and nowhere
    else, before everything that waits.

    Its flow is charged as it was, unless not `charged`: where the journal has forgotten what others
    were served then, a charge would be unfair. Once more for the same task: it began anew.
    """

    task_key: str
    set_key: SetKey
    charged: bool = True


class RecoverEnded(Value, frozen=True):
    """It had ended. What its session paid for it is in `SessionRestored`.

    `tokens` were used of what was reserved for it; `gave_way`: it was removed from the queue for a
    more urgent task, which cost its class a turn; `started`: it ran, whether or not that was told.
    """

    task_key: str
    tokens: int = 0
    started: bool = False
    gave_way: bool = False


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
    everything that waits; with none Ready the task waits for one until its deadline. `anew`: no
    client has seen anything of it, so that any set that serves its model will do."""

    task_key: str
    resume: bool
    tokens_out: int = 0
    anew: bool = False


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


class LimitsChanged(Value, frozen=True):
    """Other limits from now on; what was admitted under the former ones stays."""

    limits: Limits


class Tick(Value, frozen=True):
    """Time has passed: waiting tasks beyond their deadline end, expired sessions are forgotten."""


Event = (
    PoolAdded
    | PoolDraining
    | Evacuated
    | PoolRemoved
    | PoolMerged
    | Shedding
    | ReplicaReady
    | ReplicaLost
    | ReplicaCordoned
    | SlotsObserved
    | Submit
    | Recover
    | RecoverStarted
    | RecoverEnded
    | Cancel
    | Finished
    | Aborted
    | TokensShown
    | WorkerLost
    | SessionRestored
    | SessionForgotten
    | LimitsChanged
    | Tick
)
