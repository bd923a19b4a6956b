"""From what the core says to the decisions that are kept: of live tasks with their job, of refused
ones in a ring.

On a task's path: as `decisions` says. The invariant: a value that decided is taken from whoever
computed it for the decision (`Grounds`, `Outlook`, `Refusal.figures`); of refused tasks the last
`MAX_REFUSED` are known. Requirements: ORCH-3027, ORCH-3091, ORCH-3094.
"""

from __future__ import annotations

from collections import OrderedDict

import msgspec

from orchestrator_core.effects import Dispatch
from orchestrator_core.errors import Refusal
from orchestrator_core.outlook import Grounds, Outlook
from orchestrator_core.pool_state import Why
from orchestrator_core.queueing.share import ShareView
from orchestrator_core.task import Priority
from orchestratord.services.decisions import (
    Admitted,
    Canceled,
    Decision,
    Dispatched,
    Ended,
    Evicted,
    Moved,
    Preempted,
    Refused,
    Resumed,
    note,
)
from orchestratord.services.jobs import Job
from orchestratord.services.records import TaskEnded

MAX_REFUSED = 1024

COMPLETED = "completed"

# Outcomes of a task that the core took out of its queue.
_EVICTED = frozenset({"dropped", "expired"})


def admitted(
    at_ms: int,
    job: Job,
    outlook: Outlook,
    why: Why | None,
    share: ShareView | None,
    weights: tuple[int | None, int],
    pools: int,
) -> Admitted:
    """The admission of a job that stands like this, with its promise.

    Args:
        why: it got its slot, where it got one at once.
        share: of its flow, where it waits for its turn.
        weights: of its priority in the pool, and of its tenant.
        pools: that serve its model.
    """
    waits = "quota" if outlook.held else "queued"
    return Admitted(
        at_ms,
        waits if why is None else why,
        job.pool_id,
        job.promise.queue_position,
        job.promise.predicted_start_ms,
        pools,
        job.task.cost_tokens,
        weights[0],
        weights[1],
        outlook.service_ms,
        outlook.slack_ms,
        round(outlook.on_time_probability, 3),
        None if share is None else round(share.observed, 3),
        None if share is None else round(share.entitled, 3),
    )


def refused(at_ms: int, refusal: Refusal) -> Refused:
    """The refusal of a task."""
    return Refused(
        at_ms,
        refusal.reason.value,
        refusal.code.value,
        refusal.message,
        refusal.retry_after_ms,
        refusal.pool_id,
        refusal.policy_label,
        refusal.figures or None,
    )


def started(
    at_ms: int, job: Job, dispatch: Dispatch, grounds: Grounds, share: ShareView | None
) -> Dispatched:
    """It got a slot, for the first time or again; `share` is of its flow, where it had to wait."""
    again = grounds.why == Why.RESUME
    since_ms = job.decisions[-1].at_ms if again and job.decisions else job.task.arrived_ms
    return (Resumed if again else Dispatched)(
        at_ms,
        _why_again(job) if again else grounds.why,
        dispatch.pool_id,
        dispatch.replica_id,
        dispatch.attempt,
        max(at_ms - since_ms, 0),
        round(grounds.score, 3),
        round(grounds.load_ratio, 3),
        grounds.affinity,
        round(grounds.saved_ratio, 3),
        grounds.tenant_tasks,
        job.log.tokens if again else None,
        grounds.slack_ms,
        None if share is None else round(share.observed, 3),
        None if share is None else round(share.entitled, 3),
    )


def _why_again(job: Job) -> str:
    last = job.decisions[-1] if job.decisions else None
    if isinstance(last, Moved):
        return last.reason
    return "preempted" if isinstance(last, Preempted) else "recovered"


def preempted(at_ms: int, job: Job) -> Preempted:
    """It lost its slot to a more urgent task."""
    began_ms = job.decisions[-1].at_ms if job.decisions else at_ms
    ran_ms = max(at_ms - began_ms, 0)
    return Preempted(at_ms, "urgent", job.replica_id, ran_ms, job.log.tokens, job.preemptions)


