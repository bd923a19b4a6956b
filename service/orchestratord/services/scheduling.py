"""The one place where facts enter the core and its decisions leave it.

On a task's path: admission, dispatch and the replica directory call `step`; dispatches, stops and
evictions go out to the handlers bound by `app`. The core is synchronous and never re-entered: an
event that arises while effects are applied waits until they are all applied.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from typing import assert_never

from orchestrator_core.effects import (
    Admitted,
    Dispatch,
    Effect,
    Ended,
    Moved,
    Preempt,
    Rejected,
    SessionExpired,
    Stop,
)
from orchestrator_core.errors import Refusal
from orchestrator_core.events import Event
from orchestrator_core.scheduler import Scheduler
from orchestratord.services.jobs import Job, JobTable, Promise

Clock = Callable[[], int]


class SchedulingService:
    """Drives one `Scheduler`; owns it: nobody else steps it."""

    def __init__(self, scheduler: Scheduler, jobs: JobTable, clock_ms: Clock) -> None:
        self.scheduler = scheduler
        self.clock_ms = clock_ms
        self._jobs = jobs
        self._pending: deque[Event] = deque()
        self._stepping = False
        self.on_admitted: Callable[[Job], None]
        self.on_dispatch: Callable[[Job, Dispatch], None]
        self.on_stop: Callable[[Job], None]
        self.on_preempt: Callable[[Job], None]
        self.on_moved: Callable[[Job, str], None]
        self.on_ended: Callable[[Job, Refusal | None], None]

    def step(self, event: Event) -> Sequence[Effect]:
        """Feed one event and apply what follows; returns this event's own effects.

        Called while another event is being applied it returns nothing: the event is fed after it.
        """
        if self._stepping:
            self._pending.append(event)
            return ()
        self._stepping = True
        try:
            effects = self.scheduler.step(event, self.clock_ms())
            for effect in effects:
                self._apply(effect)
            while self._pending:
                for effect in self.scheduler.step(self._pending.popleft(), self.clock_ms()):
                    self._apply(effect)
        finally:
            self._stepping = False
        return effects

    def _apply(self, effect: Effect) -> None:
        match effect:
            case Admitted():
                if (job := self._jobs.get(effect.task_key)) is not None:
                    job.pool_id = effect.pool_id
                    job.promise = Promise(
                        effect.queue_position, effect.predicted_start_ms, effect.backoff_ms
                    )
                    self.on_admitted(job)
            case Dispatch():
                if (job := self._jobs.get(effect.task_key)) is not None:
                    self.on_dispatch(job, effect)
            case Ended():
                if (job := self._jobs.get(effect.task_key)) is not None:
                    job.made_way = effect.preempted
                    self.on_ended(job, effect.refusal)
            case Stop():
                if (job := self._jobs.get(effect.task_key)) is not None:
                    self.on_stop(job)
            case Preempt():
                if (job := self._jobs.get(effect.task_key)) is not None:
                    self.on_preempt(job)
            case Moved():
                if (job := self._jobs.get(effect.task_key)) is not None:
                    self.on_moved(job, effect.pool_id)
            case Rejected() | SessionExpired():
                pass  # answered by whoever asked; an expired session leaves no work
            case _:
                assert_never(effect)
