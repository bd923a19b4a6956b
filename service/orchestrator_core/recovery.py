"""What a restart brings back: tasks, and what was charged and reserved for those of before.

On no task's path: the service replays its journal as events before the first replica is Ready. The
invariants: the queue's order, shares, quotas and rate limits come out as they were (the same calls
in the same order); nothing starts while it goes on. Requirements: ORCH-3203, ORCH-3075, ORCH-3076,
ORCH-3077.
"""

from __future__ import annotations

from abc import abstractmethod

from orchestrator_core.admission.checks import UNREADY_RETRY_MS, rate_keys
from orchestrator_core.admission.rate_limit import RateLimiter
from orchestrator_core.effects import Effect, Ended, Moved
from orchestrator_core.errors import Code, InvariantViolation, Reason, Refusal
from orchestrator_core.events import Recover, RecoverEnded, RecoverStarted
from orchestrator_core.pool_state import LiveTask, Pool, Stage
from orchestrator_core.relocation import Relocation
from orchestrator_core.replica_sets import ReplicaSet, ReplicaSetRegistry
from orchestrator_core.sessions.session_table import Reservation, Session
from orchestrator_core.task import Task, Workload


class Recovery(Relocation):
    """The part of `Scheduler` that repeats what happened before a restart."""

    _rates: RateLimiter
    _groups: ReplicaSetRegistry

    @abstractmethod
    def _enter(
        self, task: Task, pool: Pool, session: Session, reservation: Reservation, now_ms: int
    ) -> LiveTask: ...

    @abstractmethod
    def _settle(self, live: LiveTask, tokens: int, time_ms: int) -> None: ...

    @abstractmethod
    def _groups_in_use(self) -> set[ReplicaSet]: ...

    def _recover(self, event: Recover, now_ms: int, effects: list[Effect]) -> None:
        task = event.task
        if task.key in self._live:
            raise InvariantViolation(f"task {task.key} recovered twice")
        pool = self._pools.get(event.pool_id) or self._heir(task)
        if pool is None:
            message = f"no pool serves model_ref {task.model_ref!r} with {task.engine} any more"
            effects.append(
                Ended(
                    task.key,
                    Refusal(
                        Code.POOL_UNAVAILABLE, Reason.POOL_UNAVAILABLE, message,
                        retriable=True, engine=task.engine, pool_id=event.pool_id or None,
                        retry_after_ms=UNREADY_RETRY_MS,
                    ),
                )
            )  # fmt: skip
            return
        if pool.serving():
            raise InvariantViolation(f"pool {pool.spec.id} works before {task.key} is recovered")
        for key, rps, _ in rate_keys(pool, task):
            self._rates.take(key, rps, event.admitted_ms)
        # One that was deleted, or has ended, is not brought back by a task that outlived it.
        session = self._sessions.find(task.session_key, now_ms) or Session(task.session_key, now_ms)
        decoded = task.max_tokens if task.workload is Workload.COMPLETION else 0
        reserved = Reservation(task.prompt_tokens + decoded, 0)
        live = self._enter(task, pool, session, reserved, event.admitted_ms)
        # One that found its slot at once has not waited: through an empty queue it leaves no trace.
        pool.queue.push(task, live.sequence)
        if pool.spec.id != event.pool_id:
            effects.append(Moved(task.key, pool.spec.id))

    def _recover_start(self, event: RecoverStarted) -> None:
        if (live := self._live.get(event.task_key)) is None:
            return  # its pool is gone
        pool = live.pool
        live.group = self._groups.of(event.set_key, pool.spec.id, self._groups_in_use)
        if live.stage is not Stage.WAITING:
            return
        if event.charged:
            pool.queue.serve(event.task_key)
        else:
            pool.queue.remove(event.task_key)
        live.attempt = 1
        self._serve_again(live.task)
        pool.holds.count(live.task, +1)
        pool.await_resumption(live)

    def _serve_again(self, task: Task) -> None:
        self._shares.serve_again(task.tenant, task.priority, task.cost_tokens, task.arrived_ms)

    def _recover_end(self, event: RecoverEnded) -> None:
        if (live := self._live.pop(event.task_key, None)) is None:
            return  # its pool is gone
        pool = live.pool
        if live.stage is Stage.RESUMING:
            pool.leave_resumption(live)
            pool.holds.count(live.task, -1)
        elif event.gave_way:
            pool.queue.repeat_give_way(event.task_key)
        elif event.started:
            pool.queue.serve(event.task_key)
            self._serve_again(live.task)
        else:
            pool.queue.remove(event.task_key)
        if live.token_bucket is not None:
            live.token_bucket.settle(live.reservation.tokens, event.tokens)
            live.token_bucket = None
        self._settle(live, 0, 0)
