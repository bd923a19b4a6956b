"""Quotas of a tenant: tokens per minute before the queue, KV bytes of what runs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness_kit.core_builders import (
    T0_MS,
    finished,
    make_pool,
    make_replica,
    ready_scheduler,
    submit,
)
from orchestrator_core.admission.tenant_quotas import TenantTokens, TokenBucket
from orchestrator_core.effects import Admitted, Dispatch, Effect, Rejected
from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.events import (
    Aborted,
    Cancel,
    Finished,
    PoolAdded,
    ReplicaLost,
    ReplicaReady,
    Tick,
    WorkerLost,
)
from orchestrator_core.pool import PoolSpec, ReplicaSpec, TenantPolicy
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Priority, Workload

BATCH = Priority.BATCH
MINUTE_MS = 60_000


class TestBucket:
    def test_it_holds_a_minute_s_worth_and_tells_to_the_millisecond_when_more_is_there(
        self,
    ) -> None:
        bucket = TokenBucket(600, T0_MS)  # 10 a second

        bucket.reserve(600, 600, T0_MS)

        assert bucket.wait_ms(1, 600, T0_MS) == 100
        assert bucket.wait_ms(5, 600, T0_MS + 99) == 401
        assert bucket.wait_ms(5, 600, T0_MS + 500) == 0
        assert bucket.wait_ms(600, 600, T0_MS + 10 * MINUTE_MS) == 0
        assert bucket.wait_ms(601, 600, T0_MS + 10 * MINUTE_MS) > 0

    def test_no_rounding_adds_up(self) -> None:
        bucket = TokenBucket(7, T0_MS)
        bucket.reserve(7, 7, T0_MS)

        for passed_ms in range(1, MINUTE_MS, 97):
            bucket.reserve(0, 7, T0_MS + passed_ms)

        assert bucket.wait_ms(7, 7, T0_MS + MINUTE_MS - 1) == 1
        assert bucket.wait_ms(7, 7, T0_MS + MINUTE_MS) == 0

    def test_what_was_not_used_comes_back_but_never_more_than_a_minute_s_worth(self) -> None:
        bucket = TokenBucket(600, T0_MS)
        bucket.reserve(400, 600, T0_MS)

        bucket.settle(400, 100)
        after = [bucket.wait_ms(tokens, 600, T0_MS) for tokens in (500, 501)]
        bucket.reserve(500, 600, T0_MS)
        bucket.settle(500, 0)
        bucket.settle(500, 0)

        assert after == [0, 100]
        assert bucket.wait_ms(600, 600, T0_MS) == 0
        bucket.reserve(600, 600, T0_MS)
        assert bucket.wait_ms(1, 600, T0_MS) == 100

    def test_what_was_used_beyond_the_reservation_is_owed(self) -> None:
        bucket = TokenBucket(600, T0_MS)
        bucket.reserve(600, 600, T0_MS)

        bucket.settle(600, 610)

        assert bucket.wait_ms(1, 600, T0_MS) == 1_100

    def test_a_clock_that_steps_back_neither_fills_nor_empties_it(self) -> None:
        bucket = TokenBucket(600, T0_MS)
        bucket.reserve(600, 600, T0_MS + MINUTE_MS)

        stepped_back = bucket.wait_ms(10, 600, T0_MS)
        bucket.reserve(0, 600, T0_MS)

        assert stepped_back == 1_000
        assert bucket.wait_ms(10, 600, T0_MS + 1_000) == 0

    def test_a_tenant_that_is_bounded_no_more_is_forgotten(self) -> None:
        tokens, policy = TenantTokens(), TenantPolicy("acme", tokens_per_minute=10)
        tokens.reserve(policy, 10, T0_MS)

        tokens.keep([policy])
        kept = tokens.wait_ms(policy, 1, T0_MS)
        tokens.keep([TenantPolicy("acme")])

        assert kept == 6_000
        assert len(tokens) == 0
        assert tokens.wait_ms(policy, 1, T0_MS) == 0


def refusal(effects: list[Effect]) -> Refusal:
    (rejected,) = effects
    assert isinstance(rejected, Rejected), rejected
    return rejected.refusal


def admitted(effects: list[Effect]) -> bool:
    return isinstance(effects[0], Admitted)


@pytest.mark.req("ORCH-3036", partial="concurrent jobs and memory")
class TestTokensPerMinute:
    """`make_task` may take 10 + 90 tokens."""

    def scheduler(self, per_minute: int = 200, **changes: Any) -> Scheduler:
        tenants = (TenantPolicy("acme", tokens_per_minute=per_minute),)
        return ready_scheduler(make_pool(tenants=tenants, **changes), [make_replica(slots=9)])

    def test_a_tenant_that_has_used_up_its_minute_is_told_when_to_come_back(self) -> None:
        scheduler = self.scheduler()
        submit(scheduler, "a")
        submit(scheduler, "b", priority=BATCH)

        refused = refusal(submit(scheduler, "c"))

        assert (refused.code, refused.reason) == (Code.ADMISSION_REJECT, Reason.QUOTA)
        assert (refused.policy_label, refused.pool_id) == ("quota", "p")
        assert "tokens_per_minute" in refused.message
        assert refused.retriable
        # 100 tokens at 200 a minute.
        assert refused.retry_after_ms == 30_000
        assert not admitted(submit(scheduler, "c", T0_MS + 29_999))
        assert admitted(submit(scheduler, "c", T0_MS + 30_000))

    def test_other_tenants_and_refused_tasks_take_nothing_of_it(self) -> None:
        scheduler = self.scheduler()
        for number in range(5):
            submit(scheduler, f"{number}", tenant="other")
        refusal(submit(scheduler, "large", max_tokens=191))
        refusal(submit(scheduler, "late", deadline_at_ms=T0_MS - 1))

        assert admitted(submit(scheduler, "a"))
        assert admitted(submit(scheduler, "b"))

    def test_a_task_of_more_than_a_minute_s_worth_is_never_admitted_and_told_so(self) -> None:
        refused = refusal(submit(self.scheduler(), "a", max_tokens=191))

        assert (refused.code, refused.policy_label) == (Code.ADMISSION_REJECT, "quota")
        assert not refused.retriable
        assert refused.retry_after_ms is None
        assert "tokens_per_minute" in refused.message
        assert "201" in refused.message
        assert "200" in refused.message

    def test_an_embedding_decodes_nothing(self) -> None:
        scheduler = self.scheduler(per_minute=20)

        both = [
            submit(scheduler, name, workload=Workload.EMBEDDING, max_tokens=90)
            for name in ("a", "b", "c")
        ]

        assert [admitted(each) for each in both] == [True, True, False]

    @pytest.mark.parametrize(
        ("ends", "used"),
        [
            (Finished("acme/a", 10, 20, 1, 1), 30),
            (Cancel("acme/a", 5), 15),
            (Aborted("acme/a", 7), 17),
            (WorkerLost("acme/a", resume=False, tokens_out=9), 19),
        ],
    )
    def test_what_a_task_did_not_use_comes_back_however_it_ends(self, ends: Any, used: int) -> None:
        scheduler = self.scheduler(per_minute=100)
        submit(scheduler, "a")

        scheduler.step(ends, T0_MS)

        left = 100 - used
        assert not admitted(submit(scheduler, "more", max_tokens=left - 10 + 1))
        assert admitted(submit(scheduler, "rest", max_tokens=left - 10))

    def test_a_task_that_never_ran_gives_back_all(self) -> None:
        tenants = (TenantPolicy("acme", tokens_per_minute=200),)
        scheduler = ready_scheduler(make_pool(tenants=tenants))
        submit(scheduler, "runs")
        submit(scheduler, "canceled")
        scheduler.step(Cancel("acme/canceled"), T0_MS)
        submit(scheduler, "late", deadline_at_ms=T0_MS + 5)
        scheduler.step(Tick(), T0_MS + 5)

        assert admitted(submit(scheduler, "again", T0_MS + 5))
        assert not admitted(submit(scheduler, "more", T0_MS + 5))

    def test_a_lost_worker_costs_nothing_twice(self) -> None:
        scheduler = self.scheduler(per_minute=200)
        submit(scheduler, "a")

        scheduler.step(WorkerLost("acme/a", resume=True), T0_MS)

        assert admitted(submit(scheduler, "b"))
        assert not admitted(submit(scheduler, "c"))

    def test_the_same_task_again_asks_for_nothing_new(self) -> None:
        scheduler = self.scheduler(per_minute=100)
        submit(scheduler, "a")

        assert admitted(submit(scheduler, "a"))

    def test_a_new_rate_holds_from_then_on(self) -> None:
        scheduler = self.scheduler(per_minute=100)
        submit(scheduler, "a")

        raised = make_pool(tenants=(TenantPolicy("acme", tokens_per_minute=6_000),))
        scheduler.step(PoolAdded(raised), T0_MS)

        assert refusal(submit(scheduler, "b")).retry_after_ms == 1_000


def kv_pool(kv_bytes: int, **changes: Any) -> PoolSpec:
    return make_pool(tenants=(TenantPolicy("acme", kv_bytes=kv_bytes),), **changes)


def kv_replica(name: str = "r0", slots: int = 9, bytes_per_token: int = 2) -> ReplicaSpec:
    return replace(make_replica(name, slots=slots), kv_bytes_per_token=bytes_per_token)


def dispatched(effects: Any) -> list[str]:
    return [e.task_key.partition("/")[2] for e in effects if isinstance(e, Dispatch)]


@pytest.mark.req("ORCH-3036", partial="concurrent jobs")
class TestKvBytes:
    """A token of context takes two bytes; acme may take 2000, which is a context of 1000."""

    def scheduler(self, kv_bytes: int = 2000, **changes: Any) -> Scheduler:
        return ready_scheduler(kv_pool(kv_bytes, **changes), [kv_replica()])

    def test_what_does_not_fit_beside_what_runs_waits_and_others_pass(self) -> None:
        scheduler = self.scheduler()

        first = submit(scheduler, "a", ctx=600)
        second = submit(scheduler, "b", ctx=401)
        other = submit(scheduler, "o", tenant="other", ctx=4000)
        after = scheduler.step(finished("acme/a"), T0_MS)

        assert [dispatched(each) for each in (first, second, other, after)] == [
            ["a"],
            [],
            ["o"],
            ["b"],
        ]

    def test_what_fits_exactly_runs(self) -> None:
        scheduler = self.scheduler()

        submit(scheduler, "a", ctx=600)

        assert dispatched(submit(scheduler, "b", ctx=400)) == ["b"]

    def test_a_task_that_alone_is_too_large_is_refused(self) -> None:
        refused = refusal(submit(self.scheduler(), "a", ctx=1001))

        assert (refused.code, refused.reason) == (Code.ADMISSION_REJECT, Reason.QUOTA)
        assert (refused.policy_label, refused.retriable) == ("quota", False)
        assert "kv_bytes" in refused.message
        assert "2002" in refused.message

    def test_without_known_bytes_per_token_it_has_no_effect(self) -> None:
        scheduler = ready_scheduler(kv_pool(1), [kv_replica(bytes_per_token=0)])

        assert dispatched(submit(scheduler, "a", ctx=4000)) == ["a"]
        assert dispatched(submit(scheduler, "b", ctx=4000)) == ["b"]

    def test_nobody_overtakes_within_a_tenant(self) -> None:
        scheduler = self.scheduler()
        submit(scheduler, "runs", ctx=600)
        submit(scheduler, "large", ctx=900)

        assert dispatched(submit(scheduler, "small", ctx=100)) == []
        assert dispatched(submit(scheduler, "less urgent", ctx=100, priority=BATCH)) == []
        # Then both classes go by their shares, and two of the three fit.
        assert dispatched(scheduler.step(finished("acme/runs"), T0_MS)) == ["large", "less urgent"]

    def test_what_is_more_urgent_does_not_wait_for_a_large_batch_task(self) -> None:
        scheduler = self.scheduler()
        submit(scheduler, "runs", ctx=600)
        submit(scheduler, "large", ctx=900, priority=BATCH)

        assert dispatched(submit(scheduler, "urgent", ctx=400)) == ["urgent"]
        assert dispatched(scheduler.step(finished("acme/runs"), T0_MS)) == []
        assert dispatched(scheduler.step(finished("acme/urgent"), T0_MS)) == ["large"]

    def test_an_earlier_deadline_that_fits_goes_at_once(self) -> None:
        scheduler = self.scheduler()
        submit(scheduler, "runs", ctx=600)
        submit(scheduler, "large", ctx=900)

        urgent = submit(scheduler, "urgent", ctx=400, deadline_at_ms=T0_MS + 30_000)

        assert dispatched(urgent) == ["urgent"]

    @pytest.mark.parametrize("how", ["cancel", "expire"])
    def test_when_the_large_one_leaves_the_queue_the_next_one_goes(self, how: str) -> None:
        scheduler = self.scheduler()
        submit(scheduler, "runs", ctx=600)
        submit(scheduler, "large", ctx=900, deadline_at_ms=T0_MS + 9)
        submit(scheduler, "small", ctx=100, priority=BATCH)

        event = Cancel("acme/large") if how == "cancel" else Tick()
        effects = scheduler.step(event, T0_MS + (0 if how == "cancel" else 9))

        assert dispatched(effects) == ["small"]

    def test_a_task_that_resumes_keeps_what_it_took(self) -> None:
        scheduler = ready_scheduler(kv_pool(2000), [kv_replica("r0", 1), kv_replica("r1", 1)])
        submit(scheduler, "a", ctx=600)
        on = "r0" if scheduler.leased("p", "r0") else "r1"
        scheduler.step(ReplicaLost("p", on), T0_MS)
        submit(scheduler, "b", ctx=500)

        moved = scheduler.step(WorkerLost("acme/a", resume=True), T0_MS)
        back = scheduler.step(ReplicaReady(kv_replica(on, 1)), T0_MS)
        after = scheduler.step(finished("acme/a"), T0_MS)

        assert [dispatched(each) for each in (moved, back, after)] == [["a"], [], ["b"]]

    def test_it_holds_as_soon_as_the_bytes_per_token_are_known(self) -> None:
        scheduler = ready_scheduler(kv_pool(2000), [kv_replica("r0", 2, bytes_per_token=0)])
        for name in ("a", "b", "c"):
            submit(scheduler, name, ctx=600)

        known = scheduler.step(ReplicaReady(kv_replica("r1", 2)), T0_MS)
        one_left = scheduler.step(finished("acme/a"), T0_MS)
        none_left = scheduler.step(finished("acme/b"), T0_MS)

        assert [dispatched(each) for each in (known, one_left, none_left)] == [[], [], ["c"]]

    def test_a_tenant_that_runs_nothing_is_never_held(self) -> None:
        scheduler = self.scheduler()
        submit(scheduler, "runs", ctx=600)
        submit(scheduler, "large", ctx=900)
        scheduler.step(PoolAdded(kv_pool(1000)), T0_MS)  # less than the waiting one needs

        assert dispatched(scheduler.step(finished("acme/runs"), T0_MS)) == ["large"]

    def test_a_raised_quota_lets_them_go(self) -> None:
        scheduler = self.scheduler()
        submit(scheduler, "runs", ctx=600)
        submit(scheduler, "large", ctx=900)

        assert dispatched(scheduler.step(PoolAdded(kv_pool(3000)), T0_MS)) == ["large"]
