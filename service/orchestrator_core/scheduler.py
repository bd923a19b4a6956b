"""The scheduler: one event in, decisions out. Everything the core knows changes here.

On a task's path: admission, dispatch, failover, recovery and cancel all end in `step`. The
invariants: a task is waiting, resuming or running, or unknown (ended or never admitted); each
admitted task gets exactly one end, announced by the core (`Ended`, `Stop`) or by the service
(`Finished`, `Aborted`, `WorkerLost` without resume); after a step no task that may run waits beside
a slot that it may have. Requirements: ORCH-3004, ORCH-3008, ORCH-3010, ORCH-3017, ORCH-3019,
ORCH-3024, ORCH-3046, ORCH-3075, ORCH-3079, ORCH-3203, OC-CORE-1005, OC-CORE-1010.

Time enters as `now_ms`; nothing here reads a clock, draws a number or depends on hash order. Above
400 lines because every event touches the same four tables and is a few lines each.
"""

from __future__ import annotations

from typing import assert_never

from orchestrator_core.admission.checks import MAX_RETRY_MS, UNREADY_RETRY_MS, find_place, rate_keys
from orchestrator_core.admission.rate_limit import RateLimiter
from orchestrator_core.effects import (
    Admitted,
    Dispatch,
    Effect,
    Ended,
    Preempt,
    Rejected,
    SessionExpired,
    Stop,
)
from orchestrator_core.errors import Code, InvariantViolation, Reason, Refusal
from orchestrator_core.events import (
    Aborted,
    Cancel,
    Evacuated,
    Event,
    Finished,
    LimitsChanged,
    PoolAdded,
    PoolDraining,
    PoolMerged,
    PoolRemoved,
    Recover,
    RecoverEnded,
    RecoverStarted,
    ReplicaCordoned,
    ReplicaLost,
    ReplicaReady,
    SessionForgotten,
    SessionRestored,
    Shedding,
    SlotsObserved,
    Submit,
    Tick,
    TokensShown,
    WorkerLost,
)
from orchestrator_core.limits import Limits
from orchestrator_core.placement.pick import pick
from orchestrator_core.pool import FullPolicy, PreemptionMode
from orchestrator_core.pool_state import LiveTask, Pool, Stage, Why
from orchestrator_core.preemption import at_risk, interruptible, may_interrupt
from orchestrator_core.queueing.share import ObservedShares
from orchestrator_core.recovery import Recovery
from orchestrator_core.relocation import canary_side
from orchestrator_core.replica_sets import ReplicaSet, ReplicaSetRegistry
from orchestrator_core.sessions.session_table import Reservation, Session, SessionTable
from orchestrator_core.task import Priority, Task


