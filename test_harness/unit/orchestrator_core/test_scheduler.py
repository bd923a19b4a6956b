"""What happens to admitted tasks: dispatch, cancel, failover, deadlines, pins."""

from __future__ import annotations

from collections import Counter

import pytest

from harness_kit.core_builders import (
    T0_MS,
    finished,
    make_pool,
    make_replica,
    make_task,
    ready_scheduler,
    submit,
)
from orchestrator_core.effects import Dispatch, Effect, Ended, Rejected, SessionExpired, Stop
from orchestrator_core.errors import Code, InvariantViolation, Reason
from orchestrator_core.events import (
    Aborted,
    Cancel,
    PoolAdded,
    PoolDraining,
    ReplicaLost,
    ReplicaReady,
    SessionForgotten,
    Submit,
    Tick,
    WorkerLost,
)
from orchestrator_core.limits import Limits
from orchestrator_core.pool import TenantPolicy
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Determinism, Priority

BATCH = Priority.BATCH


def dispatched(effects: tuple[Effect, ...] | list[Effect]) -> list[str]:
    return [effect.task_key for effect in effects if isinstance(effect, Dispatch)]


def drained(scheduler: Scheduler, turns: int) -> list[str]:
    """Finish what runs, again and again; the tasks in the order of their dispatch."""
    order = []
    for _ in range(turns):
        (key, *_) = scheduler.running("p")
        order += dispatched(scheduler.step(finished(key), T0_MS))
    return order


