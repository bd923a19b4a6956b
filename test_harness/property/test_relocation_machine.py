"""Three pools under drains, cordons, reloads, canaries and losses: nobody loses a task.

The machine keeps its own books of where each task is, from effects alone, and drives the core by
the services' protocol: a replica that is taken away is reported lost before its tasks are. What
must hold whatever happens: each admitted task ends exactly once and only for a reason; none runs
twice at once; new work goes to Ready replicas that are not cordoned, in pools that do not drain;
one that has shown something stays in its set; what waits in a drained pool waits there only while
nobody else takes it.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from harness_kit.core_builders import T0_MS, make_pool, make_replica, make_task
from orchestrator_core.effects import Admitted, Dispatch, Effect, Ended, Moved, Rejected, Stop
from orchestrator_core.errors import Code, Reason
from orchestrator_core.events import (
    Cancel,
    Evacuated,
    Event,
    Finished,
    PoolAdded,
    PoolDraining,
    PoolMerged,
    PoolRemoved,
    ReplicaCordoned,
    ReplicaLost,
    ReplicaReady,
    Submit,
    Tick,
    WorkerLost,
)
from orchestrator_core.limits import Limits
from orchestrator_core.pool import CanaryShare, TenantPolicy
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Priority, Task

POOLS = ("p", "q", "p.canary")
NAMES = tuple((pool, f"{pool}-{n}") for pool in POOLS for n in range(2))
BOTH = {"p": {"model", "old"}, "q": {"model", "old"}, "p.canary": {"model", "new"}}

positions = st.integers(0, 99)


@dataclass
class Known:
    """The books of one admitted task."""

    task: Task
    pool: str
    replica: str | None = None
    version: str | None = None  # the set that it must stay in
    resuming: bool = False
    attempts: int = 0


class RelocationMachine(RuleBasedStateMachine):
    @initialize(percent=st.integers(0, 100), limit=st.none() | st.just(1))
    def begin(self, percent: int, limit: int | None) -> None:
        self.scheduler = Scheduler(Limits(session_max_turns=10**9, session_ttl_ms=10**9))
        self.now_ms = T0_MS
        self.live: dict[str, Known] = {}
        self.ended: set[str] = set()
        self.ready: dict[str, tuple[str, str]] = {}  # replica: pool, version
        self.cordoned: set[tuple[str, str]] = set()  # pool, replica
        self.draining: set[str] = set()
        self.refs = {pool: set(refs) for pool, refs in BOTH.items()}
        self.limit = limit
        self.percent = percent
        self.number = 0
        self.excuse: tuple[Code, ...] = ()  # what tasks may end with in this step
        for pool in ("p", "q"):
            self.add_pool(pool)

    def add_pool(self, pool: str) -> None:
        share = CanaryShare("p", self.percent) if pool == "p.canary" else None
        spec = make_pool(
            pool,
            capacity=4,
            model_refs=frozenset(self.refs[pool]),
            tenants=(TenantPolicy("x", max_concurrent=self.limit),),
            canary=share,
        )
        self.step(PoolAdded(spec))

    @property
    def pools(self) -> tuple[str, ...]:
        return self.scheduler.pool_ids()

    def step(self, event: Event) -> tuple[Effect, ...]:
        effects = self.scheduler.step(event, self.now_ms)
        for effect in effects:
            match effect:
                case Admitted():
                    assert isinstance(event, Submit)
                    assert effect.pool_id not in self.draining
                    self.live[effect.task_key] = Known(event.task, effect.pool_id)
                case Dispatch():
                    self.book_dispatch(effect)
                case Moved():
                    known = self.live[effect.task_key]
                    known.pool = effect.pool_id
                    merged = isinstance(event, PoolMerged)
                    assert known.replica is None or merged
                    assert effect.pool_id not in self.draining or merged
                case Ended():
                    known = self.live[effect.task_key]
                    assert known.replica is None
                    assert effect.refusal is None or effect.refusal.code in self.excuse
                    self.end(effect.task_key)
                case Stop():
                    assert self.live[effect.task_key].replica == effect.replica_id
                    self.end(effect.task_key)
                case Rejected():
                    assert effect.task_key not in self.live
                case _:
                    raise AssertionError(effect)
        return effects

    def book_dispatch(self, effect: Dispatch) -> None:
        known = self.live[effect.task_key]
        pool, version = self.ready[effect.replica_id]
        assert pool == effect.pool_id == known.pool
        assert known.replica is None, "dispatched twice"
        assert self.running_on(effect.replica_id) == 0, "slot leased twice"
        assert known.version in (None, version), "moved to another set"
        if not known.resuming:
            assert (pool, effect.replica_id) not in self.cordoned
            assert pool not in self.draining
        if known.version is None:
            assert known.task.model_ref in self.refs[pool]
        known.attempts += 1
        assert effect.attempt == known.attempts
        known.replica, known.version, known.resuming = effect.replica_id, version, False

    def running_on(self, replica: str) -> int:
        return sum(1 for known in self.live.values() if known.replica == replica)

    def end(self, key: str) -> None:
        assert key not in self.ended, "ended twice"
        del self.live[key]
        self.ended.add(key)

    def running(self) -> list[str]:
        return sorted(key for key, known in self.live.items() if known.replica is not None)

    # --- tasks -------------------------------------------------------------------------------

    @rule(
        tenant=st.sampled_from("xy"),
        model=st.sampled_from(["model", "model", "old", "new"]),
        priority=st.sampled_from(Priority),
    )
    def submit(self, tenant: str, model: str, priority: Priority) -> None:
        self.number += 1
        task = make_task(
            f"t{self.number}",
            tenant=tenant,
            model_ref=model,
            priority=priority,
            arrived_ms=self.now_ms,
            deadline_at_ms=self.now_ms + 10**7,
        )
        takes = [p for p in self.pools if self.takes_new_work(p) and model in self.refs[p]]
        effects = self.step(Submit(task))
        refusals = [e.refusal for e in effects if isinstance(e, Rejected)]
        if not takes:
            assert [r.reason is not Reason.QUEUE_FULL for r in refusals] == [True]
        elif refusals:
            assert refusals[0].reason is Reason.QUEUE_FULL

    @precondition(lambda self: self.running())
    @rule(position=positions)
    def finish(self, position: int) -> None:
        key = self.running()[position % len(self.running())]
        self.end(key)
        self.step(Finished(key, 10, 20, 10, 20))

    @precondition(lambda self: self.live)
    @rule(position=positions)
    def cancel(self, position: int) -> None:
        key = sorted(self.live)[position % len(self.live)]
        self.step(Cancel(key))
        assert key in self.ended

    @rule()
    def tick(self) -> None:
        self.now_ms += 250
        self.step(Tick())
        self.a_set_that_is_ready_elsewhere_is_used()

    def a_set_that_is_ready_elsewhere_is_used(self) -> None:
        """At the latest with the tick after a pool's set has changed; a pool does not mix sets."""
        for known in self.live.values():
            if not known.resuming or known.version is None:
                continue
            here = [v for home, v in self.ready.values() if home == known.pool]
            if known.version not in here:
                for name, (home, version) in self.ready.items():
                    usable = home not in self.draining and (home, name) not in self.cordoned
                    usable = usable and name not in self.scheduler.unpinned(home)
                    assert not (version == known.version and usable)

    # --- replicas ----------------------------------------------------------------------------

    @rule(where=st.sampled_from(NAMES), version=st.sampled_from(["b1", "b1", "b2"]))
    def replica_ready(self, where: tuple[str, str], version: str) -> None:
        pool, name = where
        if pool in self.pools and name not in self.ready:
            self.ready[name] = (pool, version)
            self.step(ReplicaReady(make_replica(name, pool, version=version)))

    def withdraw(self, names: list[str], anew: bool) -> None:
        """As the replica directory does it: gone first, then task by task."""
        victims = [key for key, known in self.live.items() if known.replica in names]
        homes = {name: self.ready.pop(name)[0] for name in names}
        for name in names:
            self.step(ReplicaLost(homes[name], name))
        for key in victims:
            known = self.live[key]
            known.replica, known.resuming = None, True
            if anew and known.task.model_ref in self.refs[known.pool]:
                known.version = None
            self.step(WorkerLost(key, resume=True, anew=anew))

    @precondition(lambda self: self.ready)
    @rule(position=positions, anew=st.booleans())
    def replica_lost(self, position: int, anew: bool) -> None:
        self.withdraw([sorted(self.ready)[position % len(self.ready)]], anew)

    @precondition(lambda self: self.ready)
    @rule(position=positions)
    def drain_of_a_replica_ends(self, position: int) -> None:
        name = sorted(self.ready)[position % len(self.ready)]
        pool = self.ready[name][0]
        self.withdraw([name], anew=False)
        self.excuse = (Code.WORKER_RESET,)
        self.step(Evacuated(pool, (name,)))
        self.excuse = ()

    @rule(where=st.sampled_from(NAMES), cordoned=st.booleans())
    def cordon(self, where: tuple[str, str], cordoned: bool) -> None:
        pool, name = where
        home = self.ready[name][0] if name in self.ready else pool
        if home in self.pools:
            (self.cordoned.add if cordoned else self.cordoned.discard)((home, name))
            self.step(ReplicaCordoned(home, name, cordoned))

    # --- pools -------------------------------------------------------------------------------

    @rule(pool=st.sampled_from(POOLS), draining=st.booleans())
    def drain(self, pool: str, draining: bool) -> None:
        if pool in self.pools:
            (self.draining.add if draining else self.draining.discard)(pool)
            self.step(PoolDraining(pool, draining))

    @rule(pool=st.sampled_from(POOLS), anew=st.booleans())
    def drain_ends(self, pool: str, anew: bool) -> None:
        if pool not in self.draining:
            return
        self.withdraw([name for name, (home, _) in self.ready.items() if home == pool], anew)
        self.excuse = (Code.WORKER_RESET, Code.POOL_UNREADY)
        self.step(Evacuated(pool))
        self.excuse = ()
        assert self.scheduler.is_empty(pool)
        if pool == "p.canary":
            self.draining.discard(pool)
            self.cordoned = {where for where in self.cordoned if where[0] != pool}
            self.step(PoolRemoved(pool))

    @precondition(lambda self: "p.canary" not in self.pools)
    @rule()
    def canary_begins(self) -> None:
        if not any(name.startswith("p.canary") for name in self.ready):
            self.add_pool("p.canary")
            for number in range(2):
                self.replica_ready(("p.canary", f"p.canary-{number}"), "b2")

    @precondition(lambda self: "p.canary" in self.pools)
    @rule()
    def canary_is_promoted(self) -> None:
        self.reload("p", "new")
        self.draining.discard("p.canary")
        for name, (home, version) in self.ready.items():
            if home == "p.canary":
                self.ready[name] = ("p", version)
                self.cordoned.discard(("p", name))  # that was another one
        self.cordoned = {
            ("p" if home == "p.canary" else home, name) for home, name in self.cordoned
        }
        self.step(PoolMerged("p", "p.canary"))

    @rule(pool=st.sampled_from(["p", "q"]), model=st.sampled_from(["old", "new"]))
    def reload(self, pool: str, model: str) -> None:
        self.refs[pool] = {"model", model}
        self.excuse = (Code.POOL_UNAVAILABLE,)
        self.add_pool(pool)
        self.excuse = ()

    # --- what holds --------------------------------------------------------------------------

    def takes_new_work(self, pool: str) -> bool:
        pinned_out = self.scheduler.unpinned(pool)  # of another set than the pool's
        return pool not in self.draining and any(
            home == pool and (home, name) not in self.cordoned and name not in pinned_out
            for name, (home, _) in self.ready.items()
        )

    @invariant()
    def books_agree(self) -> None:
        for pool in self.pools:
            mine = {key: known for key, known in self.live.items() if known.pool == pool}
            waiting = {key for key, known in mine.items() if known.replica is None}
            assert set(self.scheduler.waiting_keys(pool)) == waiting
            assert set(self.scheduler.running(pool)) == set(mine) - waiting
        assert all(known.pool in self.pools for known in self.live.values())

    @invariant()
    def what_waits_in_a_drained_pool_finds_nobody_else(self) -> None:
        for known in self.live.values():
            if known.replica is None and not known.resuming and known.pool in self.draining:
                for pool in self.pools:
                    pinned = self.scheduler.slots_free(pool)
                    serves = known.task.model_ref in self.refs[pool] and pinned > 0
                    assert pool in self.draining or not serves

    @invariant()
    def what_resumes_finds_no_slot_of_its_set_where_it_is(self) -> None:
        for known in self.live.values():
            if known.resuming and known.version is not None:
                for name, (home, version) in self.ready.items():
                    free = self.running_on(name) == 0
                    assert not (home == known.pool and version == known.version and free)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        for key in sorted(self.live):
            self.step(Cancel(key))
        assert not self.live
        for pool in self.pools:
            assert self.scheduler.is_empty(pool)
            self.step(PoolRemoved(pool))


@pytest.mark.req(
    "ORCH-2101", "ORCH-2102", "ORCH-3007", "ORCH-3033", "ORCH-3201", partial="the core's part only"
)
class TestRelocation(RelocationMachine.TestCase):  # type: ignore[misc, valid-type]
    """The machine as a test."""
