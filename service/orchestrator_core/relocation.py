"""Where a task goes that cannot stay in its pool: drained, cordoned, reloaded, merged, removed.

On a task's path: between admission and its end, when an operator (or a lost replica) takes its
place away. The invariants: no task is lost, refused or started twice by a move; it keeps its
arrival, so the target's fair order gives it its place; a task that has shown something moves only
within its replica set, which may span pools (ORCH-3007). Requirements: ORCH-2101, ORCH-2102,
ORCH-3007, ORCH-3031, ORCH-3033, ORCH-3201, OC-CTRL-2002.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from hashlib import blake2b

from orchestrator_core import queries
from orchestrator_core.admission.checks import NO_POOL_RETRY_MS, UNREADY_RETRY_MS
from orchestrator_core.effects import Effect, Moved
from orchestrator_core.errors import Code, InvariantViolation, Reason, Refusal
from orchestrator_core.pool_state import LiveTask, Pool, Stage
from orchestrator_core.task import Task


def canary_side(task: Task, pools: Sequence[Pool]) -> list[Pool]:
    """`pools` without the half that the task is not for, where some are canaries of others.

    Which half depends on tenant and task key alone, so that the same task gets the same answer on
    any node and in any run. The other half stands in while the chosen one is not Ready; it does not
    where that is full: a canary must not hide its overload behind the pool it is compared with.
    """
    by_id = {pool.spec.id: pool for pool in pools}
    left_out: set[str] = set()
    for pool in pools:
        share = pool.spec.canary
        stable = by_id.get(share.of) if share is not None else None
        if share is None or stable is None:
            continue
        chosen, other = (pool, stable) if _is_chosen(task, pool) else (stable, pool)
        if not chosen.draining and chosen.serving():
            left_out.add(other.spec.id)
    return [pool for pool in pools if pool.spec.id not in left_out]


def _is_chosen(task: Task, canary: Pool) -> bool:
    share = canary.spec.canary
    assert share is not None  # the caller has looked
    if task.tenant in share.tenants:
        return True
    digest = blake2b(f"{share.of}/{task.key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % 100 < share.percent


class Relocation(queries.Queries):
    """The moving part of `Scheduler`."""

    _by_model: dict[tuple[str, str], list[Pool]]

    @abstractmethod
    def _dispatch(self, pool: Pool, now_ms: int, effects: list[Effect]) -> None: ...

    @abstractmethod
    def _end(self, live: LiveTask, refusal: Refusal | None, effects: list[Effect]) -> None: ...

    @abstractmethod
    def _index_models(self) -> None: ...

    def _heir(self, task: Task, but: Pool | None = None) -> Pool | None:
        """Another pool for a task that waits, or may begin anew: the one with the most room, one
        that serves before one that does not yet."""
        pools = [
            pool
            for pool in self._by_model.get((task.engine, task.model_ref), [])
            if pool is not but and not pool.draining and pool.ctx_offered() >= task.ctx
        ]
        return min(pools, key=_roomiest, default=None)

    def _refuge_of(self, live: LiveTask) -> Pool | None:
        """Another pool for a task that resumes and whose set has no Ready replica in its own."""
        own = live.pool
        if (group := live.group) is None:
            if own.serving() and not own.draining:
                return None
            heir = self._heir(live.task, own)
            return heir if heir is not None and heir.serving() else None
        if own.replicas.has_ready(group):
            return None
        pools = [
            pool
            for pool in self._pools.values()
            if pool is not own
            and not pool.draining
            and pool.group in (None, group)  # it would mix versions there (ORCH-3046)
            and any(r.ready and not r.cordoned and r.group is group for r in pool.replicas)
        ]
        return min(pools, key=_roomiest, default=None)

    def _move(self, live: LiveTask, target: Pool, effects: list[Effect]) -> None:
        """A task that does not run goes to `target`: before everything that waits if it resumes,
        else where its priority, tenant, deadline and arrival put it; above a bound if need be."""
        task, source = live.task, live.pool
        source.entitled.leave(task.tenant, task.priority)
        target.entitled.enter(task.tenant, task.priority)
        if live.stage is Stage.RESUMING:
            source.leave_resumption(live)
            source.holds.count(task, -1)
            target.holds.count(task, +1)
            live.pool = target
            target.await_resumption(live)
        else:
            source.queue.remove(task.key)
            live.pool = target
            target.queue.push(task, live.sequence)
        effects.append(Moved(task.key, target.spec.id))

    def _open_refuge(self, now_ms: int, effects: list[Effect]) -> None:
        """Some pool may take what another cannot keep: let everybody who waits for that look."""
        for _, pool in sorted(self._pools.items()):
            if pool.closed:
                continue
            if pool.draining and pool.queue:
                self._empty_queue(pool, now_ms, effects)
            if pool.resuming:
                self._dispatch(pool, now_ms, effects)

    def _empty_queue(self, pool: Pool, now_ms: int, effects: list[Effect]) -> None:
        """What waits here and may wait elsewhere moves, in the order of arrival."""
        targets: dict[str, Pool] = {}
        for key in tuple(pool.queue.keys()):
            live = self._live[key]
            target = self._heir(live.task, pool)
            if target is not None and target.serving():
                self._move(live, target, effects)
                targets[target.spec.id] = target
        for _, target in sorted(targets.items()):
            self._dispatch(target, now_ms, effects)

    def _evacuate(
        self, pool: Pool, replica_ids: tuple[str, ...], now_ms: int, effects: list[Effect]
    ) -> None:
        """The end of a drain: nobody may keep its place here any longer."""
        self._dispatch(pool, now_ms, effects)  # whoever resumes elsewhere is gone by now
        for _, live in tuple(pool.resuming):
            if live.stage is not Stage.RESUMING or live.pool is not pool:
                continue
            if replica_ids:
                last = live.avoid.spec.id if live.avoid is not None else ""
                stays = live.group is not None and pool.replicas.has_ready(live.group)
                if stays or last not in replica_ids:
                    continue
            self._end(live, _drained(live, Code.WORKER_RESET), effects)
        if replica_ids:
            self._dispatch(pool, now_ms, effects)  # those that ended may have held the pin
            return
        self._empty_queue(pool, now_ms, effects)
        for key in tuple(pool.queue.keys()):
            live = self._live[key]
            self._end(live, _drained(live, Code.POOL_UNREADY), effects)

    def _drop_models(
        self, pool: Pool, gone: frozenset[str], now_ms: int, effects: list[Effect]
    ) -> None:
        """The pool serves these no more: what waits for them by that name moves or ends."""
        if not gone:
            return
        beginning = [live for _, live in pool.resuming if live.group is None]
        for live in [*beginning, *map(self._live.__getitem__, tuple(pool.queue.keys()))]:
            if live.task.model_ref not in gone:
                continue
            if (target := self._heir(live.task, pool)) is None:
                self._end(live, _not_served(live), effects)
            else:
                self._move(live, target, effects)
                self._dispatch(target, now_ms, effects)

    def _merge(self, pool: Pool, source: Pool, now_ms: int, effects: list[Effect]) -> None:
        """`pool` takes over everything of `source`."""
        running = tuple(source.running)
        for _, live in tuple(source.resuming):
            self._move(live, pool, effects)
        for key in tuple(source.queue.keys()):
            self._move(self._live[key], pool, effects)
        pool.absorb(source)
        effects.extend(Moved(key, pool.spec.id) for key in running)
        del self._pools[source.spec.id]
        self._index_models()
        self._dispatch(pool, now_ms, effects)

    def _remove_pool(self, pool_id: str) -> None:
        pool = self._pool(pool_id)
        if not self.is_empty(pool_id):
            raise InvariantViolation(f"pool {pool.spec.id} is removed while it has tasks")
        del self._pools[pool_id]
        self._index_models()


def _roomiest(pool: Pool) -> tuple[bool, int, str]:
    return not pool.serving(), len(pool.queue) - pool.slots_free(), pool.spec.id


def _drained(live: LiveTask, code: Code) -> Refusal:
    pool_id = live.pool.spec.id
    message = (
        f"pool {pool_id} was drained, and no other takes the task"
        if code is Code.POOL_UNREADY
        else f"the worker was drained, and no other replica of its set goes on (pool {pool_id})"
    )
    return Refusal(
        code, Reason.DRAINING, message,
        retriable=True, retry_after_ms=UNREADY_RETRY_MS,
        engine=live.task.engine, pool_id=pool_id,
    )  # fmt: skip


def _not_served(live: LiveTask) -> Refusal:
    return Refusal(
        Code.POOL_UNAVAILABLE, Reason.POOL_UNAVAILABLE,
        f"model_ref: pool {live.pool.spec.id} does not serve {live.task.model_ref!r} any more",
        retriable=True, retry_after_ms=NO_POOL_RETRY_MS,
        engine=live.task.engine, pool_id=live.pool.spec.id,
    )  # fmt: skip
