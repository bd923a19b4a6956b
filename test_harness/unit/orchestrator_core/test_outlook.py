"""Why a task got its slot, and how one stands. Speed is known as 10 ms a token: a `make_task` takes
a second.
"""

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
from orchestrator_core.effects import Ended, Rejected
from orchestrator_core.events import Tick, WorkerLost
from orchestrator_core.outlook import Grounds
from orchestrator_core.pool import (
    FullPolicy,
    PoolSpec,
    PreemptionMode,
    PreemptionPolicy,
    ReplicaSpec,
    TenantPolicy,
)
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Determinism, Priority

SESSION = "acme/kept"
PREFIXES = make_pool(prefix_reuse=frozenset({Determinism.STRICT}))


def fast_scheduler(spec: PoolSpec | None = None, *replicas: ReplicaSpec) -> Scheduler:
    """Three tasks have shown the speed, each in the session `SESSION`."""
    scheduler = ready_scheduler(spec, replicas)
    for number in range(3):
        submit(scheduler, f"past{number}", session_key=SESSION)
        scheduler.step(finished(f"acme/past{number}"), T0_MS)
    return scheduler


def grounds_of(scheduler: Scheduler, name: str) -> Grounds:
    found = scheduler.grounds(f"acme/{name}")
    assert found is not None
    return found


@pytest.mark.req("ORCH-3091")
class TestGrounds:
    def test_a_slot_that_nobody_waited_for(self) -> None:
        scheduler = fast_scheduler(None, make_replica(slots=4))
        submit(scheduler, "first")

        submit(scheduler, "a")

        # One of four slots was leased: three quarters of the way to a half of the lower half.
        assert grounds_of(scheduler, "a") == Grounds(
            "free-slot", 0.1875, 0.25, False, 0.0, None, 59_000
        )

    def test_the_last_replica_of_its_session_scores_in_the_upper_half(self) -> None:
        scheduler = fast_scheduler()

        submit(scheduler, "a", session_key=SESSION)

        found = grounds_of(scheduler, "a")
        assert (found.affinity, found.load_ratio, found.score) == (True, 0.0, 0.75)

    def test_a_turn_after_a_wait_leaves_less_time(self) -> None:
        scheduler = fast_scheduler()
        submit(scheduler, "first")
        submit(scheduler, "a")
        before = scheduler.grounds("acme/a")

        scheduler.step(finished("acme/first"), T0_MS + 700)

        assert before is None
        assert grounds_of(scheduler, "a").why == "fair-turn"
        assert grounds_of(scheduler, "a").slack_ms == 60_000 - 700 - 1000

    def test_slack_is_unknown_while_speed_is(self) -> None:
        scheduler = ready_scheduler()

        submit(scheduler, "a")

        assert grounds_of(scheduler, "a").slack_ms is None

    def test_an_urgent_task_goes_before_its_turn_and_the_other_resumes(self) -> None:
        hard = make_pool(preemption=PreemptionPolicy(PreemptionMode.HARD))
        scheduler = fast_scheduler(hard)
        submit(scheduler, "long", priority=Priority.BATCH, cost_tokens=1000, max_tokens=990)
        now_ms = T0_MS + 1000

        submit(scheduler, "u", now_ms, arrived_ms=now_ms, deadline_at_ms=T0_MS + 2500)
        why = grounds_of(scheduler, "u").why
        scheduler.step(finished("acme/u"), T0_MS + 2000)

        assert why == "urgent"
        assert grounds_of(scheduler, "long").why == "resume"

    def test_a_task_whose_worker_was_lost_resumes_elsewhere(self) -> None:
        scheduler = fast_scheduler(None, make_replica("r0"), make_replica("r1"))
        submit(scheduler, "a")

        scheduler.step(WorkerLost("acme/a", resume=True), T0_MS + 100)

        assert grounds_of(scheduler, "a").why == "resume"

    def test_a_known_prefix_is_told_as_the_share_that_it_saves(self) -> None:
        scheduler = fast_scheduler(PREFIXES)
        blocks = tuple(range(8))
        prompt: dict[str, Any] = {"prefix_blocks": blocks, "prompt_tokens": 512}
        submit(scheduler, "before", **prompt, cost_tokens=1024)
        scheduler.step(finished("acme/before"), T0_MS)

        submit(scheduler, "a", **prompt, cost_tokens=1024)

        # Reading costs what writing does here: half of the tokens are the prompt's.
        assert grounds_of(scheduler, "a").saved_ratio == pytest.approx(0.5, abs=0.01)

    def test_neighbours_of_its_tenant_are_told_where_they_are_spread(self) -> None:
        nodes = [
            replace(make_replica(f"r{number}", slots=4), labels=(("node", node),))
            for number, node in enumerate("ab")
        ]
        scheduler = fast_scheduler(make_pool(anti_affinity=("node",)), *nodes)
        for name in ("one", "two", "three"):
            submit(scheduler, name)

        found = [grounds_of(scheduler, name).tenant_tasks for name in ("one", "two", "three")]

        assert found == [0, 0, 1]

    def test_nobody_has_grounds_who_never_had_a_slot(self) -> None:
        assert fast_scheduler().grounds("acme/nobody") is None


