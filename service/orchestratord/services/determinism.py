"""What proves a strict stream: its record, and the request that decodes the same bytes again.

Off the token path: read on demand from the task's own rows of the journal, so that nothing is kept
in memory for it. The invariant: a report is given only for a whole strict completion, whose bytes
anybody can compute again and compare (ORCH-3206).
"""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from orchestrator_core.determinism import determinism_key
from orchestrator_core.task import Determinism, Workload
from orchestratord.ports.journal import Journal
from orchestratord.services import records
from orchestratord.services.jobs import Job, Phase


@dataclass(frozen=True, slots=True)
class Proof:
    """The record of how it ended and that of how it began, of one and the same task."""

    record: records.DeterminismRecord
    admitted: records.TaskAdmitted
    tokens_out: int


@dataclass(frozen=True, slots=True)
class NoProof:
    """Why there is nothing to be compared."""

    message: str


class DeterminismService:
    def __init__(self, journal: Journal) -> None:
        self._journal = journal

    async def proof(self, job: Job) -> Proof | NoProof:
        """What the journal holds of a task that has ended. Raises `JournalError`."""
        if job.phase is not Phase.ENDED:
            return NoProof("id: the task has not ended yet")
        if job.ended is not None:  # its end was shown before it is on disk: that comes at once
            await job.ended
        admitted: records.TaskAdmitted | None = None
        ended: records.TaskEnded | None = None
        for row in job.rows:
            for data in await self._journal.read(row):
                match record := _decoded(data):
                    case records.TaskAdmitted() if _is_of(record, job):
                        admitted = record
                    case records.TaskEnded() if _is_of(record, job):
                        ended = record
        if admitted is None or ended is None or ended.determinism is None:
            return NoProof(
                "id: the task has no determinism record: "
                "only a strict completion that came to its end has one"
            )
        return Proof(ended.determinism, admitted, ended.tokens_out)


def determinism_record(job: Job, sha256: str) -> records.DeterminismRecord | None:
    """What proves a strict completion later (ORCH-3206); None for anything else."""
    payload, task = job.payload, job.task
    strict = task.determinism is Determinism.STRICT and task.workload is Workload.COMPLETION
    if payload is None or not strict:
        return None
    sampling = payload.sampling
    key = determinism_key(
        prompt=payload.prompt,
        params={
            "max_tokens": task.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "stop": sampling.stop,
        },
        seed=payload.seed,
        sampler_profile=task.sampler_profile_version or "",
        engine_version=job.engine_version,
        model_digest=job.model_digest,
    )
    return records.DeterminismRecord(
        key=key,
        seed=payload.seed,
        sampler_profile_version=task.sampler_profile_version or "",
        engine_version=job.engine_version,
        model_digest=job.model_digest,
        sha256=sha256,
    )


def _is_of(record: records.TaskAdmitted | records.TaskEnded, job: Job) -> bool:
    """Rows are shared: a group commit holds the records of many tasks."""
    return (record.tenant, record.task_id) == (job.task.tenant, job.task_id)


def _decoded(data: bytes) -> records.Record | None:
    try:
        return records.decode(data)
    except msgspec.DecodeError:  # of another version: recovery has reported it
        return None
