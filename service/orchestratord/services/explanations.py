"""Why a task is where it is: what is known of it now, and every decision about it so far.

On a task's path: never; answers `GET /v1/tasks/{id}/explanation` when somebody asks. The invariant:
asking changes nothing, and what is said comes from the values that decided, not from a second look
at them. Requirements: ORCH-3027, ORCH-3091, ORCH-3094.

Decisions are not journaled. After a restart a task's begin with its promise (reason `recovered`),
and one that had ended before has its end from the journal; the summary says so.
"""

from __future__ import annotations

from typing import Any

from orchestrator_core.outlook import Outlook
from orchestrator_core.queueing.share import ShareView
from orchestratord.services import explanation_summary as summary
from orchestratord.services.decision_log import RefusedTask, RefusedTasks
from orchestratord.services.decisions import (
    Admitted,
    Decision,
    Dispatched,
    Ended,
)
from orchestratord.services.jobs import Job, JobTable, Phase
from orchestratord.services.scheduling import SchedulingService


class ExplanationService:
    """Answers from jobs, refused tasks and the scheduler's state."""

    def __init__(
        self, scheduling: SchedulingService, jobs: JobTable, refused: RefusedTasks
    ) -> None:
        self._scheduling = scheduling
        self._jobs = jobs
        self._refused = refused

    def explain(self, tenant: str, task_id: str) -> dict[str, Any] | None:
        """The `TaskExplanation` of the contract; None for a task that is not known (any more)."""
        key = f"{tenant}/{task_id}"
        if (job := self._jobs.get(key)) is not None:
            return self._of_job(job)
        if (refused := self._refused.get(key)) is not None:
            return _of_refused(tenant, task_id, refused)
        return None

    def _of_job(self, job: Job) -> dict[str, Any]:
        scheduler, now_ms = self._scheduling.scheduler, self._scheduling.clock_ms()
        task, decisions = job.task, _decisions(job)
        outlook = scheduler.outlook(task.key, now_ms)
        share = scheduler.share_of(task.key, now_ms)
        over = job.phase in (Phase.ENDING, Phase.ENDED)
        found: dict[str, Any] = {
            "task_id": job.task_id,
            "tenant": task.tenant,
            "state": "ended" if over else job.phase.value,
            "summary": _summary(job, decisions, outlook, share, now_ms),
            "priority": task.priority.value,
            "pool_id": job.pool_id,
        }
        if job.replica_id:
            found["replica_id"] = job.replica_id
        if not over and outlook is not None:
            if job.phase is Phase.WAITING:
                found["queue_position"] = outlook.position
                found["predicted_start_ms"] = outlook.start_ms
            if outlook.slack_ms is not None:
                found["slack_ms"] = outlook.slack_ms
            found["on_time_probability"] = round(outlook.on_time_probability, 3)
        if not over and share is not None:
            found["share"] = {
                "observed": round(share.observed, 3),
                "entitled": round(share.entitled, 3),
            }
        found["decisions"] = [_told(decision) for decision in decisions]
        return found


def _of_refused(tenant: str, task_id: str, refused: RefusedTask) -> dict[str, Any]:
    last = refused.decisions[-1]
    found: dict[str, Any] = {
        "task_id": task_id,
        "tenant": tenant,
        "state": "refused",
        "summary": summary.refused(last, len(refused.decisions)),
        "priority": refused.priority.value,
    }
    if last.pool_id is not None:
        found["pool_id"] = last.pool_id
    found["decisions"] = [_told(decision) for decision in refused.decisions]
    return found


def _summary(
    job: Job,
    decisions: list[Decision],
    outlook: Outlook | None,
    share: ShareView | None,
    now_ms: int,
) -> str:
    task, last = job.task, decisions[-1] if decisions else None
    if isinstance(last, Ended):
        text = summary.ended(last)
    elif outlook is None:
        text = "Its end is on the way."
    elif job.phase is Phase.RUNNING:
        start = last if isinstance(last, Dispatched) else None
        text = summary.running(job.replica_id, outlook, start, now_ms)
    else:
        flow = f"{task.tenant}/{task.priority.value}"
        text = summary.waiting(flow, job.pool_id, outlook, share, last)
    return f"{text} {summary.RECOVERED}" if job.recovered else text


def _decisions(job: Job) -> list[Decision]:
    """All that is known; of a recovered task what the journal knows comes first."""
    if not job.recovered:
        return job.decisions
    promise = job.promise
    return [
        Admitted(
            job.task.arrived_ms,
            "recovered",
            job.pool_id,
            promise.queue_position,
            promise.predicted_start_ms,
            cost_tokens=job.task.cost_tokens,
        ),
        *job.decisions,
    ]


def _told(decision: Decision) -> dict[str, Any]:
    return {
        "at_ms": decision.at_ms,
        "decision": decision.kind,
        "reason": decision.reason,
        "values": decision.values(),
    }
