"""What an operator is told of a task: a token takes 10 ms here, an end another 10."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import pytest

from harness_kit.core_builders import T0_MS, make_pool
from harness_kit.service_clients import draft
from harness_kit.service_world import PROFILE, ServiceWorld, Setup, run_world
from orchestrator_core.pool import (
    FullPolicy,
    PoolSpec,
    PreemptionMode,
    PreemptionPolicy,
    TenantPolicy,
)
from orchestrator_core.task import Priority
from orchestratord.services.drafts import Draft
from worker_adapters.mock.script import MockScript

Told = dict[str, Any]
Scenario = Callable[[ServiceWorld], Awaitable[None]]


def setup_of(*, replicas: int = 1, **pool: Any) -> Setup:
    """One slot a replica."""
    spec: PoolSpec = make_pool(sampler_profile_version=PROFILE, **pool)
    script = MockScript(slots_total=1, token_delay_ms=10)
    return Setup(pool=spec, engines={f"r{number}": script for number in range(replicas)})


def told(world: ServiceWorld, of: Draft) -> Told:
    found = world.life.explanations.explain(of.tenant, of.task_id)
    assert found is not None
    return found


def story(explanation: Told) -> list[tuple[str, str]]:
    return [(taken["decision"], taken["reason"]) for taken in explanation["decisions"]]


def values(explanation: Told, decision: str) -> Told:
    """Of the only decision of that kind."""
    (found,) = (taken for taken in explanation["decisions"] if taken["decision"] == decision)
    taken: Told = found["values"]
    return taken


async def learn_speed(world: ServiceWorld) -> None:
    """Three tasks run, one after the other; they end 150 ms after the start."""
    for number in range(91, 94):
        await world.admit(draft(number))
    await world.advance(0.15)


@pytest.mark.req("ORCH-3091", "ORCH-3094")
class TestOneTask:
    def test_placed_at_once(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            running = told(world, draft(1))
            await world.advance(1.0)
            ended = told(world, draft(1))

            assert story(running) == [("admitted", "free-slot"), ("dispatched", "free-slot")]
            assert (running["state"], running["replica_id"]) == ("running", "r0")
            assert "queue_position" not in running
            assert running["summary"].startswith("Runs on replica r0 of pool p since 0 ms")
            assert (
                "a slot was free when it came (load 0 % before it, score 0.25)"
                in (running["summary"])
            )
            assert story(ended) == [*story(running), ("ended", "completed")]
            assert [taken["at_ms"] for taken in ended["decisions"]] == [T0_MS, T0_MS, T0_MS + 50]
            assert ended["state"] == "ended"
            assert ended["summary"] == (
                "Completed with 4 tokens, 60 s before its deadline: 0 ms in the queue, "
                "40 ms from its first token to its end."
            )

        run_world(scenario, setup_of())

    def test_delayed(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.life.telemetry.pool_added(world.setup.pool, {})
            await learn_speed(world)
            for number in (1, 2, 3):
                await world.admit(draft(number, priority=Priority.BATCH))

            third = told(world, draft(3))

            assert story(third) == [("admitted", "queued")]
            assert (third["state"], third["queue_position"]) == ("waiting", 1)
            assert third["predicted_start_ms"] == 80  # two tasks of 40 ms each
            assert third["slack_ms"] == 60_000 - 120
            assert third["on_time_probability"] > 0.9
            # It alone has work; of the six tasks that have started, its flow had one.
            assert third["share"] == {"observed": pytest.approx(0.25, abs=0.01), "entitled": 1.0}
            assert third["summary"] == (
                "Waits in pool p behind 1 task; starts in about 80 ms. "
                "acme/batch got 25 % of the tokens lately, its weights promise 100 %."
            )
            admitted = values(third, "admitted")
            assert admitted["queue_position"] == 1
            assert admitted["predicted_start_ms"] == 80
            assert (admitted["weight"], admitted["tenant_weight"], admitted["pools"]) == (1, 1, 1)

        run_world(scenario, setup_of())

    def test_held_by_a_quota_of_its_own(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.admit(draft(2))

            held = told(world, draft(2))

            assert story(held) == [("admitted", "quota")]
            assert held["summary"].startswith(
                "Waits in pool p next in turn; tenant acme has all that its quotas allow there. "
            )

        run_world(scenario, setup_of(replicas=2, tenants=(TenantPolicy("acme", max_concurrent=1),)))

    def test_preempted(self) -> None:
        hard = PreemptionPolicy(PreemptionMode.HARD)
        long = draft(1, priority=Priority.BATCH, max_tokens=40)

        async def scenario(world: ServiceWorld) -> None:
            await world.admit(long)
            await world.advance(0.095)
            await world.admit(draft(2, max_tokens=2, deadline_ms=250))
            waiting = told(world, long)
            await world.advance(1.0)
            ended = told(world, long)

            assert waiting["state"] == "waiting"
            assert waiting["summary"].startswith(
                "Interrupted for a more urgent task after 95 ms and 9 tokens; "
            )
            assert story(ended) == [
                ("admitted", "free-slot"),
                ("dispatched", "free-slot"),
                ("preempted", "urgent"),
                ("resumed", "preempted"),
                ("ended", "completed"),
            ]
            assert values(ended, "preempted") == {
                "replica_id": "r0",
                "ran_ms": 95,
                "tokens_out": 9,
                "preemptions": 1,
            }
            assert values(ended, "resumed")["waited_ms"] == 30  # two tokens and an end
            assert "interrupted once" in ended["summary"]
            urgent = told(world, draft(2, max_tokens=2, deadline_ms=250))
            assert story(urgent)[:2] == [("admitted", "urgent"), ("dispatched", "urgent")]

        run_world(scenario, setup_of(preemption=hard))

    def test_shed(self) -> None:
        low = draft(2, priority=Priority.BATCH)

        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.admit(low)
            await world.advance(0.02)
            await world.admit(draft(3))

            shed = told(world, low)

            assert story(shed) == [("admitted", "queued"), ("evicted", "shed-low-priority")]
            assert shed["state"] == "ended"
            assert values(shed, "evicted")["for_priority"] == "interactive"
            assert values(shed, "evicted")["queue_time_ms"] == 20
            assert shed["summary"].startswith(
                "Taken out of the queue after 20 ms (shed-low-priority): the queue of pool p was "
            )
            assert "Worth another try in " in shed["summary"]

        run_world(scenario, setup_of(capacity=1, policy=FullPolicy.SHED_LOW_PRIORITY))

    def test_moved_to_another_replica(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.advance(0.025)
            world.kill("r0")
            await world.advance(1.0)

            ended = told(world, draft(1))

            assert story(ended)[1:] == [
                ("dispatched", "free-slot"),
                ("moved", "worker-lost"),
                ("resumed", "worker-lost"),
                ("ended", "completed"),
            ]
            assert values(ended, "moved")["from_replica_id"] == "r0"
            assert values(ended, "moved")["tokens_out"] == 2
            assert values(ended, "resumed")["replica_id"] == "r1"
            assert ended["replica_id"] == "r1"
            assert "moved to another replica once" in ended["summary"]

        run_world(scenario, setup_of(replicas=2))

    def test_waiting_for_a_replica_since_its_own_is_gone(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.advance(0.025)
            world.kill("r0")
            await world.settle()

            waiting = told(world, draft(1))

            assert waiting["state"] == "waiting"
            assert waiting["summary"].startswith("Its worker r0 is gone after 2 tokens (")
            assert "no replica takes work there at the moment" in waiting["summary"]

        run_world(scenario, setup_of())

    def test_canceled_while_it_waits(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.admit(draft(2))
            world.cancel(draft(2))
            await world.settle()

            ended = told(world, draft(2))

            assert story(ended) == [("admitted", "queued"), ("canceled", "client")]
            assert ended["summary"] == "Canceled after 0 tokens: 0 ms in the queue."

        run_world(scenario, setup_of())


@pytest.mark.req("ORCH-3091", partial="tasks that were admitted")
class TestRefusedTasks:
    def test_by_its_deadline(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await learn_speed(world)
            world.submit(draft(1, deadline_ms=20))
            await world.settle()

            refused = told(world, draft(1))

            assert (refused["state"], refused["priority"]) == ("refused", "interactive")
            assert story(refused) == [("refused", "deadline")]
            figures = values(refused, "refused")
            assert (figures["code"], figures["deadline_ms"]) == ("DEADLINE_UNMET", 20)
            assert (figures["earliest_ms"], figures["slack_ms"]) == (40, -20)
            assert refused["summary"] == (
                "Refused (deadline): deadline_ms: 20 cannot be met; the earliest that can be "
                "promised is 40. Worth another try in 20 ms."
            )

        run_world(scenario, setup_of())

    @pytest.mark.parametrize(
        ("pool", "reason"),
        [
            ({"rate_limit_rps": 0.01}, "rate-limit"),
            ({"tenants": (TenantPolicy("acme", rps=0.01),)}, "quota"),
        ],
    )
    def test_by_a_rate(self, pool: Told, reason: str) -> None:
        async def scenario(world: ServiceWorld) -> None:
            for number in range(8):  # beyond any burst of a bucket that hardly fills
                world.submit(draft(number))
            await world.settle()

            refused = told(world, draft(7))

            assert story(refused) == [("refused", reason)]
            assert values(refused, "refused")["limit_rps"] == 0.01
            assert "exceeds its 0.01 requests per second" in refused["summary"]

        run_world(scenario, setup_of(**pool))

    def test_what_it_was_refused_for_is_the_begin_of_its_story_once_it_is_admitted(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.admit(draft(2))
            world.submit(draft(3))
            world.submit(draft(3))
            await world.settle()
            before = told(world, draft(3))
            await world.advance(0.06)
            await world.admit(draft(3))

            after = told(world, draft(3))

            assert before["summary"].startswith("Refused (queue-full, 2 times by now): ")
            assert story(after) == [("refused", "queue-full")] * 2 + [("admitted", "queued")]

        run_world(scenario, setup_of(capacity=1))

    def test_nobody_else_hears_of_it(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            world.submit(draft(2, ctx=9000, max_tokens=8999))
            await world.settle()
            explanations = world.life.explanations

            assert explanations.explain("acme", draft(2).task_id) is not None
            for number in (1, 2):
                assert explanations.explain("zeta", draft(number).task_id) is None
            assert explanations.explain("acme", draft(3).task_id) is None

        run_world(scenario, setup_of())


@pytest.mark.req("ORCH-3091", partial="a life without a restart")
class TestAfterARestart:
    def test_a_waiting_task_has_its_promise(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            for number in (1, 2, 3):
                await world.admit(draft(number))
            world.crash()
            world.restart()
            await world.settle()

            third = told(world, draft(3))

            assert story(third) == [("admitted", "recovered")]
            assert values(third, "admitted")["queue_position"] == 1
            assert third["queue_position"] == 1
            assert third["summary"].endswith(
                "The service restarted since it was admitted: of before only its promise is known."
            )
            first = told(world, draft(1))
            assert story(first) == [("admitted", "recovered"), ("resumed", "recovered")]

        run_world(scenario, setup_of())

    @pytest.mark.parametrize("canceled", [False, True])
    def test_an_ended_task_has_its_end(self, canceled: bool) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.advance(0.015)
            if canceled:
                world.cancel(draft(1))
            await world.advance(1.0)
            world.crash()
            world.restart()

            ended = told(world, draft(1))

            end = ("canceled", "client") if canceled else ("ended", "completed")
            assert story(ended) == [("admitted", "recovered"), end]
            assert values(ended, end[0])["tokens_out"] == (1 if canceled else 4)
            assert "queue_time_ms" not in values(ended, end[0])

        run_world(scenario, setup_of())

    def test_a_failed_task_has_its_cause(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.admit(draft(2, deadline_ms=20))
            await world.advance(1.0)
            end = story(told(world, draft(2, deadline_ms=20)))[-1]
            world.crash()
            world.restart()

            late = told(world, draft(2, deadline_ms=20))

            assert story(late) == [("admitted", "recovered"), end]
            assert end == ("evicted", "deadline")
            assert values(late, "evicted")["code"] == "DEADLINE_UNMET"

        run_world(scenario, replace(setup_of(), idle_ms=1000))


@pytest.mark.req(
    "ORCH-3027",
    partial="its other fields",
)
def test_each_decision_is_one_log_line_with_the_same_values() -> None:
    kept: list[Told] = []

    async def scenario(world: ServiceWorld) -> None:
        await world.admit(draft(1))
        await world.admit(draft(2))
        await world.advance(1.0)
        kept.extend(told(world, draft(2))["decisions"])

    logs = run_world(scenario, setup_of())

    lines = [line for line in logs if line.get("job_id") == draft(2).task_id]
    assert [line["event"] for line in lines] == ["task.admitted", "task.dispatched", "task.ended"]
    assert [taken["decision"] for taken in kept] == ["admitted", "dispatched", "ended"]
    for line, taken in zip(lines, kept, strict=True):
        assert taken["values"].items() <= line.items()
        assert line["reason"] == taken["reason"]
        assert (line["tenant_id"], line["correlation_id"]) == ("acme", draft(2).correlation_id)
    assert lines[1]["reason"] == "fair-turn"
    assert lines[1]["waited_ms"] == 50
    assert lines[1]["share_observed"] == 1.0