class Scheduler(Recovery):
    """State of all pools. Not thread-safe, never re-entered; `queries.Queries` reads it,
    `relocation.Relocation` moves what cannot stay, `recovery.Recovery` repeats the past."""

    def __init__(self, limits: Limits | None = None) -> None:
        self.limits = limits or Limits()
        self._pools: dict[str, Pool] = {}
        self._by_model: dict[tuple[str, str], list[Pool]] = {}
        self._canaries = False
        self._live: dict[str, LiveTask] = {}
        self._rates = RateLimiter()
        self._shares = ObservedShares()
        self._sessions = SessionTable(self.limits)
        self._groups = ReplicaSetRegistry(self.limits)
        self._sequence = 0  # arrival order of tasks
        self._epoch = 0  # of replicas

    def step(self, event: Event, now_ms: int) -> tuple[Effect, ...]:
        """Take one fact in; returns what is to be done, in the order in which it is to be done.

        Args:
            now_ms: wall-clock milliseconds; should not, but may go backwards.

        Raises InvariantViolation for an event that contradicts the state (a replica of an unknown
        pool, the end of a task that does not run). An event about a task that has already ended is
        a race that somebody lost: it has no effect.
        """
        effects: list[Effect] = []
        match event:
            case Submit(task):
                self._submit(task, now_ms, effects)
            case Finished():
                self._finish(event, now_ms, effects)
            case Cancel():
                self._cancel(event, now_ms, effects)
            case Aborted():
                self._abort(event, now_ms, effects)
            case TokensShown(task_key):
                if (shown := self._live.get(task_key)) is not None:
                    shown.shown = True
            case WorkerLost():
                self._lose_worker(event, now_ms, effects)
            case Recover():
                self._recover(event, now_ms, effects)
            case RecoverStarted():
                self._recover_start(event)
            case RecoverEnded():
                self._recover_end(event)
            case Tick():
                self._tick(now_ms, effects)
            case ReplicaReady(spec):
                pool = self._pool(spec.pool_id)
                group = self._groups.of(spec.set_key, spec.pool_id, self._groups_in_use)
                self._epoch += 1
                pool.replicas.announce(spec, group, self._epoch)
                self._dispatch(pool, now_ms, effects)
                self._open_refuge(now_ms, effects)
            case ReplicaCordoned(pool_id, replica_id, cordoned):
                pool = self._pool(pool_id)
                pool.replicas.cordon(replica_id, cordoned)
                self._dispatch(pool, now_ms, effects)
                self._open_refuge(now_ms, effects)
            case ReplicaLost(pool_id, replica_id):
                if (lost_from := self._pools.get(pool_id)) is not None:
                    lost_from.replicas.lose(replica_id)
                    self._dispatch(lost_from, now_ms, effects)
            case SlotsObserved(pool_id, replica_id, busy, leased_before):
                shown_by = self._pools.get(pool_id)
                if shown_by is not None and shown_by.replicas.observe(
                    replica_id, busy, leased_before
                ):
                    self._dispatch(shown_by, now_ms, effects)
            case PoolAdded(spec):
                gone: frozenset[str] = frozenset()
                if (pool_known := self._pools.get(spec.id)) is None:
                    pool_known = self._pools[spec.id] = Pool(spec)
                else:
                    gone = pool_known.spec.model_refs - spec.model_refs
                    pool_known.reconfigure(spec)
                self._index_models()
                self._drop_models(pool_known, gone, now_ms, effects)
                self._dispatch(pool_known, now_ms, effects)
            case PoolDraining(pool_id, draining, in_place):
                pool = self._pool(pool_id)
                pool.draining, pool.closed = draining, draining and in_place
                self._dispatch(pool, now_ms, effects)
                self._open_refuge(now_ms, effects)
            case Evacuated(pool_id, replica_ids):
                self._evacuate(self._pool(pool_id), replica_ids, now_ms, effects)
            case PoolRemoved(pool_id):
                self._remove_pool(pool_id)
            case PoolMerged(pool_id, source):
                self._merge(self._pool(pool_id), self._pool(source), now_ms, effects)
            case Shedding(pool_id, shed):
                if (shedder := self._pools.get(pool_id)) is not None:
                    shedder.shedding = {each.priority: each for each in shed}
            case SessionRestored():
                session = Session(event.session_key, event.created_ms)
                session.turns = event.turns
                session.tokens_used, session.time_used_ms = event.tokens_used, event.time_used_ms
                self._sessions.restore(session)
            case LimitsChanged(limits):
                self.limits = limits
                self._sessions.reconfigure(limits)
            case SessionForgotten(session_key):
                self._sessions.forget(session_key)
            case _:
                assert_never(event)
        return tuple(effects)

    def _submit(self, task: Task, now_ms: int, effects: list[Effect]) -> None:
        if (known := self._live.get(task.key)) is not None:
            # The same id again is the same task (ORCH-3024): its place, not a second one.
            effects.append(self._promise(known, now_ms))
            return
        pools = self._by_model.get((task.engine, task.model_ref), [])
        if self._canaries and len(pools) > 1:
            pools = canary_side(task, pools)
        place = find_place(task, pools, self._rates, self._sessions, self._sequence, now_ms)
        if isinstance(place, Refusal):
            effects.append(Rejected(task.key, place))
            return
        pool = place.pool
        for key, rps, _ in rate_keys(pool, task):
            self._rates.take(key, rps, now_ms)
        if place.victim is not None:
            self._evict(self._live[place.victim.key], task, now_ms, effects)
        for _ in range(place.relief.waiting):
            self._remove_below(pool, task, now_ms, effects)
        session, gone = self._sessions.open(task.session_key, now_ms)
        effects.extend(map(SessionExpired, gone))
        session.turns += 1
        live = self._enter(task, pool, session, place.reservation, now_ms)
        if place.at_once and not pool.queue:
            # Nobody to be fair to: an empty queue holds nothing against those it let pass.
            dispatch = self._start(live, Why.FREE_SLOT, now_ms)
            effects += (self._promise(live, now_ms), dispatch)
            return
        pool.queue.push(task, live.sequence)
        pool.queue.observe(now_ms)
        # A free slot beside a queue is one that quotas keep from those in it: whoever makes way
        # there, or comes first, may let another go.
        if not pool.slots_free() and not place.relief.running:
            as_asked = place.victim is None and not place.relief.waiting
            effects.append(self._promise(live, now_ms, place.wait if as_asked else None))
            return
        dispatched: list[Effect] = []
        for victim in place.relief.running:
            self._interrupt(victim, now_ms, effects)
        for _ in place.relief.running:
            self._start_next(pool, task.priority, now_ms, dispatched)
        self._dispatch(pool, now_ms, dispatched)
        effects.append(self._promise(live, now_ms))
        effects.extend(dispatched)

    def _enter(
        self, task: Task, pool: Pool, session: Session, reservation: Reservation, now_ms: int
    ) -> LiveTask:
        live = LiveTask(task, self._sequence, pool, session, reservation)
        self._sequence += 1
        self._live[task.key] = live
        session.reserve(reservation)
        policy = pool.queue.tenant(task.tenant)
        live.token_bucket = pool.tokens.reserve(policy, reservation.tokens, now_ms)
        pool.entitled.enter(task.tenant, task.priority)
        return live

    def _promise(
        self, live: LiveTask, now_ms: int, wait: tuple[int, int] | None = None
    ) -> Admitted:
        pool, key = live.pool, live.task.key
        if live.stage is Stage.RUNNING:
            live.admission_forecast = live.admission_forecast or live.start_forecast
            return Admitted(key, pool.spec.id, 0, 0, 0)
        if wait is None:
            ahead = self._ahead(live)
            wait = ahead, pool.start_delay_ms(ahead, now_ms)
        ahead, start_ms = wait[0], max(wait[1], 1)
        backoff_ms = min(pool.drain_to_half_ms(now_ms), MAX_RETRY_MS)
        if live.admission_forecast is None:  # the same task may be asked for again
            live.admission_forecast = pool.forecast(live, start_ms, now_ms)
        return Admitted(key, pool.spec.id, ahead, start_ms, backoff_ms)

    def _dispatch(self, pool: Pool, now_ms: int, effects: list[Effect]) -> None:
        """Start whatever may start: what resumes first, then the queue in fair order."""
        pool.repin()
        if pool.closed:
            return
        if pool.resuming:
            self._let_urgent_pass(pool, now_ms, effects)
            self._resume(pool, now_ms, effects)
        if pool.draining:
            return
        while pool.slots_free() and self._start_next(pool, None, now_ms, effects):
            pass

    def _resume(self, pool: Pool, now_ms: int, effects: list[Effect]) -> None:
        """Start what has run before and finds a slot in its set, here or in another pool."""
        for _, live in tuple(pool.resuming):
            if live.stage is not Stage.RESUMING or live.pool is not pool:
                continue  # it found its place together with one before it
            group = live.group or pool.group
            preferred = live.session.preferred()
            choice = pick(pool.replicas, group, preferred, live.avoid, pool.wish(live.task))
            if choice is not None:
                pool.leave_resumption(live)
                pool.begin(live, choice, Why.RESUME, now_ms)
                replica_id = choice.replica.spec.id
                effects.append(Dispatch(live.task.key, pool.spec.id, replica_id, live.attempt))
            elif (refuge := self._refuge_of(live)) is not None:
                self._move(live, refuge, effects)
                self._dispatch(refuge, now_ms, effects)

    def _start_next(
        self, pool: Pool, priority: Priority | None, now_ms: int, effects: list[Effect]
    ) -> bool:
        """Give a free slot to the next waiting task (of one priority, if given); False when nobody
        may have it."""
        while (task := pool.queue.peek(priority)) is not None:
            live = self._live[task.key]
            if task.deadline_at_ms <= now_ms:  # no slot is spent on a task whose time is over
                self._end(live, _past_deadline(live, now_ms), effects)
                continue
            pool.queue.pop(priority)
            why = Why.FAIR_TURN if priority is None else Why.URGENT
            effects.append(self._start(live, why, now_ms))
            return True
        return False

    def _interrupt(self, live: LiveTask, now_ms: int, effects: list[Effect]) -> None:
        """Take the slot of a running task; it keeps its place, behind the urgent one (ORCH-3086).

        What it has done is done again at nobody's expense: the session's time is not charged.
        """
        pool = live.pool
        replica = pool.leave_replica(live)
        pool.preemptions.count(now_ms)
        live.interruptions += 1
        live.yielding = True
        live.avoid = None
        pool.await_resumption(live)
        effects.append(Preempt(live.task.key, pool.spec.id, replica.spec.id))

    def _let_urgent_pass(self, pool: Pool, now_ms: int, effects: list[Effect]) -> None:
        """An interrupted task does not take a slot only to lose it again to the next urgent one.

        It counts as a preemption: the pool's bound holds for those that pass, too.
        """
        while 0 < pool.slots_free() <= len(pool.resuming) and may_interrupt(pool, now_ms):
            _, first = pool.resuming[0]
            urgent = pool.queue.peek(Priority.INTERACTIVE)
            if urgent is None or urgent.priority.rank >= first.task.priority.rank:
                return
            if not at_risk(pool, urgent, pool.busy_ms(first.task, now_ms), now_ms):
                return
            pool.preemptions.count(now_ms)
            self._start_next(pool, urgent.priority, now_ms, effects)

    def _relieve(
        self, pool: Pool, now_ms: int, effects: list[Effect], dispatched: list[Effect]
    ) -> None:
        """The next urgent task would miss its deadline by now: interrupt for it (ORCH-3086).

        Interruptions go to `effects`, before anything is dispatched: nothing that happens to a
        replica in between can overtake them.
        """
        while may_interrupt(pool, now_ms) and not pool.slots_free():
            task = pool.queue.peek(Priority.INTERACTIVE)
            if task is None:
                return
            ahead = self._ahead(self._live[task.key])
            if not at_risk(pool, task, pool.start_delay_ms(ahead, now_ms), now_ms):
                return
            victims = interruptible(pool, task, now_ms)
            if not victims:
                return
            self._interrupt(victims[0], now_ms, effects)
            self._start_next(pool, task.priority, now_ms, dispatched)

    def _start(self, live: LiveTask, why: Why, now_ms: int) -> Dispatch:
        """Give a task that waits no more one of the free slots of its pool."""
        pool, task = live.pool, live.task
        preferred = None if task.kv_hint == "cold" else live.session.preferred()
        choice = pool.place(task, preferred)
        if choice is None:
            raise InvariantViolation(f"pool {pool.spec.id} counts a free slot that nobody has")
        pool.holds.count(task, +1)
        pool.begin(live, choice, why, now_ms)
        self._shares.serve(task.tenant, task.priority, task.cost_tokens, now_ms)
        return Dispatch(task.key, pool.spec.id, choice.replica.spec.id, live.attempt)

    def _finish(self, event: Finished, now_ms: int, effects: list[Effect]) -> None:
        if (live := self._running(event.task_key)) is None:
            return
        replica = live.pool.leave_replica(live)
        times = live.group.times if live.group is not None else replica.group.times
        read_tokens = event.tokens_in - event.cached_tokens
        if read_tokens >= event.cached_tokens:
            times.observe(read_tokens, event.tokens_out, event.prefill_ms, event.decode_ms)
        else:  # what little a warm prefill reads says nothing of the speed of a cold one
            times.observe(0, event.tokens_out, 0, event.decode_ms)
        live.session.stay_on(replica, event.kv_bytes, event.kv_warm)
        if live.pool.reuses_prefix(live.task):
            replica.prefixes.remember(live.task.prefix_blocks)
        live.pool.learn(live, on_time=now_ms <= live.task.deadline_at_ms)
        service_ms = event.prefill_ms + event.decode_ms
        self._settle(live, event.tokens_in + event.tokens_out, live.spent_ms + service_ms)
        self._release(live, now_ms, effects)

    def _cancel(self, event: Cancel, now_ms: int, effects: list[Effect]) -> None:
        if (live := self._live.get(event.task_key)) is None:
            return
        key, pool = event.task_key, live.pool
        if live.stage is not Stage.RUNNING:
            self._end(live, None, effects)
            self._dispatch(pool, now_ms, effects)  # its tenant's quotas may let another go
            return
        replica = pool.leave_replica(live)
        effects.append(Stop(key, pool.spec.id, replica.spec.id))
        self._settle_unfinished(live, event.tokens_out, now_ms)
        self._release(live, now_ms, effects)

    def _abort(self, event: Aborted, now_ms: int, effects: list[Effect]) -> None:
        if (live := self._running(event.task_key)) is None:
            return
        live.pool.leave_replica(live)
        live.pool.learn(live, on_time=False)
        self._settle_unfinished(live, event.tokens_out, now_ms)
        self._release(live, now_ms, effects)

    def _lose_worker(self, event: WorkerLost, now_ms: int, effects: list[Effect]) -> None:
        if (live := self._running(event.task_key)) is None:
            return
        pool = live.pool
        replica = pool.leave_replica(live)
        if live.session.replica is replica:
            live.session.lose_kv()
        if event.resume:
            live.spent_ms += max(now_ms - live.started_ms, 0)
            live.avoid = replica
            if event.anew and live.task.model_ref in pool.spec.model_refs:
                live.group = None
            pool.await_resumption(live)
            self._dispatch(pool, now_ms, effects)
            return
        pool.learn(live, on_time=False)
        self._settle_unfinished(live, event.tokens_out, now_ms)
        self._release(live, now_ms, effects)

    def _tick(self, now_ms: int, effects: list[Effect]) -> None:
        for _, pool in sorted(self._pools.items()):
            self._expire_queue(pool, now_ms, effects)
            pool.queue.observe(now_ms)
            for _, live in tuple(pool.resuming):
                if live.task.deadline_at_ms <= now_ms:
                    self._end(live, _past_deadline(live, now_ms), effects)
            dispatched: list[Effect] = []
            self._dispatch(pool, now_ms, dispatched)
            self._relieve(pool, now_ms, effects, dispatched)
            effects.extend(dispatched)
        effects.extend(map(SessionExpired, self._sessions.expire(now_ms)))

    def _expire_queue(self, pool: Pool, now_ms: int, effects: list[Effect]) -> None:
        for task in pool.queue.expire(now_ms):
            live = self._live.pop(task.key)
            pool.learn(live, on_time=False)
            self._settle(live, 0, 0)
            effects.append(Ended(task.key, _past_deadline(live, now_ms)))

    def _remove_below(self, pool: Pool, urgent: Task, now_ms: int, effects: list[Effect]) -> None:
        """A waiting task of a lower priority goes, so that the urgent one is on time."""
        if (task := pool.queue.give_way(urgent.priority)) is None:
            return
        live = self._live.pop(task.key)
        pool.learn(live, on_time=False)
        self._settle(live, 0, 0)
        refusal = Refusal(
            Code.ADMISSION_REJECT, Reason.PREEMPTED,
            f"a more urgent task of pool {pool.spec.id} would have missed its deadline",
            retriable=True, policy_label=Reason.PREEMPTED.value,
            retry_after_ms=max(1, min(pool.start_delay_ms(0, now_ms), MAX_RETRY_MS)),
            engine=task.engine, pool_id=pool.spec.id,
            figures=(("for_priority", urgent.priority.value),),
        )  # fmt: skip
        effects.append(Ended(task.key, refusal, preempted=True))

    def _evict(self, live: LiveTask, newcomer: Task, now_ms: int, effects: list[Effect]) -> None:
        """Make room in the queue at this waiting task's expense."""
        pool = live.pool
        dropping = pool.spec.full_policy is FullPolicy.DROP_LRU
        refusal = Refusal(
            Code.QUEUE_FULL_DROP_LRU if dropping else Code.ADMISSION_REJECT,
            Reason.DROPPED_LRU if dropping else Reason.SHED,
            f"the queue of pool {pool.spec.id} was full and the task made room for another",
            retriable=True,
            retry_after_ms=max(1, min(pool.start_delay_ms(0, now_ms), MAX_RETRY_MS)),
            policy_label=pool.spec.full_policy.value,
            engine=pool.spec.engine,
            pool_id=pool.spec.id,
            figures=(
                ("waiting", len(pool.queue)),
                ("queue_capacity", pool.queue.capacity),
                ("for_priority", newcomer.priority.value),
            ),
        )
        above = newcomer.priority.rank < live.task.priority.rank
        preempted = above and pool.spec.preemption.mode is not PreemptionMode.OFF
        self._end(live, refusal, effects, preempted=preempted)

    def _end(
        self,
        live: LiveTask,
        refusal: Refusal | None,
        effects: list[Effect],
        *,
        preempted: bool = False,
    ) -> None:
        """End a task that does not run: it leaves the queue, or the line of those that resume."""
        if live.stage is Stage.RESUMING:
            live.pool.leave_resumption(live)
            live.pool.holds.count(live.task, -1)
            self._settle(live, live.task.prompt_tokens, live.spent_ms)  # it was read
        else:
            live.pool.queue.remove(live.task.key)
            self._settle(live, 0, 0)
        del self._live[live.task.key]
        if refusal is not None:  # a client that cancels says nothing about our deadlines
            live.pool.learn(live, on_time=False)
        effects.append(Ended(live.task.key, refusal, preempted))

    def _release(self, live: LiveTask, now_ms: int, effects: list[Effect]) -> None:
        """A running task has ended: its slot and its tenant's place go to whoever is next."""
        del self._live[live.task.key]
        live.pool.holds.count(live.task, -1)
        self._dispatch(live.pool, now_ms, effects)

    def _settle_unfinished(self, live: LiveTask, tokens_out: int, now_ms: int) -> None:
        """Without an engine's account: the prompt was read, and the slot was held until now."""
        held_ms = live.spent_ms + max(now_ms - live.started_ms, 0)
        self._settle(live, live.task.prompt_tokens + tokens_out, held_ms)

    def _settle(self, live: LiveTask, tokens: int, time_ms: int) -> None:
        """The task is no more: its budgets and its tenant's tokens are what it used, its flow may
        have no work left."""
        if live.token_bucket is not None:
            live.token_bucket.settle(live.reservation.tokens, tokens)
        live.session.settle(live.reservation, tokens, time_ms)
        live.pool.entitled.leave(live.task.tenant, live.task.priority)

    def _running(self, key: str) -> LiveTask | None:
        """The running task of that key; None for one that has ended already."""
        live = self._live.get(key)
        if live is not None and live.stage is not Stage.RUNNING:
            raise InvariantViolation(f"task {key} is {live.stage}, not running")
        return live

    def _index_models(self) -> None:
        self._by_model = {}
        self._canaries = any(pool.spec.canary is not None for pool in self._pools.values())
        for _, pool in sorted(self._pools.items()):
            for model_ref in sorted(pool.spec.model_refs):
                self._by_model.setdefault((pool.spec.engine, model_ref), []).append(pool)

    def _groups_in_use(self) -> set[ReplicaSet]:
        used = {r.group for pool in self._pools.values() for r in pool.replicas}
        used |= {p.replicas.pinned for p in self._pools.values() if p.replicas.pinned is not None}
        return used | {live.group for live in self._live.values() if live.group is not None}


def _past_deadline(live: LiveTask, now_ms: int) -> Refusal:
    pool, task = live.pool, live.task
    late = f"deadline_ms: {task.deadline_at_ms - task.arrived_ms} ms have passed"
    if live.stage is Stage.RESUMING and not pool.serving():
        return Refusal(
            Code.POOL_UNAVAILABLE, Reason.POOL_UNAVAILABLE,
            f"{late} and no replica came back to resume the task",
            retriable=True, retry_after_ms=UNREADY_RETRY_MS,
            engine=task.engine, pool_id=pool.spec.id,
        )  # fmt: skip
    return Refusal(
        Code.DEADLINE_UNMET, Reason.DEADLINE, f"{late} while the task waited",
        retriable=True, retry_after_ms=max(1, min(pool.start_delay_ms(0, now_ms), MAX_RETRY_MS)),
        engine=task.engine, pool_id=pool.spec.id,
    )  # fmt: skip
