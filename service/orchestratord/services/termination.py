"""How a task ends: decided once, on disk where it must be, then shown.

Terminal events that cannot be computed again (cancel, drop, time-out, WORKER_RESET, every end of a
best_effort task) are durable before a reader sees them; the `end` of a strict task is shown at
once, since the same decode gives it again (ORCH-3203). Invariant: exactly one terminal event.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import structlog

from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.task import Determinism, Workload
from orchestratord.ports.journal import Journal, JournalError
from orchestratord.services import decision_log, records
from orchestratord.services.jobs import Job, JobTable, Phase
from orchestratord.services.scheduling import Clock
from orchestratord.services.telemetry import Telemetry

log = structlog.get_logger("orchestratord.termination")

_OUTCOMES = {
    Reason.DROPPED_LRU: "dropped",
    Reason.SHED: "dropped",
    Reason.PREEMPTED: "dropped",
    Reason.DEADLINE: "expired",
}

DeterminismOf = Callable[[Job, str], records.DeterminismRecord | None]


@dataclass(frozen=True, slots=True)
class _Unwritten:
    """An end that was decided; `shown` when it can be computed again and is visible already."""

    job: Job
    event: str
    payload: bytes
    record: bytes
    shown: bool


class TerminationService:
    """The only writer of terminal events."""

    def __init__(
        self,
        jobs: JobTable,
        journal: Journal,
        telemetry: Telemetry,
        clock_ms: Clock,
        determinism_of: DeterminismOf,
    ) -> None:
        self._jobs = jobs
        self._journal = journal
        self._telemetry = telemetry
        self._clock_ms = clock_ms
        self._determinism_of = determinism_of
        self._unwritten: list[_Unwritten] = []
        # Hears once of each end: completed, canceled, or failed with a code.
        self.on_end: Callable[[Job, str, Code | None], None] | None = None

    def finish(self, job: Job, decode_ms: int, result: Any = None) -> None:
        """The engine came to the end of the answer."""
        data: dict[str, Any] = {"tokens_out": job.log.tokens, "decode_ms": decode_ms}
        if result is not None:
            data["result"] = result
        strict = job.task.determinism is Determinism.STRICT
        # Embeddings are not in the log's text, so only a completion can be computed again.
        show_first = strict and job.task.workload is Workload.COMPLETION
        self._end(job, "end", data, "completed", decision_log.COMPLETED, show_first=show_first)
        self._tell(job, "completed")

    def cancel(self, job: Job, reason: Reason = Reason.CLIENT) -> asyncio.Future[int] | None:
        """The client's cancel; the future is done when the end is on disk."""
        data = {"tokens_out": job.log.tokens, "decode_ms": self._decode_ms(job), "canceled": True}
        if job.refused:
            job.phase = Phase.ENDED
            job.log.end("end", msgspec.json.encode(data))
            return None
        self._telemetry.canceled(job, reason)
        written = self._end(job, "end", data, "canceled", reason.value)
        self._tell(job, "canceled")
        return written

    def fail(self, job: Job, refusal: Refusal) -> None:
        """A typed error ends the stream."""
        self._telemetry.failed(job, refusal)
        data: dict[str, Any] = {
            "code": refusal.code.value,
            "message": refusal.message,
            "engine": job.task.engine,
            "retriable": refusal.retriable,
        }
        if job.pool_id:
            data["pool_id"] = job.pool_id
        if refusal.retry_after_ms is not None:
            data["retry_after_ms"] = refusal.retry_after_ms
        if refusal.policy_label is not None:
            data["policy_label"] = refusal.policy_label
        gave_way = refusal.reason is Reason.PREEMPTED
        outcome, reason = _OUTCOMES.get(refusal.reason, "failed"), refusal.reason.value
        self._end(job, "error", data, outcome, reason, refusal, gave_way=gave_way)
        self._tell(job, "failed", refusal.code)

    def evict(self, job: Job, refusal: Refusal | None) -> None:
        """The core ended a waiting task: cancelled (None), dropped, shed or past its deadline."""
        if job.phase in (Phase.ENDING, Phase.ENDED):
            return
        if refusal is None:
            self.cancel(job)
        else:
            self.fail(job, refusal)

    def _tell(self, job: Job, outcome: str, code: Code | None = None) -> None:
        if self.on_end is not None:
            self.on_end(job, outcome, code)

    def _decode_ms(self, job: Job) -> int:
        return max(0, self._clock_ms() - job.first_token_ms) if job.first_token_ms else 0

    def _end(
        self,
        job: Job,
        event: str,
        data: Mapping[str, Any],
        outcome: str,
        reason: str,
        refusal: Refusal | None = None,
        *,
        show_first: bool = False,
        gave_way: bool = False,
    ) -> asyncio.Future[int] | None:
        assert job.phase not in (Phase.ENDING, Phase.ENDED), "a task ends once"
        job.phase = Phase.ENDING
        job.ended_ms = self._clock_ms()
        job.decode = None
        # Decoded again in part at most: a reader may be ahead of the log and still needs the end.
        job.log.truncated = job.recovered and outcome != "completed"
        payload = msgspec.json.encode(data)
        sealed = job.log.seal()
        record = records.TaskEnded(
            tenant=job.task.tenant,
            task_id=job.task_id,
            event=event,
            data=payload,
            sealed=sealed,
            tokens_out=job.log.tokens,
            started=job.log.started is not None,
            ended_ms=job.ended_ms,
            truncated=job.log.truncated,
            determinism=self._proof(job) if outcome == "completed" else None,
            gave_way=gave_way,
            outcome=outcome,
            reason=reason,
        )
        decision = decision_log.ended(job, outcome, reason, refusal)
        job.note(decision)
        self._telemetry.ended(job, decision)
        if show_first:
            self._show(job, event, payload)
        return self._write(_Unwritten(job, event, payload, records.encode(record), show_first))

    def _proof(self, job: Job) -> records.DeterminismRecord | None:
        """Of a whole strict text (ORCH-3206); nothing else can be computed again and compared."""
        task = job.task
        if task.determinism is not Determinism.STRICT or task.workload is not Workload.COMPLETION:
            return None
        sha256 = hashlib.sha256(_plain_text(job.log.text())).hexdigest()
        return self._determinism_of(job, sha256)

    def _write(self, end: _Unwritten) -> asyncio.Future[int] | None:
        try:
            written = self._journal.append(end.record, urgent=not end.shown)
        except JournalError as error:  # closed: the next start decides again
            log.error("journal.lost_end", job_id=end.job.task_id, cause=str(error))
            return None
        end.job.ended = written
        written.add_done_callback(lambda done: self._written(end, done))
        return written

    def _written(self, end: _Unwritten, done: asyncio.Future[int]) -> None:
        try:
            row = done.result()
        except (JournalError, asyncio.CancelledError) as error:
            log.error("journal.lost_end", job_id=end.job.task_id, cause=str(error))
            self._unwritten.append(end)
            return
        end.job.ended = None
        self._jobs.use_row(end.job, row)
        if not end.shown:
            self._show(end.job, end.event, end.payload)

    def write_again(self) -> None:
        """Ends that the journal could not take: nobody sees them before it does (called by the
        watchdog; at most one for each task)."""
        pending, self._unwritten = self._unwritten, []
        for end in pending:
            self._write(end)

    def _show(self, job: Job, event: str, payload: bytes) -> None:
        job.log.end(event, payload)
        self._jobs.retain(job, self._clock_ms())


def _plain_text(escaped: bytes) -> bytes:
    """The UTF-8 text behind JSON-escaped pieces."""
    if b"\\" not in escaped:
        return escaped
    return msgspec.json.decode(b'"%b"' % escaped, type=str).encode()
