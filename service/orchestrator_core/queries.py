"""What may be asked of the scheduler's state: read-only, at any time, without an effect.

On a task's path: session reports, `metrics` events, replica sets, capacity hints and transcripts.
The invariant: a query changes nothing and its answer is a frozen value. Requirements: ORCH-2001,
ORCH-2004, ORCH-3007, ORCH-3019, ORCH-3076, ORCH-3081, ORCH-3100.
"""

from __future__ import annotations

from typing import NamedTuple

from orchestrator_core.errors import InvariantViolation
from orchestrator_core.estimator import ServiceTimes
from orchestrator_core.limits import Limits
from orchestrator_core.on_time import Forecast
from orchestrator_core.outlook import Grounds, Outlook
from orchestrator_core.pool_state import LiveTask, Pool, Stage, Why
from orchestrator_core.queueing.share import Flow, ObservedShares, ShareView
from orchestrator_core.replica_sets import ReplicaSet, ReplicaSetView, ReplicaView, view
from orchestrator_core.sessions.session_table import SessionTable, SessionView, Turn
from orchestrator_core.task import Priority


class Backlog(NamedTuple):
    """What a pool works with while tasks wait: all slots that new work may have, and what its
    replica set has shown of its speed (0 where it has not)."""

    slots: int
    prefill_ms_per_token: float
    decode_ms_per_token: float


