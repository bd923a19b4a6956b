"""Ends what is stuck and forgets what is over: one periodic look, no timer per task (ORCH-3016)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.events import Tick
from orchestratord.ports.journal import Journal
from orchestratord.services import records
from orchestratord.services.dispatch import Attempt, Dispatcher
from orchestratord.services.jobs import JobTable
from orchestratord.services.scheduling import SchedulingService

# Time-outs are in seconds; a quarter of one is how late they may fire.
PERIOD_S = 0.25


class Watchdog:
    def __init__(
        self,
        dispatcher: Dispatcher,
        scheduling: SchedulingService,
        jobs: JobTable,
        journal: Journal,
        monotonic: Callable[[], float],
    ) -> None:
        self._dispatcher = dispatcher
        self._scheduling = scheduling
        self._jobs = jobs
        self._journal = journal
        self._monotonic = monotonic

    def look(self) -> None:
        """Running tasks beyond their wall or idle time, waiting ones beyond their deadline,
        finished ones beyond their retention."""
        now_s = self._monotonic()
        now_ms = self._scheduling.clock_ms()
        for attempt in self._dispatcher.running:
            message = self._overdue(attempt, now_s)
            if message is not None:
                job = attempt.job
                # Only this task: a replica that does not answer is noticed by its probes, and to
                # call it broken here would reset every neighbour of one slow task.
                self._dispatcher.abort(
                    attempt,
                    Refusal(
                        Code.DECODE_TIMEOUT,
                        Reason.TIMEOUT,
                        message,
                        retriable=True,
                        engine=job.task.engine,
                        pool_id=job.pool_id,
                    ),
                )
        self._scheduling.step(Tick())
        self._dispatcher.write_again()
        self._dispatcher.termination.write_again()
        if self._journal.failing:
            self._probe()
        free = self._jobs.expire(now_ms)
        if free:
            self._journal.forget(free)

    def _probe(self) -> None:
        """Nobody may be writing while the service is not Ready: find out when it can again."""

        def forget(done: asyncio.Future[int]) -> None:
            if not done.cancelled() and done.exception() is None:
                self._journal.forget([done.result()])

        self._journal.append(records.encode(records.Probe())).add_done_callback(forget)

    def _overdue(self, attempt: Attempt, now_s: float) -> str | None:
        # The monotonic clock only: a step of the wall clock neither ends nor excuses a task.
        job = attempt.job
        traits = self._dispatcher.replicas.pools[job.pool_id]
        ran_ms = round((now_s - job.first_dispatch_s - job.excused_s) * 1000)
        if ran_ms > traits.wall_ms:
            return f"ran for {ran_ms} ms, more than timeouts.wall_ms {traits.wall_ms}"
        idle_ms = round((now_s - attempt.progress_at_s) * 1000)
        if idle_ms > traits.idle_ms:
            return f"no token for {idle_ms} ms, more than timeouts.idle_ms {traits.idle_ms}"
        return None