class TestDispatch:
    def test_a_free_slot_takes_the_task_at_once(self) -> None:
        effects = submit(ready_scheduler(), "a")

        assert effects[1] == Dispatch("acme/a", "p", "r0", 1)

    @pytest.mark.req("ORCH-3079", partial="refusals are tested at admission")
    def test_the_earliest_deadline_goes_first_and_ties_by_arrival(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")
        for name, due_ms in [("b", 9000), ("a", 5000), ("c", 9000)]:
            submit(scheduler, name, deadline_at_ms=T0_MS + due_ms)

        assert drained(scheduler, 3) == ["acme/a", "acme/b", "acme/c"]

    @pytest.mark.req("ORCH-3075", "OC-CORE-1004")
    def test_slots_are_shared_by_weight_while_both_priorities_wait(self) -> None:
        scheduler = ready_scheduler()
        for i in range(60):
            submit(scheduler, f"b{i}", priority=BATCH)
            submit(scheduler, f"i{i}")

        served = Counter(key[5] for key in drained(scheduler, 54))

        assert served == {"i": 48, "b": 6}

    @pytest.mark.req(
        "ORCH-3008", "OC-CORE-1012", partial="labels for anti-affinity are not configurable"
    )
    def test_tasks_spread_over_the_least_loaded_replicas(self) -> None:
        scheduler = ready_scheduler(
            replicas=[make_replica("a", slots=2), make_replica("b", slots=2)]
        )

        places = []
        for i in range(4):
            effect = submit(scheduler, str(i))[1]
            assert isinstance(effect, Dispatch)
            places.append(effect.replica_id)

        assert places == ["a", "b", "a", "b"]

    @pytest.mark.req("ORCH-3009", "OC-CORE-1013")
    def test_a_session_returns_to_the_replica_that_served_it(self) -> None:
        scheduler = ready_scheduler(
            replicas=[make_replica("a", slots=2), make_replica("b", slots=2)]
        )
        submit(scheduler, "other")
        submit(scheduler, "first", session_key="s")  # on b: a is busier
        scheduler.step(finished("acme/other"), T0_MS)
        scheduler.step(finished("acme/first"), T0_MS)

        warm = submit(scheduler, "warm", session_key="s")[1]
        cold = submit(scheduler, "cold", session_key="s", kv_hint="cold")[1]

        assert isinstance(warm, Dispatch)
        assert isinstance(cold, Dispatch)
        assert (warm.replica_id, cold.replica_id) == ("b", "a")

    @pytest.mark.req("ORCH-3011", "OC-CORE-1011")
    def test_work_waits_for_its_own_pool_while_another_is_idle(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")
        submit(scheduler, "waiting")

        scheduler.step(PoolAdded(make_pool("q")), T0_MS)
        effects = scheduler.step(ReplicaReady(make_replica("r0", "q", slots=4)), T0_MS)

        assert effects == ()
        assert scheduler.waiting_keys("p") == ("acme/waiting",)

    @pytest.mark.req("ORCH-3010", "OC-CORE-1010")
    def test_a_replica_that_becomes_ready_takes_what_waits(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")
        for name in ("a", "b", "c"):
            submit(scheduler, name)

        effects = scheduler.step(ReplicaReady(make_replica("r1", slots=2)), T0_MS)

        assert effects == (Dispatch("acme/a", "p", "r1", 1), Dispatch("acme/b", "p", "r1", 1))

    def test_a_lost_replica_takes_nothing_and_waiting_tasks_keep_waiting(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")
        submit(scheduler, "waiting")

        lost = scheduler.step(ReplicaLost("p", "r0"), T0_MS)
        freed = scheduler.step(WorkerLost("acme/running", resume=False), T0_MS)
        back = scheduler.step(ReplicaReady(make_replica("r0")), T0_MS)

        assert (lost, freed) == ((), ())
        assert back == (Dispatch("acme/waiting", "p", "r0", 1),)

    def test_a_draining_pool_dispatches_nothing_until_that_is_lifted(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")
        submit(scheduler, "waiting")
        scheduler.step(PoolDraining("p"), T0_MS)

        while_draining = scheduler.step(finished("acme/running"), T0_MS)
        lifted = scheduler.step(PoolDraining("p", draining=False), T0_MS)

        assert while_draining == ()
        assert dispatched(lifted) == ["acme/waiting"]


@pytest.mark.req("ORCH-3077", partial="rps, and what the service adds")
class TestMaxConcurrent:
    SPEC = make_pool(tenants=(TenantPolicy("x", max_concurrent=1),))

    def test_it_bounds_running_tasks_and_the_rest_waits(self) -> None:
        scheduler = ready_scheduler(self.SPEC, [make_replica(slots=3)])

        for i in range(3):
            submit(scheduler, str(i), tenant="x")

        assert scheduler.running("p") == ("x/0",)
        assert scheduler.waiting_keys("p") == ("x/1", "x/2")

    def test_others_pass_by_and_the_next_of_the_tenant_follows_its_last(self) -> None:
        scheduler = ready_scheduler(self.SPEC, [make_replica(slots=2)])
        submit(scheduler, "0", tenant="x")
        submit(scheduler, "1", tenant="x")

        passing = submit(scheduler, "other", tenant="y")
        follows = scheduler.step(finished("x/0"), T0_MS)

        assert dispatched(passing) == ["y/other"]
        assert dispatched(follows) == ["x/1"]

    def test_what_passed_by_those_that_wait_is_charged_for_it(self) -> None:
        scheduler = ready_scheduler(self.SPEC, [make_replica(slots=2)])
        for i in range(3):
            submit(scheduler, str(i), tenant="x")
        submit(scheduler, "dear", tenant="y", cost_tokens=5000)
        submit(scheduler, "next", tenant="y")

        first = scheduler.step(finished("x/0"), T0_MS)
        second = scheduler.step(finished("x/1"), T0_MS)

        assert dispatched(first) == ["x/1"]
        assert dispatched(second) == ["x/2"]

    def test_a_reload_that_raises_it_lets_them_go(self) -> None:
        scheduler = ready_scheduler(self.SPEC, [make_replica(slots=3)])
        for i in range(3):
            submit(scheduler, str(i), tenant="x")

        raised = make_pool(tenants=(TenantPolicy("x", max_concurrent=2),))
        effects = scheduler.step(PoolAdded(raised), T0_MS)

        assert dispatched(effects) == ["x/1"]

    def test_a_task_that_waits_to_resume_keeps_its_place_in_the_count(self) -> None:
        scheduler = ready_scheduler(self.SPEC, [make_replica("a"), make_replica("b")])
        submit(scheduler, "0", tenant="x")
        submit(scheduler, "1", tenant="x")
        scheduler.step(ReplicaLost("p", "b"), T0_MS)
        scheduler.step(ReplicaLost("p", "a"), T0_MS)

        scheduler.step(WorkerLost("x/0", resume=True), T0_MS)
        back = scheduler.step(ReplicaReady(make_replica("b", slots=2)), T0_MS)

        assert dispatched(back) == ["x/0"]


@pytest.mark.req("ORCH-3017", "OC-CORE-1005", partial="that services close connections")
class TestCancel:
    def test_a_waiting_task_ends_without_a_refusal_and_is_never_dispatched(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")
        submit(scheduler, "waiting")

        effects = scheduler.step(Cancel("acme/waiting"), T0_MS)

        assert effects == (Ended("acme/waiting", None),)
        assert scheduler.step(finished("acme/running"), T0_MS) == ()

    def test_a_running_task_is_stopped_and_its_slot_goes_to_the_next(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")
        submit(scheduler, "waiting")

        effects = scheduler.step(Cancel("acme/running"), T0_MS)

        assert effects == (
            Stop("acme/running", "p", "r0"),
            Dispatch("acme/waiting", "p", "r0", 1),
        )

    def test_a_task_that_waits_to_resume_ends(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "a")
        scheduler.step(ReplicaLost("p", "r0"), T0_MS)
        scheduler.step(WorkerLost("acme/a", resume=True), T0_MS)

        effects = scheduler.step(Cancel("acme/a"), T0_MS)

        assert effects == (Ended("acme/a", None),)
        assert scheduler.step(ReplicaReady(make_replica("r0")), T0_MS) == ()

    @pytest.mark.req("ORCH-3026", partial="all but the core's part of the race")
    def test_whoever_comes_second_in_a_race_changes_nothing(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "a")
        scheduler.step(Cancel("acme/a"), T0_MS)
        submit(scheduler, "b")

        late = [
            scheduler.step(event, T0_MS)
            for event in (
                finished("acme/a"),
                Aborted("acme/a"),
                WorkerLost("acme/a", resume=True),
                Cancel("acme/a"),
                Cancel("acme/never-seen"),
            )
        ]

        assert late == [()] * 5
        assert scheduler.running("p") == ("acme/b",)


class TestAborted:
    def test_an_aborted_task_frees_its_slot(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "a")
        submit(scheduler, "b")

        effects = scheduler.step(Aborted("acme/a"), T0_MS)

        assert effects == (Dispatch("acme/b", "p", "r0", 1),)

    def test_the_end_of_a_task_that_waits_is_a_mistake_of_the_caller(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "a")
        submit(scheduler, "b")

        with pytest.raises(InvariantViolation, match="acme/b is waiting"):
            scheduler.step(finished("acme/b"), T0_MS)


@pytest.mark.req("ORCH-3201", partial="the bytes, which are the service's part")
class TestFailover:
    def test_it_resumes_on_another_replica_before_everything_that_waits(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica("a"), make_replica("b")])
        submit(scheduler, "on-a")
        submit(scheduler, "on-b")
        submit(scheduler, "urgent", deadline_at_ms=T0_MS + 10)
        scheduler.step(ReplicaLost("p", "a"), T0_MS)

        waits = scheduler.step(WorkerLost("acme/on-a", resume=True), T0_MS)
        resumes = scheduler.step(finished("acme/on-b"), T0_MS)

        assert waits == ()
        assert resumes == (Dispatch("acme/on-a", "p", "b", 2),)

    def test_it_is_not_counted_against_capacity(self) -> None:
        scheduler = ready_scheduler(make_pool(capacity=1), [make_replica("a"), make_replica("b")])
        submit(scheduler, "on-a")
        submit(scheduler, "on-b")
        scheduler.step(ReplicaLost("p", "a"), T0_MS)
        scheduler.step(WorkerLost("acme/on-a", resume=True), T0_MS)

        submit(scheduler, "waiting")

        assert scheduler.waiting_keys("p") == ("acme/on-a", "acme/waiting")
        assert [scheduler.position(key) for key in scheduler.waiting_keys("p")] == [0, 1]

    @pytest.mark.req("ORCH-3046")
    def test_it_never_moves_to_another_set(self) -> None:
        scheduler = ready_scheduler(
            make_pool(same_engine_version=False),
            [make_replica("a", version="b1"), make_replica("b", version="b2")],
        )
        submit(scheduler, "strict")
        scheduler.step(ReplicaLost("p", "a"), T0_MS)

        other_set_is_free = scheduler.step(WorkerLost("acme/strict", resume=True), T0_MS)
        own_set_is_back = scheduler.step(ReplicaReady(make_replica("c", version="b1")), T0_MS)

        assert other_set_is_free == ()
        assert own_set_is_back == (Dispatch("acme/strict", "p", "c", 2),)

    def test_without_resumption_the_slot_is_all_that_changes(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "a", determinism=Determinism.BEST_EFFORT)
        submit(scheduler, "b")

        effects = scheduler.step(WorkerLost("acme/a", resume=False), T0_MS)

        assert effects == (Dispatch("acme/b", "p", "r0", 1),)

    def test_a_worker_that_broke_on_a_ready_replica_is_left_for_another(self) -> None:
        scheduler = ready_scheduler(
            replicas=[make_replica("a", slots=4), make_replica("b", slots=4)]
        )
        submit(scheduler, "t")

        effects = scheduler.step(WorkerLost("acme/t", resume=True), T0_MS)

        assert effects == (Dispatch("acme/t", "p", "b", 2),)

    @pytest.mark.req("ORCH-3009", partial="all but that the session is cold")
    def test_the_session_is_cold_afterwards(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica("a"), make_replica("b")])
        submit(scheduler, "first", session_key="s")
        warm = finished("acme/first")
        scheduler.step(type(warm)("acme/first", 10, 90, 100, 900, kv_bytes=7, kv_warm=True), T0_MS)
        before = scheduler.session("s", T0_MS)
        submit(scheduler, "second", session_key="s")

        scheduler.step(ReplicaLost("p", "a"), T0_MS)
        scheduler.step(WorkerLost("acme/second", resume=True), T0_MS)
        after = scheduler.session("s", T0_MS)

        assert before is not None
        assert after is not None
        assert (before.kv_warmth, before.last_replica) == (True, "a")
        assert (after.kv_warmth, after.last_replica, after.kv_bytes) == (False, None, 0)

    @pytest.mark.parametrize(
        ("another_is_ready", "code"), [(False, Code.POOL_UNAVAILABLE), (True, Code.DEADLINE_UNMET)]
    )
    def test_it_waits_until_its_deadline(self, another_is_ready: bool, code: Code) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "a", deadline_at_ms=T0_MS + 1000)
        if another_is_ready:
            scheduler.step(ReplicaReady(make_replica("busy")), T0_MS)
            submit(scheduler, "b")
        scheduler.step(ReplicaLost("p", "r0"), T0_MS)
        scheduler.step(WorkerLost("acme/a", resume=True), T0_MS)

        before = scheduler.step(Tick(), T0_MS + 999)
        (ended,) = scheduler.step(Tick(), T0_MS + 1000)

        assert before == ()
        assert isinstance(ended, Ended)
        assert ended.refusal is not None
        assert (ended.task_key, ended.refusal.code) == ("acme/a", code)


class TestDeadlines:
    def test_a_waiting_task_ends_at_its_deadline(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")
        submit(scheduler, "waiting", deadline_at_ms=T0_MS + 100)

        before = scheduler.step(Tick(), T0_MS + 99)
        (ended,) = scheduler.step(Tick(), T0_MS + 100)

        assert before == ()
        assert isinstance(ended, Ended)
        assert ended.refusal is not None
        assert (ended.refusal.code, ended.refusal.reason) == (Code.DEADLINE_UNMET, Reason.DEADLINE)
        assert scheduler.waiting_keys("p") == ()

    def test_no_slot_is_spent_on_a_task_whose_time_is_over(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")
        submit(scheduler, "over", deadline_at_ms=T0_MS + 100)
        submit(scheduler, "next")

        ended, dispatch = scheduler.step(finished("acme/running"), T0_MS + 100)

        assert isinstance(ended, Ended)
        assert ended.task_key == "acme/over"
        assert dispatch == Dispatch("acme/next", "p", "r0", 1)

    def test_a_running_task_is_left_alone(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")

        assert scheduler.step(Tick(), T0_MS + 120_000) == ()
        assert scheduler.running("p") == ("acme/running",)


@pytest.mark.req("ORCH-3046", "OC-CORE-1031")
class TestPins:
    def test_a_replica_of_another_version_gets_no_work(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica("old", version="b1")])
        scheduler.step(ReplicaReady(make_replica("new", version="b2", slots=9)), T0_MS)
        submit(scheduler, "a")
        submit(scheduler, "b")

        assert scheduler.unpinned("p") == ("new",)
        assert scheduler.waiting_keys("p") == ("acme/b",)
        assert scheduler.leased("p", "new") == 0

    def test_the_pin_moves_when_the_old_set_is_gone(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica("old", version="b1")])
        scheduler.step(ReplicaReady(make_replica("new", version="b2")), T0_MS)
        submit(scheduler, "running")
        submit(scheduler, "waiting")

        lost = scheduler.step(ReplicaLost("p", "old"), T0_MS)
        ended = scheduler.step(WorkerLost("acme/running", resume=False), T0_MS)

        assert lost == ()
        assert ended == (Dispatch("acme/waiting", "p", "new", 1),)
        assert scheduler.unpinned("p") == ()

    def test_the_pin_stays_for_a_task_that_waits_to_resume(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica("old", version="b1")])
        scheduler.step(ReplicaReady(make_replica("new", version="b2")), T0_MS)
        submit(scheduler, "running", deadline_at_ms=T0_MS + 1000)
        submit(scheduler, "waiting")
        scheduler.step(ReplicaLost("p", "old"), T0_MS)

        resume = scheduler.step(WorkerLost("acme/running", resume=True), T0_MS)
        given_up = scheduler.step(Tick(), T0_MS + 1000)

        assert resume == ()
        assert dispatched(given_up) == ["acme/waiting"]

    def test_a_pool_that_does_not_require_one_version_uses_all(self) -> None:
        scheduler = ready_scheduler(
            make_pool(same_engine_version=False),
            [make_replica("a", version="b1"), make_replica("b", version="b2")],
        )

        effects = submit(scheduler, "1") + submit(scheduler, "2")

        assert [e.replica_id for e in effects if isinstance(e, Dispatch)] == ["a", "b"]
        assert scheduler.unpinned("p") == ()


class TestPoolChanges:
    def test_a_specification_under_the_same_id_replaces_the_old_one(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")

        scheduler.step(PoolAdded(make_pool(model_refs=frozenset({"model", "sha256:aa"}))), T0_MS)
        submit(scheduler, "by-digest", model_ref="sha256:aa")

        assert scheduler.waiting_keys("p") == ("acme/by-digest",)
        assert scheduler.running("p") == ("acme/running",)

    def test_a_new_context_and_version_rule_hold_at_once(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica("old"), make_replica("x", version="b2")])
        submit(scheduler, "running")
        submit(scheduler, "waiting")

        effects = scheduler.step(PoolAdded(make_pool(ctx=4096, same_engine_version=False)), T0_MS)
        too_long = submit(scheduler, "too-long", ctx=4097)[0]

        assert effects == (Dispatch("acme/waiting", "p", "x", 1),)
        assert isinstance(too_long, Rejected)
        assert too_long.refusal.reason is Reason.CONTEXT

    def test_facts_about_a_pool_that_does_not_exist_are_a_mistake_of_the_caller(self) -> None:
        with pytest.raises(InvariantViolation, match="pool p does not exist"):
            Scheduler().step(ReplicaReady(make_replica()), T0_MS)

    def test_losing_what_is_not_known_changes_nothing(self) -> None:
        scheduler = ready_scheduler()

        assert scheduler.step(ReplicaLost("p", "x"), T0_MS) == ()
        assert scheduler.step(ReplicaLost("q", "x"), T0_MS) == ()


class TestSessions:
    def test_expired_sessions_are_announced(self) -> None:
        scheduler = ready_scheduler(limits=Limits(session_ttl_ms=500))
        submit(scheduler, "a", session_key="s")

        assert scheduler.step(Tick(), T0_MS + 499) == ()
        assert scheduler.step(Tick(), T0_MS + 500) == (SessionExpired("s"),)

    def test_a_forgotten_session_is_gone_while_its_task_goes_on(self) -> None:
        scheduler = ready_scheduler(limits=Limits(budget_tokens=500))
        submit(scheduler, "a", session_key="s")

        scheduler.step(SessionForgotten("s"), T0_MS)

        assert scheduler.session("s", T0_MS) is None
        assert scheduler.running("p") == ("acme/a",)
        assert scheduler.step(finished("acme/a"), T0_MS) == ()


class TestQueries:
    def test_depth_and_position_count_what_waits(self) -> None:
        scheduler = ready_scheduler()
        for name in ("running", "a", "b"):
            submit(scheduler, name)
        submit(scheduler, "c", priority=BATCH)

        assert scheduler.queue_depth("p", Priority.INTERACTIVE) == 2
        assert scheduler.queue_depth("p", BATCH) == 1
        # Batch has had nothing yet, so its first task comes after the first interactive one.
        assert [scheduler.position(f"acme/{n}") for n in ("running", "a", "c", "b")] == [0, 0, 1, 2]
        assert scheduler.position("acme/unknown") is None

    @pytest.mark.req("ORCH-3081", partial="metric and event are the service's")
    def test_a_long_queue_makes_a_deadline_less_likely(self) -> None:
        scheduler = ready_scheduler()
        for i in range(3):
            submit(scheduler, f"known{i}")
            scheduler.step(finished(f"acme/known{i}"), T0_MS)
        for i in range(5):
            submit(scheduler, str(i), deadline_at_ms=T0_MS + 6000)

        chances = [scheduler.on_time_probability(f"acme/{i}", T0_MS) for i in range(5)]

        assert chances == sorted(chances, reverse=True)
        assert chances[0] > 0.99 > 0.95 > chances[4] > 0.5
        assert scheduler.on_time_probability("acme/unknown", T0_MS) == 1.0

    def test_the_state_can_be_read(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica("r0"), make_replica("r1", version="b2")])
        submit(scheduler, "a")
        submit(scheduler, "b")
        submit(scheduler, "c", tenant="z", priority=BATCH)

        pinned = next(s.id for s in scheduler.replica_sets() if s.replicas[0].id == "r0")

        assert scheduler.describe() == "\n".join(
            [
                f"pool p set={pinned} waiting=2/256",
                "  replica r0 ready 1/1 acme/a",
                "  replica r1 ready 0/1",
                "  interactive 1/256: acme+0",
                "  batch 1/256: z+0",
                "sessions 3",
            ]
        )

    def test_a_query_changes_nothing(self) -> None:
        scheduler = ready_scheduler()
        scheduler.step(Submit(make_task("a")), T0_MS)
        before = scheduler.describe()

        scheduler.session("acme/s-a", T0_MS + 10**9)
        scheduler.predicted_start_ms("acme/a", T0_MS + 10**9)
        scheduler.on_time_probability("acme/a", T0_MS + 10**9)

        assert scheduler.describe() == before
