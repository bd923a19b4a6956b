"""Who gets in: every refusal of `Submit`, and what it costs (nothing)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

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
from orchestrator_core.effects import Admitted, Dispatch, Ended, Rejected
from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.events import (
    Cancel,
    Finished,
    PoolAdded,
    PoolDraining,
    ReplicaLost,
    ReplicaReady,
    Submit,
)
from orchestrator_core.limits import Limits
from orchestrator_core.pool import FullPolicy, TenantPolicy
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Priority, Workload

BATCH = Priority.BATCH


def refusal_of(effects: list[object]) -> Refusal:
    (effect,) = effects
    assert isinstance(effect, Rejected)
    return effect.refusal


def refused(scheduler: Scheduler, name: str = "new", now_ms: int = T0_MS, **task: Any) -> Refusal:
    return refusal_of(list(submit(scheduler, name, now_ms, **task)))


def known_speed(scheduler: Scheduler, tasks: int = 3) -> None:
    """One second per standard task (10 ms a token) is what the set has shown."""
    for i in range(tasks):
        submit(scheduler, f"known{i}")
        scheduler.step(finished(f"acme/known{i}"), T0_MS)


class TestPools:
    @pytest.mark.req("ORCH-3018", partial="all but the core's part")
    @pytest.mark.parametrize("change", [{"engine": "vllm"}, {"model_ref": "other"}])
    def test_no_pool_for_engine_and_model_is_unavailable(self, change: dict[str, Any]) -> None:
        refusal = refused(ready_scheduler(), **change)

        assert (refusal.code, refusal.reason) == (Code.POOL_UNAVAILABLE, Reason.POOL_UNAVAILABLE)
        assert refusal.retriable
        assert refusal.retry_after_ms is not None
        assert refusal.engine == change.get("engine", "llamacpp")

    @pytest.mark.req("ORCH-3010", "OC-CORE-1010")
    def test_a_pool_that_was_never_ready_is_unready(self) -> None:
        scheduler = Scheduler()
        scheduler.step(PoolAdded(make_pool()), T0_MS)

        refusal = refused(scheduler)

        assert (refusal.code, refusal.reason) == (Code.POOL_UNREADY, Reason.POOL_UNREADY)
        assert (refusal.retriable, refusal.pool_id) == (True, "p")

    def test_a_pool_that_lost_its_last_replica_is_unavailable(self) -> None:
        scheduler = ready_scheduler()
        scheduler.step(ReplicaLost("p", "r0"), T0_MS)

        assert refused(scheduler).code is Code.POOL_UNAVAILABLE

    def test_a_draining_pool_is_unready_until_that_is_lifted(self) -> None:
        scheduler = ready_scheduler()

        scheduler.step(PoolDraining("p"), T0_MS)
        refusal = refused(scheduler)
        scheduler.step(PoolDraining("p", draining=False), T0_MS)

        assert (refusal.code, refusal.reason) == (Code.POOL_UNREADY, Reason.DRAINING)
        assert isinstance(submit(scheduler, "b")[0], Admitted)

    def test_among_several_pools_free_slots_then_the_shortest_queue_then_the_id_decide(
        self,
    ) -> None:
        scheduler = ready_scheduler(make_pool("b"), [make_replica("r", "b", slots=2)])
        scheduler.step(PoolAdded(make_pool("a")), T0_MS)
        scheduler.step(ReplicaReady(make_replica("r", "a", slots=1)), T0_MS)

        chosen = []
        for i in range(6):
            admitted = submit(scheduler, str(i))[0]
            assert isinstance(admitted, Admitted)
            chosen.append(admitted.pool_id)

        assert chosen == ["b", "a", "b", "a", "b", "a"]

    def test_a_pool_that_refuses_gives_way_to_another_that_admits(self) -> None:
        scheduler = ready_scheduler(make_pool("a", rate_limit_rps=1))
        scheduler.step(PoolAdded(make_pool("b")), T0_MS)
        scheduler.step(ReplicaReady(make_replica("r", "b")), T0_MS)
        submit(scheduler, "first")
        scheduler.step(finished("acme/first"), T0_MS)

        second = submit(scheduler, "second")[0]

        assert isinstance(second, Admitted)
        assert second.pool_id == "b"


class TestSize:
    @pytest.mark.req("ORCH-3014", "OC-CORE-1020")
    def test_a_context_above_what_every_pool_offers_is_invalid(self) -> None:
        scheduler = ready_scheduler(make_pool("a", ctx=2048), [make_replica("r", "a")])
        scheduler.step(PoolAdded(make_pool("b", ctx=4096)), T0_MS)

        refusal = refused(scheduler, ctx=4097)

        assert (refusal.code, refusal.reason) == (Code.INVALID_PARAMS, Reason.CONTEXT)
        assert "ctx: 4097 is above the 4096" in refusal.message
        assert not refusal.retriable

    def test_what_the_engine_offers_counts_not_only_the_configuration(self) -> None:
        scheduler = ready_scheduler(replicas=[replace(make_replica(), ctx_max=2048)])

        assert refused(scheduler, ctx=2049).code is Code.INVALID_PARAMS
        assert isinstance(submit(scheduler, "fits", ctx=2048)[0], Admitted)

    @pytest.mark.req("ORCH-3015")
    def test_prompt_and_answer_must_fit_the_context(self) -> None:
        scheduler = ready_scheduler()

        refusal = refused(scheduler, ctx=100, prompt_tokens=11, max_tokens=90)

        assert (refusal.code, refusal.reason) == (Code.INVALID_PARAMS, Reason.CONTEXT)
        assert "prompt (11 tokens) + max_tokens (90) = 101 exceed ctx (100)" in refusal.message
        assert isinstance(submit(scheduler, "b", ctx=101, prompt_tokens=11)[0], Admitted)

    def test_an_embedding_has_no_answer_to_fit(self) -> None:
        effects = submit(
            ready_scheduler(), "e", workload=Workload.EMBEDDING, ctx=100, prompt_tokens=99
        )

        assert isinstance(effects[0], Admitted)

    def test_size_is_judged_before_readiness(self) -> None:
        scheduler = Scheduler()
        scheduler.step(PoolAdded(make_pool()), T0_MS)

        assert refused(scheduler, ctx=9000).code is Code.INVALID_PARAMS


class TestRates:
    @pytest.mark.req("ORCH-3006")
    def test_a_client_above_its_rate_is_refused_with_the_time_to_wait(self) -> None:
        scheduler = ready_scheduler(make_pool(rate_limit_rps=2))

        admitted = [submit(scheduler, str(i), client_id="c")[0] for i in range(2)]
        refusal = refused(scheduler, client_id="c")

        assert all(isinstance(effect, Admitted) for effect in admitted)
        assert (refusal.code, refusal.reason) == (Code.ADMISSION_REJECT, Reason.RATE_LIMIT)
        assert (refusal.policy_label, refusal.retry_after_ms) == ("rate-limit", 500)
        assert refusal.retriable

    def test_clients_and_priorities_have_buckets_of_their_own(self) -> None:
        scheduler = ready_scheduler(make_pool(rate_limit_rps=1))

        effects = [
            submit(scheduler, "a", client_id="c")[0],
            submit(scheduler, "b", client_id="d")[0],
            submit(scheduler, "c", client_id="c", priority=BATCH)[0],
            submit(scheduler, "d", client_id="c", tenant="other")[0],
        ]

        assert all(isinstance(effect, Admitted) for effect in effects)

    @pytest.mark.req("ORCH-3077", partial="max_concurrent is tested with the scheduler")
    def test_a_tenant_above_its_quota_is_refused_over_all_its_clients(self) -> None:
        scheduler = ready_scheduler(make_pool(tenants=(TenantPolicy("acme", rps=1),)))
        submit(scheduler, "a", client_id="c")

        refusal = refused(scheduler, client_id="d", priority=BATCH)

        assert (refusal.code, refusal.reason) == (Code.ADMISSION_REJECT, Reason.QUOTA)
        assert (refusal.policy_label, refusal.retry_after_ms) == ("quota", 1000)
        assert isinstance(submit(scheduler, "b", tenant="other")[0], Admitted)

    def test_a_task_that_is_refused_later_on_costs_no_token(self) -> None:
        scheduler = ready_scheduler(make_pool(rate_limit_rps=1, interactive=0))
        submit(scheduler, "running", client_id="other")

        assert refused(scheduler, "full").reason is Reason.QUEUE_FULL
        assert refused(scheduler, "full").reason is Reason.QUEUE_FULL


class TestSessions:
    @pytest.mark.req("ORCH-3021", partial="a policy plugin that decides instead comes later")
    def test_the_ninth_turn_is_refused(self) -> None:
        scheduler = ready_scheduler()

        turns = [submit(scheduler, str(i), session_key="s")[0] for i in range(8)]
        refusal = refused(scheduler, session_key="s")

        assert all(isinstance(effect, Admitted) for effect in turns)
        assert (refusal.code, refusal.policy_label) == (Code.ADMISSION_REJECT, "session")
        assert refusal.pool_id == "p"

    @pytest.mark.req("OC-CORE-1021", "OC-CORE-1023")
    def test_prompt_and_max_tokens_are_reserved_and_the_rest_given_back(self) -> None:
        scheduler = ready_scheduler(limits=Limits(budget_tokens=150))

        def left() -> int | None:
            session = scheduler.session("s", T0_MS)
            return None if session is None else session.tokens_budget_remaining

        submit(scheduler, "a", session_key="s", prompt_tokens=10, max_tokens=90)
        reserved = left()
        refusal = refused(scheduler, session_key="s", prompt_tokens=10, max_tokens=41)
        scheduler.step(Finished("acme/a", 10, 20, 100, 200), T0_MS)

        assert reserved == 50
        assert (refusal.policy_label, refusal.retriable) == ("budget", False)
        assert left() == 120

    def test_a_waiting_task_that_is_cancelled_gives_everything_back(self) -> None:
        scheduler = ready_scheduler(limits=Limits(budget_tokens=500))
        submit(scheduler, "running")
        submit(scheduler, "waiting", session_key="s")

        scheduler.step(Cancel("acme/waiting"), T0_MS)

        session = scheduler.session("s", T0_MS)
        assert session is not None
        assert session.tokens_budget_remaining == 500

    def test_a_running_task_that_is_cancelled_pays_for_what_it_used(self) -> None:
        scheduler = ready_scheduler(limits=Limits(budget_tokens=500, budget_time_ms=5000))
        submit(scheduler, "a", session_key="s")

        scheduler.step(Cancel("acme/a", tokens_out=7), T0_MS + 300)

        session = scheduler.session("s", T0_MS)
        assert session is not None
        assert session.tokens_budget_remaining == 500 - 10 - 7
        assert session.time_budget_remaining_ms == 4700

    def test_a_refused_task_opens_no_session(self) -> None:
        scheduler = ready_scheduler(make_pool(interactive=0))
        submit(scheduler, "running")

        refused(scheduler, session_key="s")

        assert scheduler.session("s", T0_MS) is None


class TestDeadlines:
    @pytest.mark.req("ORCH-3079")
    def test_after_three_finished_tasks_an_infeasible_deadline_is_refused(self) -> None:
        scheduler = ready_scheduler()
        known_speed(scheduler)
        submit(scheduler, "running")

        # 1000 ms for the running one and 1000 ms of its own.
        refusal = refused(scheduler, deadline_at_ms=T0_MS + 1999)
        fits = submit(scheduler, "fits", deadline_at_ms=T0_MS + 2000)[0]

        assert (refusal.code, refusal.reason) == (Code.DEADLINE_UNMET, Reason.DEADLINE)
        assert (
            "deadline_ms: 1999 cannot be met; the earliest that can be promised is 2000"
            in refusal.message
        )
        assert (refusal.retriable, refusal.retry_after_ms) == (True, 1)
        assert isinstance(fits, Admitted)

    def test_a_deadline_shorter_than_the_task_itself_is_not_worth_a_retry(self) -> None:
        scheduler = ready_scheduler()
        known_speed(scheduler)

        refusal = refused(scheduler, deadline_at_ms=T0_MS + 400)

        assert (refusal.retriable, refusal.retry_after_ms) == (False, 600)

    def test_before_that_speed_is_not_judged(self) -> None:
        scheduler = ready_scheduler()
        known_speed(scheduler, tasks=2)

        assert isinstance(submit(scheduler, "a", deadline_at_ms=T0_MS + 1)[0], Admitted)

    def test_a_deadline_that_has_passed_is_refused_at_once(self) -> None:
        refusal = refused(ready_scheduler(), now_ms=T0_MS + 60_000)

        assert refusal.code is Code.DEADLINE_UNMET


class TestFullQueue:
    def full(self, policy: FullPolicy, **spec: Any) -> Scheduler:
        scheduler = ready_scheduler(make_pool(policy=policy, **(spec or {"capacity": 1})))
        submit(scheduler, "running")
        return scheduler

    @pytest.mark.req("ORCH-3004", "OC-CORE-1001", partial="the order")
    def test_capacity_counts_waiting_tasks_only(self) -> None:
        scheduler = self.full(FullPolicy.REJECT)

        assert isinstance(submit(scheduler, "waiting")[0], Admitted)
        assert refused(scheduler).reason is Reason.QUEUE_FULL

    def test_a_free_slot_needs_no_place_in_the_queue(self) -> None:
        scheduler = ready_scheduler(make_pool(capacity=0))

        assert [type(effect) for effect in submit(scheduler, "a")] == [Admitted, Dispatch]

    @pytest.mark.req("ORCH-3005", "OC-CORE-1002", partial="all but one rule of one policy")
    @pytest.mark.parametrize(
        ("policy", "code"),
        [
            (FullPolicy.REJECT, Code.ADMISSION_REJECT),
            (FullPolicy.SHED_LOW_PRIORITY, Code.ADMISSION_REJECT),
            (FullPolicy.DROP_LRU, Code.QUEUE_FULL_DROP_LRU),
        ],
    )
    def test_the_refusal_names_the_policy_and_when_to_come_back(
        self, policy: FullPolicy, code: Code
    ) -> None:
        scheduler = self.full(policy)
        submit(scheduler, "urgent")

        refusal = refused(scheduler, priority=BATCH)

        assert (refusal.code, refusal.policy_label) == (code, policy.value)
        assert (refusal.engine, refusal.pool_id, refusal.retriable) == ("llamacpp", "p", True)
        assert refusal.retry_after_ms is not None
        assert 1 <= refusal.retry_after_ms <= 60_000

    def test_the_time_to_come_back_is_when_the_running_task_should_end(self) -> None:
        scheduler = ready_scheduler(make_pool(capacity=0))
        known_speed(scheduler)
        submit(scheduler, "running")

        assert refused(scheduler, now_ms=T0_MS + 300).retry_after_ms == 700

    @pytest.mark.req("ORCH-3005", "OC-CORE-1002", partial="all but one rule of one policy")
    def test_drop_lru_ends_the_longest_waiting_before_it_admits_the_new_one(self) -> None:
        scheduler = self.full(FullPolicy.DROP_LRU, capacity=2)
        submit(scheduler, "old", priority=BATCH)
        submit(scheduler, "older-deadline", priority=BATCH, deadline_at_ms=T0_MS + 1000)

        ended, admitted = submit(scheduler, "new")

        assert isinstance(ended, Ended)
        assert ended.task_key == "acme/old"
        assert ended.refusal is not None
        assert ended.refusal.code is Code.QUEUE_FULL_DROP_LRU
        assert ended.refusal.policy_label == "drop-lru"
        assert isinstance(admitted, Admitted)
        assert admitted.task_key == "acme/new"

    @pytest.mark.req("ORCH-3005", "ORCH-3085", "OC-CORE-1002", partial="all but the core's part")
    def test_shedding_ends_lower_priorities_only(self) -> None:
        scheduler = self.full(FullPolicy.SHED_LOW_PRIORITY)
        submit(scheduler, "batch", priority=BATCH)

        ended, admitted = submit(scheduler, "urgent")

        assert isinstance(ended, Ended)
        assert ended.refusal is not None
        assert (ended.task_key, ended.refusal.code) == ("acme/batch", Code.ADMISSION_REJECT)
        assert (ended.refusal.policy_label, ended.refusal.reason) == (
            "shed-low-priority",
            Reason.SHED,
        )
        assert isinstance(admitted, Admitted)
        assert refused(scheduler, "second").policy_label == "shed-low-priority"


@pytest.mark.req("ORCH-3024", partial="bodies, which the service compares")
def test_the_same_task_twice_is_one_task() -> None:
    scheduler = ready_scheduler()
    submit(scheduler, "running")
    first = submit(scheduler, "twice")

    second = submit(scheduler, "twice")

    assert second == first
    assert scheduler.waiting_keys("p") == ("acme/twice",)


class TestPromise:
    @pytest.mark.req("ORCH-2001", partial="all but the numbers of the 202")
    def test_position_and_start_of_tasks_behind_a_busy_slot(self) -> None:
        scheduler = ready_scheduler()
        known_speed(scheduler)

        promises = [submit(scheduler, str(i))[0] for i in range(4)]

        assert promises == [
            Admitted("acme/0", "p", 0, 0, 0),
            Admitted("acme/1", "p", 0, 1000, 0),
            Admitted("acme/2", "p", 1, 2000, 0),
            Admitted("acme/3", "p", 2, 3000, 0),
        ]

    def test_a_queue_above_half_asks_clients_to_slow_down(self) -> None:
        scheduler = ready_scheduler(make_pool(capacity=4))
        known_speed(scheduler)

        hints = []
        for i in range(5):
            admitted = submit(scheduler, str(i))[0]
            assert isinstance(admitted, Admitted)
            hints.append(admitted.backoff_ms)

        # Half is two: one dispatch (in 1000 ms) brings three back to it, two bring four back.
        assert hints == [0, 0, 0, 1000, 2000]

    def test_of_very_many_slots_a_sample_stands_for_all(self) -> None:
        scheduler = ready_scheduler(
            make_pool(capacity=999, interactive=999), [make_replica(slots=500)]
        )
        known_speed(scheduler)
        for i in range(500):  # they end one after the other, 2 ms apart
            submit(scheduler, f"running{i}", T0_MS + 2 * i, deadline_at_ms=T0_MS + 10**7)

        starts = []
        for i in range(500):
            admitted = submit(scheduler, f"w{i}", T0_MS + 1000, deadline_at_ms=T0_MS + 10**7)[0]
            assert isinstance(admitted, Admitted)
            starts.append(admitted.predicted_start_ms)

        # The k-th to wait starts when the k-th running one ends, within a sample's width.
        assert all(abs(start_ms - 2 * k) <= 30 for k, start_ms in enumerate(starts))
        assert starts == sorted(starts)

    def test_a_promise_counts_from_the_moment_it_is_given(self) -> None:
        scheduler = ready_scheduler()
        known_speed(scheduler)
        submit(scheduler, "running")
        (admitted,) = scheduler.step(Submit(make_task("a")), T0_MS + 400)

        assert isinstance(admitted, Admitted)
        assert admitted.predicted_start_ms == 600
        assert scheduler.predicted_start_ms("acme/a", T0_MS + 900) == 100
