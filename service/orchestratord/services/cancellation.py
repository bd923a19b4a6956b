"""Cancel in every state, without a race (ORCH-2003, ORCH-3017, ORCH-3026).

The upstream connection is closed and the log sealed in the same turn of the event loop as the
request arrives, so no token follows; the answer waits until the end is on disk.
"""

from __future__ import annotations

import asyncio

from orchestrator_core.events import Cancel
from orchestratord.ports.journal import JournalError
from orchestratord.services.jobs import Job, Phase
from orchestratord.services.scheduling import SchedulingService


class CancellationService:
    def __init__(self, scheduling: SchedulingService) -> None:
        self._scheduling = scheduling

    def request(self, job: Job) -> None:
        """End the task if it has not ended; returns before the end is durable."""
        if job.phase in (Phase.WAITING, Phase.RUNNING):
            self._scheduling.step(Cancel(job.task.key, job.log.tokens))

    async def cancel(self, job: Job) -> None:
        """End the task and wait until that is on disk; nothing happens to an ended one.

        Raises `JournalError` when the end could not be made durable yet: the task runs no more, and
        its end is shown once it is on disk.
        """
        self.request(job)
        if job.phase is Phase.ENDING:
            if job.ended is None:
                raise JournalError("the journal is closed")
            await asyncio.shield(job.ended)
            if job.phase is Phase.ENDING:  # written in this very turn: its readers are told first
                await asyncio.sleep(0)
