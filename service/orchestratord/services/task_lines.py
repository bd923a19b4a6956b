"""The log lines of a task's life: one for each decision, with what it was taken from.

On a task's path: three lines for nearly every task (admitted, dispatched, ended), so what holds for
a replica, and for the task from its admission to its end, is encoded once; a line joins these with
the decision. Off the path a line is a dictionary like any other. The fields are those of ORCH-3027
and ORCH-3094. Invariant: a line is one JSON object in which no name stands twice. Requirements:
ORCH-3027, ORCH-3094, OC-CORE-1040.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec
import structlog

from orchestrator_core.pool import PoolSpec
from orchestrator_core.task import Priority
from orchestratord.services.decisions import Decision, Ended
from orchestratord.services.jobs import Job

log = structlog.get_logger("orchestratord.tasks")

# Beginnings of lines that are kept: one for each replica, engine version, priority and kind.
MAX_BEGINNINGS = 4096

_NO_WEIGHTS: dict[Priority, int] = {}
_encoder = msgspec.json.Encoder()
# By whether the task was preempted and whether its KV was warm.
_FLAGS = {
    (preempted, warm): _encoder.encode({"preempted": preempted, "kv_warmth": warm})[1:-1] + b","
    for preempted in (False, True)
    for warm in (False, True)
}
_ENDED = {
    on_time: b'"on_time_probability":%d.0,"decision":"' % on_time for on_time in (False, True)
}


def to_structlog(line: bytes) -> None:
    """A line where structlog is not set up for JSON lines: whatever it is set up for gets it."""
    fields = msgspec.json.decode(line)
    del fields["level"], fields["at_ms"]
    log.info(**fields)


class TaskLines:
    """Builds the lines and hands each to `write`."""

    def __init__(self, write: Callable[[bytes], None]) -> None:
        self._write = write
        self._pool_fields: dict[str, dict[str, Any]] = {}
        self._weights: dict[str, dict[Priority, int]] = {}
        self._beginnings: dict[tuple[str, str, str, Priority, type[Decision]], bytes] = {}

    def pool_added(self, spec: PoolSpec, fields: dict[str, Any]) -> None:
        """What every line of the pool's tasks carries, in place of what was said of it before."""
        self._pool_fields[spec.id] = fields
        self._weights[spec.id] = {policy.name: policy.weight for policy in spec.priorities}
        self._beginnings.clear()

    def pool_removed(self, pool_id: str) -> None:
        self._pool_fields.pop(pool_id, None)
        self._weights.pop(pool_id, None)
        self._beginnings.clear()

    def pool_fields(self, pool_id: str) -> dict[str, Any]:
        """What was said of the pool; empty where nothing was."""
        return self._pool_fields.get(pool_id, {})

    def weight(self, pool_id: str, priority: Priority) -> int | None:
        """Of the class in the pool, where it has been told of it."""
        return self._weights.get(pool_id, _NO_WEIGHTS).get(priority)

    def fields(self, job: Job) -> dict[str, Any]:
        """The fields of ORCH-3027 and ORCH-3094 that hold at any time of a task's life."""
        preempted = job.preemptions > 0 or job.made_way
        flags = {"preempted": preempted, "kv_warmth": job.kv_warm}
        return _of_task(job) | flags | self._where(job)

    def decided(self, job: Job, decision: Decision) -> None:
        """The line of a decision that ends nothing."""
        self._write(self._begin(job, decision) + decision.json()[1:])

    def ended(self, job: Job, decision: Ended, on_time: bool) -> None:
        """The line that tells the task's whole story; whether it was on time is known by now."""
        if decision.figures is None:
            kind = decision.kind.encode()
            parts = (self._begin(job, decision), _ENDED[on_time], kind, b'",', decision.json()[1:])
            self._write(b"".join(parts))
            return
        # Figures have names of their own, which may be those of other fields: they go first.
        fields = {"event": "task.ended", "level": "info", "at_ms": decision.at_ms}
        fields |= self.fields(job) | decision.values()
        fields["on_time_probability"] = 1.0 if on_time else 0.0
        fields["decision"], fields["reason"] = decision.kind, decision.reason
        self._write(_encoder.encode(fields))

    def _begin(self, job: Job, decision: Decision) -> bytes:
        """The line up to its decision, without what that has itself."""
        kind = type(decision)
        key = (job.pool_id, job.replica_id, job.engine_version, job.task.priority, kind)
        if (beginning := self._beginnings.get(key)) is None:
            if len(self._beginnings) >= MAX_BEGINNINGS:
                self._beginnings.clear()
            beginning = self._beginnings[key] = self._beginning(job, kind)
        of_task = job.line or _encoder.encode(_of_task(job))[1:-1] + b","
        job.line = of_task
        return beginning + of_task + _FLAGS[job.preemptions > 0 or job.made_way, job.kv_warm]

    def _beginning(self, job: Job, kind: type[Decision]) -> bytes:
        event = "ended" if issubclass(kind, Ended) else kind.kind
        fields: dict[str, Any] = {"event": f"task.{event}", "level": "info", **self._where(job)}
        for name in set(kind.__struct_fields__) & set(fields):
            # A weight that nobody has told is left out of a decision.
            if name != "weight" or fields[name] is not None:
                del fields[name]
        return _encoder.encode(fields)[:-1] + b","

    def _where(self, job: Job) -> dict[str, Any]:
        """Of its pool and replica."""
        priority = job.task.priority
        return {
            "engine": job.task.engine,
            "pool_id": job.pool_id,
            "replica_id": job.replica_id,
            "engine_version": job.engine_version,
            "priority": priority.value,
            "weight": self.weight(job.pool_id, priority),
            **self.pool_fields(job.pool_id),
        }


def _of_task(job: Job) -> dict[str, Any]:
    """What does not change from its admission to its end."""
    task = job.task
    return {
        "job_id": job.task_id,
        "session_id": job.session_id,
        "client_id": task.client_id,
        "tenant_id": task.tenant,
        "correlation_id": job.correlation_id,
        "model_id": task.model_ref,
        "sampler_profile_version": task.sampler_profile_version,
        "deadline_ms": task.deadline_at_ms - task.arrived_ms,
    }
