"""Why a task is where it is: what is known of it now, and every decision about it so far.

On a task's path: never; answers `GET /v1/tasks/{id}/explanation` when somebody asks. The invariant:
asking changes nothing, and what is said comes from values that decided, not from a second look at
them. Requirements: ORCH-3027, ORCH-3091, ORCH-3094.
"""

from __future__ import annotations

from typing import Any

from orchestratord.services.jobs import Job, JobTable, Phase
from orchestratord.services.scheduling import SchedulingService

_STATES = {
    Phase.WAITING: "waiting",
    Phase.RUNNING: "running",
    Phase.ENDING: "ended",
    Phase.ENDED: "ended",
}


class ExplanationService:
    """Answers from the jobs and the scheduler's state."""

    def __init__(self, scheduling: SchedulingService, jobs: JobTable) -> None:
        self._scheduling = scheduling
        self._jobs = jobs

    def explain(self, tenant: str, task_id: str) -> dict[str, Any] | None:
        """The `TaskExplanation` of the contract; None for a task that is not known (any more)."""
        job = self._jobs.get(f"{tenant}/{task_id}")
        return None if job is None else self._of_job(job)

    def _of_job(self, job: Job) -> dict[str, Any]:
        scheduler, now_ms = self._scheduling.scheduler, self._scheduling.clock_ms()
        key, state = job.task.key, _STATES[job.phase]
        found: dict[str, Any] = {
            "task_id": job.task_id,
            "tenant": job.task.tenant,
            "state": state,
            "summary": f"It is {state}.",
            "priority": job.task.priority.value,
            "pool_id": job.pool_id,
            "decisions": [],
        }
        if job.replica_id:
            found["replica_id"] = job.replica_id
        if state == "waiting":
            found["queue_position"] = scheduler.position(key)
            found["predicted_start_ms"] = scheduler.predicted_start_ms(key, now_ms)
            found["on_time_probability"] = scheduler.on_time_probability(key, now_ms)
        return found