def worker_lost(at_ms: int, job: Job, cause: str, *, drained: bool) -> Moved:
    """Its worker is gone, or has to go (`drained`); it will be decoded again elsewhere."""
    return Moved(
        at_ms,
        "drained" if drained else "worker-lost",
        job.pool_id,
        from_replica_id=job.replica_id,
        tokens_out=job.log.tokens,
        cause=cause,
    )


def ended(job: Job, outcome: str, reason: str, refusal: Refusal | None) -> Ended:
    """How it ended, at its `ended_ms`."""
    task = job.task
    queue_time_ms = (job.first_dispatch_ms or job.ended_ms) - task.arrived_ms
    decode_time_ms = job.ended_ms - job.first_token_ms if job.first_token_ms else 0
    return _kind(outcome)(
        job.ended_ms,
        reason,
        outcome,
        task.deadline_at_ms - job.ended_ms,
        max(0, queue_time_ms),
        max(0, decode_time_ms),
        job.tokens_in or task.prompt_tokens,
        job.log.tokens,
        job.failovers,
        job.preemptions,
        None if refusal is None else refusal.code.value,
        None if refusal is None else refusal.message,
        None if refusal is None else refusal.retry_after_ms,
        None if refusal is None else refusal.figures or None,
        job.eviction_events,
    )


class _Terminal(msgspec.Struct):
    """What a terminal event's data says, be it an `end` or an `error`."""

    canceled: bool = False
    code: str | None = None
    message: str | None = None
    retry_after_ms: int | None = None


def ended_before(job: Job, end: TaskEnded) -> Ended:
    """How a task ended before a restart, from its record; of its times only the end is known."""
    data = msgspec.json.decode(end.data, type=_Terminal)
    outcome, reason = end.outcome, end.reason
    if not outcome:  # of an older version
        outcome = "failed" if end.event != "end" else "canceled" if data.canceled else COMPLETED
        code = (data.code or "").lower().replace("_", "-")
        reason = {"canceled": "client", "failed": code}.get(outcome, COMPLETED)
    return _kind(outcome)(
        job.ended_ms,
        reason,
        outcome,
        job.task.deadline_at_ms - job.ended_ms,
        None,
        None,
        job.task.prompt_tokens,
        end.tokens_out,
        job.failovers,
        job.preemptions,
        data.code,
        data.message,
        data.retry_after_ms,
    )


def _kind(outcome: str) -> type[Ended]:
    return Canceled if outcome == "canceled" else Evicted if outcome in _EVICTED else Ended


class RefusedTask:
    """A task that has only ever been refused: it may have tried several times."""

    __slots__ = ("decisions", "priority")

    def __init__(self, priority: Priority) -> None:
        self.priority = priority
        self.decisions: list[Refused] = []


class RefusedTasks:
    """The last refused tasks by task key; at most `MAX_REFUSED`, the longest ago goes first."""

    def __init__(self) -> None:
        self._tasks: OrderedDict[str, RefusedTask] = OrderedDict()

    def __len__(self) -> int:
        return len(self._tasks)

    def add(self, key: str, priority: Priority, decision: Refused) -> None:
        """It was refused, perhaps again. O(1)."""
        if (known := self._tasks.get(key)) is None:
            if len(self._tasks) >= MAX_REFUSED:
                self._tasks.popitem(last=False)
            known = self._tasks[key] = RefusedTask(priority)
        else:
            self._tasks.move_to_end(key)
        note(known.decisions, decision)

    def get(self, key: str) -> RefusedTask | None:
        return self._tasks.get(key)

    def admitted(self, key: str) -> list[Decision]:
        """It was admitted at last: what it was refused for before, as the begin of its story."""
        known = self._tasks.pop(key, None)
        return [] if known is None else list(known.decisions)