@pytest.mark.req("ORCH-3094", partial="the log lines")
class TestOutlook:
    def test_of_a_task_that_waits(self) -> None:
        scheduler = fast_scheduler()
        for name in ("running", "before", "a"):
            submit(scheduler, name)

        found = scheduler.outlook("acme/a", T0_MS + 400)

        assert found is not None
        assert (found.position, found.start_ms, found.service_ms) == (1, 600 + 1000, 1000)
        assert found.slack_ms == 60_000 - 400 - 1600 - 1000
        assert (found.held, found.serving) == (False, 1)
        assert found.on_time_probability == scheduler.on_time_probability("acme/a", T0_MS + 400)

    def test_of_a_task_that_runs(self) -> None:
        scheduler = fast_scheduler()
        submit(scheduler, "a", deadline_at_ms=T0_MS + 1500)

        found = scheduler.outlook("acme/a", T0_MS + 400)

        assert found is not None
        assert (found.position, found.start_ms, found.service_ms) == (0, 0, 1000)
        assert found.slack_ms == 500  # its end does not move as time passes

    def test_a_quota_of_its_own_tenant_holds_it_beside_a_free_slot(self) -> None:
        quotas = (TenantPolicy("acme", max_concurrent=1),)
        scheduler = fast_scheduler(make_pool(tenants=quotas), make_replica(slots=2))
        submit(scheduler, "running")
        submit(scheduler, "a")

        held = scheduler.outlook("acme/a", T0_MS)

        assert held is not None
        assert held.held

    def test_nothing_is_promised_while_speed_is_unknown(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")
        submit(scheduler, "a")

        found = scheduler.outlook("acme/a", T0_MS)

        assert found is not None
        assert (found.position, found.service_ms, found.slack_ms) == (0, None, None)

    def test_nobody_else_has_one(self) -> None:
        assert fast_scheduler().outlook("acme/past0", T0_MS) is None


@pytest.mark.req("ORCH-3014", "ORCH-3091", partial="its values")
class TestFiguresOfARefusal:
    def test_a_deadline_that_cannot_be_met(self) -> None:
        scheduler = fast_scheduler()
        submit(scheduler, "running")

        (refused,) = submit(scheduler, "a", T0_MS + 400, deadline_at_ms=T0_MS + 500)

        assert isinstance(refused, Rejected)
        # 600 ms until the slot is free and a second of work, of which 100 ms are given.
        assert dict(refused.refusal.figures) == {
            "deadline_ms": 500,
            "earliest_ms": 2000,
            "predicted_start_ms": 600,
            "service_ms": 1000,
            "slack_ms": -1500,
        }

    def test_a_rate(self) -> None:
        scheduler = fast_scheduler(make_pool(rate_limit_rps=0.5))
        refusals = [e for e in submit(scheduler, "a") if isinstance(e, Rejected)]

        figures = dict(refusals[0].refusal.figures)

        assert figures == {"limit_rps": 0.5, "wait_ms": refusals[0].refusal.retry_after_ms}

    def test_a_full_queue(self) -> None:
        scheduler = fast_scheduler(make_pool(capacity=2, interactive=1))
        submit(scheduler, "running")
        submit(scheduler, "waiting")

        (refused,) = submit(scheduler, "a")

        assert isinstance(refused, Rejected)
        assert dict(refused.refusal.figures) == {
            "waiting": 1,
            "queue_capacity": 2,
            "class_waiting": 1,
            "class_capacity": 1,
        }

    def test_a_context_that_is_too_long(self) -> None:
        (refused,) = submit(fast_scheduler(), "a", ctx=9000)

        assert isinstance(refused, Rejected)
        assert dict(refused.refusal.figures) == {
            "ctx": 9000,
            "ctx_offered": 8192,
            "prompt_tokens": 10,
            "max_tokens": 90,
        }

    def test_a_task_that_makes_room_learns_for_whom_and_how_full_it_was(self) -> None:
        pool = make_pool(capacity=1, policy=FullPolicy.SHED_LOW_PRIORITY)
        scheduler = fast_scheduler(pool)
        submit(scheduler, "running")
        submit(scheduler, "low", priority=Priority.BATCH)

        effects = submit(scheduler, "a")

        (shed,) = [e for e in effects if isinstance(e, Ended)]
        assert shed.refusal is not None
        assert dict(shed.refusal.figures) == {
            "waiting": 1,
            "queue_capacity": 1,
            "for_priority": "interactive",
        }

    def test_one_past_its_deadline_needs_none(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "running")
        submit(scheduler, "a", deadline_at_ms=T0_MS + 10)

        (late,) = scheduler.step(Tick(), T0_MS + 11)

        assert isinstance(late, Ended)
        assert late.refusal is not None
        assert late.refusal.figures == ()
