"""Drain, cordon and resume, on virtual time: who goes on, who ends, which engine stops."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

import pytest

from harness_kit.core_builders import make_pool
from harness_kit.service_clients import StreamClient, draft, end_event, started_event, token_events
from harness_kit.service_world import POOL, PROFILE, ServiceWorld, Setup, run_world
from orchestrator_core.pool import FullPolicy
from orchestrator_core.task import Determinism
from orchestratord.services.drafts import Draft
from orchestratord.services.drains import UnknownTarget
from orchestratord.services.jobs import Promise
from worker_adapters.mock.script import MockScript

ONE_SLOT = MockScript(slots_total=1, token_delay_ms=10)
TWO = Setup(
    engines={"r0": ONE_SLOT, "r1": ONE_SLOT},
    pool=make_pool(sampler_profile_version=PROFILE, policy=FullPolicy.REJECT),
)


async def running(world: ServiceWorld, of: Draft, for_s: float = 0.055) -> StreamClient:
    """A task that has run for a while (55 ms: it has shown five tokens), and its reader."""
    await world.admit(of)
    client = world.read(of)
    await world.advance(for_s)
    return client


def assert_undisturbed(client: StreamClient, promise: Promise | None, decode_ms: int) -> None:
    """The client has what a run without any drain would have given it, byte for byte."""
    assert promise is not None
    tokens = token_events(client.draft)
    end = end_event(len(tokens), decode_ms)
    assert client.raw == b"".join([started_event(promise), *tokens, end])


def drains(world: ServiceWorld) -> Mapping[str, float]:
    outcomes = ("idle", "deadline", "lifted")
    of = {"engine": "llamacpp", "pool_id": POOL}
    return {o: world.metric("drains_total", **of, outcome=o) for o in outcomes}


@pytest.mark.req("ORCH-2101", "OC-CTRL-2002", partial="all but HTTP and processes")
class TestDrain:
    def test_what_runs_ends_in_peace_and_then_the_engine_stops(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            of = draft(1, max_tokens=20)
            client = await running(world, of)

            world.life.drains.drain(POOL, 10_000, "r0")
            await world.settle()
            during = dict(world.host.states)
            await world.advance(1.0)

            assert during == {"r0": "Draining", "r1": "Ready"}
            assert world.host.states == {"r0": "Stopped", "r1": "Ready"}
            assert len(client.tokens) == 20
            assert drains(world) == {"idle": 1, "deadline": 0, "lifted": 0}

        run_world(scenario, TWO)

    def test_at_the_deadline_a_strict_stream_goes_on_elsewhere_byte_for_byte(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            of = draft(1, max_tokens=20)
            admitted = await world.admit(of)
            client = world.read(of)
            await world.advance(0.055)
            (job,) = world.life.jobs.live()
            first = job.replica_id

            world.life.drains.drain(POOL, 50, first)
            await world.advance(2.0)

            assert world.host.states[first] == "Stopped"
            end = client.terminal
            assert end is not None
            assert_undisturbed(client, admitted.promise, end.data["decode_ms"])
            assert drains(world) == {"idle": 0, "deadline": 1, "lifted": 0}

        run_world(scenario, TWO)

    def test_a_task_that_it_moves_was_planned_to_and_counts_as_no_lost_worker(self) -> None:
        of = {"engine": "llamacpp", "pool_id": POOL}

        async def scenario(world: ServiceWorld) -> None:
            client = await running(world, draft(1, max_tokens=20))
            (job,) = world.life.jobs.live()
            first = job.replica_id

            world.life.drains.drain(POOL, 50, first)
            await world.advance(2.0)

            outcomes = ("drained", "resumed", "lost", "mismatch")
            counts = [world.metric("failovers_total", **of, outcome=o) for o in outcomes]
            assert counts == [1, 0, 0, 0]
            assert world.metric("failover_recovery_ms_count", **of) == 0
            take_overs = world.life.dispatcher.take_overs
            assert [take_overs.of(POOL, name).failovers for name in ("r0", "r1")] == [0, 0]
            assert job.replica_id != first
            assert client.metrics[-1].data["failovers"] == 1  # it changed its replica

        logs = run_world(scenario, TWO)

        (moved,) = [line for line in logs if line["event"] == "task.drained"]
        assert moved["log_level"] == "info"
        assert not [line for line in logs if line["event"] == "task.worker_lost"]

    def test_without_another_replica_it_ends_retriable_and_says_why(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            strict = await running(world, draft(1, max_tokens=50))
            waiting = draft(2)
            await world.admit(waiting)
            waits = world.read(waiting)

            world.life.drains.drain(POOL, 100)
            await world.advance(1.0)

            ends = [client.terminal for client in (strict, waits)]
            assert [end.data["code"] for end in ends if end] == ["WORKER_RESET", "POOL_UNREADY"]
            assert all("drained" in end.data["message"] for end in ends if end)
            assert all(end.data["retriable"] and end.on_disk for end in ends if end)

        run_world(scenario)

    def test_a_best_effort_task_that_has_shown_tokens_ends_with_worker_reset(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            of = draft(1, max_tokens=50, determinism=Determinism.BEST_EFFORT)
            client = await running(world, of)
            (job,) = world.life.jobs.live()

            world.life.drains.drain(POOL, 20, job.replica_id)
            await world.advance(1.0)

            assert client.terminal is not None
            assert client.terminal.data["code"] == "WORKER_RESET"

        run_world(scenario, TWO)

    def test_a_drained_pool_admits_nothing_and_resumes_with_its_engines(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.life.drains.drain(POOL, 1000)
            await world.advance(1.0)
            refused = world.submit(draft(1))
            await world.settle()
            stopped = dict(world.host.states)

            world.life.drains.resume(POOL)
            await world.advance(1.0)
            admitted = await world.admit(draft(2))

            assert not refused.admitted
            assert stopped == {"r0": "Stopped", "r1": "Stopped"}
            assert world.host.states == {"r0": "Ready", "r1": "Ready"}
            assert admitted.admitted

        run_world(scenario, TWO)

    def test_a_drain_that_goes_on_is_lifted_and_nobody_notices(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            of = draft(1, max_tokens=20)
            client = await running(world, of)
            waiting = draft(2)
            await world.admit(waiting)

            world.life.drains.drain(POOL, 10_000)
            await world.advance(0.05)
            world.life.drains.resume(POOL)
            await world.advance(1.0)

            assert len(client.tokens) == 20
            assert len(world.read(waiting).tokens) == 4
            assert world.host.states == {"r0": "Ready"}
            assert drains(world) == {"idle": 0, "deadline": 0, "lifted": 1}

        run_world(scenario)

    def test_a_second_order_moves_the_deadline(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = await running(world, draft(1, max_tokens=400))

            world.life.drains.drain(POOL, 60_000)
            await world.advance(0.1)
            world.life.drains.drain(POOL, 100)
            await world.advance(0.5)

            assert client.terminal is not None
            assert drains(world)["deadline"] == 1

        run_world(scenario)

    def test_one_replica_of_a_drained_pool_can_be_resumed_alone(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.life.drains.drain(POOL, 1000)
            await world.advance(1.0)

            world.life.drains.resume(POOL, "r1")
            await world.advance(1.0)
            await world.admit(draft(1))
            world.life.drains.drain(POOL, 1000, "r0")  # it is drained already
            await world.advance(1.0)

            assert world.host.states == {"r0": "Stopped", "r1": "Ready"}
            assert drains(world)["idle"] == 1

        run_world(scenario, TWO)

    def test_unknown_targets_are_named(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            with pytest.raises(UnknownTarget, match="id: no such pool"):
                world.life.drains.drain("nope", 1000)
            with pytest.raises(UnknownTarget, match=r"replica_id: .* 'r9'"):
                world.life.drains.resume(POOL, "r9")

        run_world(scenario)

    def test_a_task_that_showed_nothing_yet_begins_anew_elsewhere(self) -> None:
        slow = MockScript(slots_total=1, token_delay_ms=10, prefill_delay_ms=500)
        other = MockScript(slots_total=1, token_delay_ms=10, engine_version="mock 2")
        setup = Setup(
            engines={"r0": slow, "r1": other},
            pool=make_pool(sampler_profile_version=PROFILE, same_engine_version=False),
        )

        async def scenario(world: ServiceWorld) -> None:
            world.life.drains.cordon(POOL, "r1")
            of = draft(1)
            client = await running(world, of)
            world.life.drains.resume(POOL, "r1")

            world.life.drains.drain(POOL, 100, "r0")
            await world.advance(1.0)

            # Another engine version is another set: a task that had shown a token could not go.
            assert client.terminal is not None
            assert (client.terminal.event, len(client.tokens)) == ("end", 4)
            starts = [r for r in world.disk_records() if type(r).__name__ == "TaskStarted"]
            assert len(starts) == 2

        run_world(scenario, setup)


@pytest.mark.req("ORCH-2101", partial="all but HTTP and processes")
class TestCordon:
    def test_a_cordoned_pool_keeps_what_it_has_and_takes_nothing_new(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = await running(world, draft(1, max_tokens=20))
            waiting = draft(2)
            await world.admit(waiting)

            world.life.drains.cordon(POOL)
            refused = world.submit(draft(3))
            await world.advance(1.0)
            waited = world.life.jobs.get(waiting.key)
            world.life.drains.resume(POOL)
            await world.advance(1.0)

            assert not refused.admitted
            assert client.terminal is not None
            assert client.terminal.event == "end"
            assert waited is not None
            assert len(world.read(waiting).tokens) == 4

        run_world(scenario)

    def test_the_time_that_a_drain_costs_does_not_count_as_run_time(self) -> None:
        setup = Setup(engines=TWO.engines, pool=TWO.pool, wall_ms=700)

        async def scenario(world: ServiceWorld) -> None:
            of = draft(1, max_tokens=50)  # 500 ms, and 300 ms were done before the drain
            client = await running(world, of, for_s=0.3)
            (job,) = world.life.jobs.live()

            world.life.drains.drain(POOL, 1, job.replica_id)
            await asyncio.sleep(1.5)

            assert client.terminal is not None
            assert client.terminal.event == "end"

        run_world(scenario, setup)