class Queries:
    """The reading half of `Scheduler`; a pool id that does not exist raises InvariantViolation."""

    limits: Limits
    _pools: dict[str, Pool]
    _live: dict[str, LiveTask]
    _sessions: SessionTable
    _shares: ObservedShares

    def pool_ids(self) -> tuple[str, ...]:
        """All pools, sorted."""
        return tuple(sorted(self._pools))

    def queue_depth(self, pool_id: str, priority: Priority) -> int:
        """Waiting tasks of one priority, those that wait to resume included."""
        pool = self._pool(pool_id)
        resuming = sum(1 for _, live in pool.resuming if live.task.priority is priority)
        return pool.queue.depth(priority) + resuming

    def position(self, task_key: str) -> int | None:
        """Tasks before it: 0 for the next one and for a running one; None when it is not known.

        Exact within a flow and between flows of equally expensive tasks, else an estimate.
        """
        live = self._live.get(task_key)
        return None if live is None else self._ahead(live)

    def predicted_start_ms(self, task_key: str, now_ms: int) -> int | None:
        """Milliseconds from now until it starts; 0 when it runs, None when it is not known."""
        live = self._live.get(task_key)
        if live is None or live.stage is Stage.RUNNING:
            return None if live is None else 0
        return live.pool.start_delay_ms(self._ahead(live), now_ms)

    def on_time_probability(self, task_key: str, now_ms: int) -> float:
        """Probability, 0..1, that the task ends before its deadline; 1.0 while nothing is known.

        A share of tasks that were in its place (see `on_time`); asking is free of consequences.
        """
        outlook = self.outlook(task_key, now_ms)
        return 1.0 if outlook is None else outlook.on_time_probability

    def outlook(
        self, task_key: str, now_ms: int, promised: tuple[int, int] | None = None
    ) -> Outlook | None:
        """Where the task stands and what is to be expected; None when it is not known.

        Args:
            promised: (tasks before it, milliseconds to its start) where the scheduler has just
                said so: finding out is most of the cost behind a long queue.
        """
        if (live := self._live.get(task_key)) is None:
            return None
        pool, task, running = live.pool, live.task, live.stage is Stage.RUNNING
        if promised is not None:
            position, start_ms = promised
        else:
            position = self._ahead(live)
            start_ms = 0 if running else pool.start_delay_ms(position, now_ms)
        service_ms: int | None = None
        slack_ms: int | None = None
        probability = 1.0
        if (group := live.group or pool.times) is not None:
            left_ms = task.deadline_at_ms - now_ms
            task_ms = group.times.task_ms(task)
            if group.times.known:
                service_ms = round(task_ms)
                end_ms = live.expected_end_ms if running else now_ms + start_ms + task_ms
                slack_ms = round(task.deadline_at_ms - end_ms)
            if running:
                probability = _ends_on_time(live, group.times, now_ms)
            else:
                prior = group.times.on_time_ratio(start_ms + task_ms, left_ms, start_ms)
                forecast = (
                    pool.forecast(live, start_ms, now_ms)
                    if promised is None
                    else live.admission_forecast
                )
                probability = (
                    prior if forecast is None else forecast.table.probability(forecast.z, prior)
                )
        held = live.stage is Stage.WAITING and pool.queue.is_held(task.tenant, task.priority)
        return Outlook(
            position, start_ms, service_ms, slack_ms, probability, held, len(pool.serving())
        )

    def grounds(self, task_key: str) -> Grounds | None:
        """Why it got its last slot, and that one; None for a task that had none yet. O(1)."""
        live = self._live.get(task_key)
        if live is None or (choice := live.choice) is None or live.group is None:
            return None
        known, deadline_ms = live.group.times.known, live.task.deadline_at_ms
        return Grounds(
            live.why,
            choice.score,
            choice.load_ratio,
            choice.affinity,
            choice.saved_ratio,
            choice.tenant_tasks,
            round(deadline_ms - live.expected_end_ms) if known else None,
        )

    def why_started(self, task_key: str) -> Why | None:
        """What gave it its last slot; None for a task that had none yet. O(1)."""
        live = self._live.get(task_key)
        return None if live is None or live.choice is None else live.why

    def turn(self, task_key: str) -> Turn | None:
        """The turn that its session is at; None when the task is not known. O(1)."""
        live = self._live.get(task_key)
        return None if live is None else self._sessions.turn(live.session)

    def session(self, session_key: str, now_ms: int) -> SessionView | None:
        """The session as `GET /v1/sessions/{id}` shows it; None when there is none (any more)."""
        session = self._sessions.find(session_key, now_ms)
        return None if session is None else self._sessions.view(session, now_ms)

    @property
    def session_count(self) -> int:
        """Sessions that have not ended."""
        return len(self._sessions)

    def running(self, pool_id: str) -> tuple[str, ...]:
        """Keys of running tasks, in the order of their dispatch."""
        return tuple(self._pool(pool_id).running)

    def waiting_keys(self, pool_id: str) -> tuple[str, ...]:
        """Keys of waiting tasks: those that resume, then by priority and arrival (not by turn)."""
        pool = self._pool(pool_id)
        return (*(live.task.key for _, live in pool.resuming), *pool.queue.keys())

    def shares(self, now_ms: int) -> dict[Flow, ShareView]:
        """Of each flow with work, or with some lately: what it got and what it is entitled to.

        Entitled over all pools is the mean over those with work; those served longest ago come
        first, those never served last. O(flows).
        """
        observed, entitled = self._shares.all(now_ms), dict[Flow, float]()
        busy = [all_of for pool in self._pools.values() if (all_of := pool.entitled.all())]
        for all_of in busy:
            for flow, share in all_of.items():
                entitled[flow] = entitled.get(flow, 0.0) + share / len(busy)
        return {
            flow: ShareView(observed.get(flow, 0.0), entitled.get(flow, 0.0))
            for flow in dict.fromkeys((*observed, *entitled))
        }

    def share_of(self, task_key: str, now_ms: int) -> ShareView | None:
        """What the task's flow got, and is entitled to in its pool; None for a task that is not
        known. O(1)."""
        if (live := self._live.get(task_key)) is None:
            return None
        tenant, priority = live.task.tenant, live.task.priority
        observed = self._shares.of(tenant, priority, now_ms)
        return ShareView(observed, live.pool.entitled.of(tenant, priority))

    def replica_sets(self) -> tuple[ReplicaSetView, ...]:
        """All sets with Ready replicas, sorted by id; replicas sorted by pool and id."""
        members: dict[ReplicaSet, list[ReplicaView]] = {}
        for _, pool in sorted(self._pools.items()):
            for replica in pool.replicas:
                if replica.ready:
                    members.setdefault(replica.group, []).append(replica.view())
        views = (view(group, tuple(replicas)) for group, replicas in members.items())
        return tuple(sorted(views, key=lambda shown: shown.id))

    def slots_free(self, pool_id: str) -> int:
        """Free slots on Ready replicas that take new work."""
        return self._pool(pool_id).slots_free()

    def backlog(self, pool_id: str, priority: Priority) -> Backlog | None:
        """Whether more slots would be of use: None while no task of the priority waits that could
        run, the pool starts none, or its speed is not known."""
        pool = self._pool(pool_id)
        if pool.draining or (group := pool.times) is None or not group.times.known:
            return None
        if pool.queue.peek(priority) is None:
            return None
        slots = sum(replica.spec.slots_total for replica in pool.serving())
        times = group.times
        return Backlog(slots, times.prefill_ms_per_token or 0.0, times.decode_ms_per_token or 0.0)

    def unpinned(self, pool_id: str) -> tuple[str, ...]:
        """Ready replicas that get no work because the pool is pinned to another set (ORCH-3046)."""
        pool = self._pool(pool_id)
        return tuple(
            r.spec.id for r in pool.replicas if r.ready and not r.cordoned and not pool.serves(r)
        )

    def leased(self, pool_id: str, replica_id: str) -> int:
        """Tasks that run on a replica; 0 when it is not known."""
        replica = self._pool(pool_id).replicas.get(replica_id)
        return 0 if replica is None else replica.leased

    def foreign(self, pool_id: str, replica_id: str) -> int:
        """Slots that its engine keeps busy without a task of ours; 0 when it is not known."""
        replica = self._pool(pool_id).replicas.get(replica_id)
        return 0 if replica is None else replica.foreign

    def kv_evictions(self, pool_id: str, replica_id: str) -> int | None:
        """Sessions that lost their KV to others' there since its process began; None when it is
        not known."""
        pool = self._pools.get(pool_id)
        replica = None if pool is None else pool.replicas.get(replica_id)
        return None if replica is None else replica.kv.evictions

    def is_empty(self, pool_id: str) -> bool:
        """Whether no task runs or waits in the pool."""
        pool = self._pool(pool_id)
        return not (pool.running or pool.resuming or pool.queue)

    def describe(self) -> str:
        """The whole state as text, the same for the same state; for transcripts and people."""
        lines = []
        for pool_id, pool in sorted(self._pools.items()):
            pinned = pool.replicas.pinned
            lines.append(
                f"pool {pool_id}{' draining' if pool.draining else ''} "
                f"set={pinned.id if pinned else '-'} "
                f"waiting={len(pool.queue)}/{pool.queue.capacity}"
            )
            for replica in pool.replicas:
                held = [k for k, live in pool.running.items() if live.replica is replica]
                state = "lost" if not replica.ready else "cordoned" if replica.cordoned else "ready"
                foreign = f"+{replica.foreign}" if replica.foreign else ""
                slots = f"{replica.leased}{foreign}/{replica.spec.slots_total}"
                lines.append(
                    f"  replica {replica.spec.id} {state} {slots} {' '.join(held)}".rstrip()
                )
            if pool.resuming:
                keys = " ".join(live.task.key for _, live in pool.resuming)
                lines.append(f"  resuming {keys}")
            lines.extend(f"  {line}" for line in pool.queue.describe())
        lines.append(f"sessions {len(self._sessions)}")
        return "\n".join(lines)

    def _pool(self, pool_id: str) -> Pool:
        pool = self._pools.get(pool_id)
        if pool is None:
            raise InvariantViolation(f"pool {pool_id} does not exist")
        return pool

    def _ahead(self, live: LiveTask) -> int:
        match live.stage:
            case Stage.RUNNING:
                return 0
            case Stage.RESUMING:
                return [turn for turn, _ in live.pool.resuming].index(live.resume_turn)
            case Stage.WAITING:
                return live.pool.position(live.task, live.sequence)


def _ends_on_time(live: LiveTask, times: ServiceTimes, now_ms: int) -> float:
    """Probability that a running task ends before its deadline, given that it has not ended yet.

    Its table holds F(t), the share of runs that end within t, and
    P(T <= deadline | T > elapsed) = (F(deadline) - F(elapsed)) / (1 - F(elapsed)).
    """
    elapsed_ms = now_ms - live.started_ms
    within_ms = live.task.deadline_at_ms - live.started_ms
    if within_ms <= elapsed_ms:
        return 0.0
    if not times.known:
        return 1.0
    by_deadline = _ended_ratio(live, times, within_ms, live.start_forecast)
    if elapsed_ms <= 0:
        return by_deadline
    by_now = _ended_ratio(live, times, elapsed_ms)
    return max(by_deadline - by_now, 0.0) / max(1.0 - by_now, 1e-6)


def _ended_ratio(
    live: LiveTask, times: ServiceTimes, within_ms: int, forecast: Forecast | None = None
) -> float:
    """Share of runs like this one's that end within so many milliseconds of their start, for which
    there may be a `forecast` already."""
    expected_ms = live.expected_end_ms - live.started_ms
    prior = times.on_time_ratio(expected_ms, within_ms)
    if forecast is None:
        forecast = live.pool.on_time.running(live.task.priority, expected_ms, within_ms)
    return prior if forecast is None else forecast.table.probability(forecast.z, prior)
