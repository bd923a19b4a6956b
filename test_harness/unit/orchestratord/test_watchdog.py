"""Tasks that take too long or say nothing end, alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness_kit.service_clients import StreamClient, draft, token_events
from harness_kit.service_world import POOL, ServiceWorld, Setup, run_world
from orchestratord.services.watchdog import PERIOD_S
from worker_adapters.mock.script import Misbehaviour, MockFault, MockScript

SLOW = MockScript(slots_total=2, token_delay_ms=100)
SETUP = Setup(engines={"r0": SLOW}, wall_ms=3_000, idle_ms=1_000)


def timed_out(client: StreamClient, limit: str) -> None:
    assert client.terminal is not None
    assert client.terminal.data["code"] == "DECODE_TIMEOUT"
    assert limit in client.terminal.data["message"]
    assert client.terminal.data["retriable"] is True
    assert client.terminal.on_disk


@pytest.mark.req("ORCH-3016")
def test_a_task_that_runs_too_long_ends_however_steadily_it_goes() -> None:
    async def scenario(world: ServiceWorld) -> None:
        await world.admit(draft(1, max_tokens=100))
        client = world.read(draft(1, max_tokens=100))
        await world.advance(2.95)
        assert client.terminal is None

        await world.advance(0.1 + PERIOD_S)

        timed_out(client, "timeouts.wall_ms 3000")
        assert 29 <= len(client.tokens) <= 33
        assert world.engines["r0"].running_count == 0
        assert world.life.scheduling.scheduler.running(POOL) == ()

    run_world(scenario, SETUP)


@pytest.mark.req("ORCH-3016")
def test_a_task_without_tokens_ends_after_the_idle_time() -> None:
    async def scenario(world: ServiceWorld) -> None:
        world.engines["r0"].inject(MockFault(Misbehaviour.SILENT, 2))
        await world.admit(draft(1))
        client = world.read(draft(1))
        await world.advance(1.15)  # the second token came at 0.2 s
        assert client.terminal is None

        await world.advance(0.1 + PERIOD_S)

        timed_out(client, "timeouts.idle_ms 1000")
        assert len(client.tokens) == 2
        assert world.engines["r0"].running_count == 0

    run_world(scenario, SETUP)


@pytest.mark.req("ORCH-3016")
def test_it_ends_alone_its_replica_and_its_neighbours_go_on() -> None:
    async def scenario(world: ServiceWorld) -> None:
        world.engines["r0"].inject(MockFault(Misbehaviour.SILENT, 1))
        await world.admit(draft(1))
        neighbour = draft(2, max_tokens=25)
        await world.admit(neighbour)
        client = world.read(neighbour)
        await world.advance(2.8)

        assert [frame.raw for frame in client.tokens] == token_events(neighbour)
        assert world.life.replicas.get(POOL, "r0") is not None
        assert world.decodes == [draft(1).task_id, neighbour.task_id]

    run_world(scenario, SETUP)


@pytest.mark.req("ORCH-3016")
def test_reading_a_long_prompt_is_no_idleness() -> None:
    prompt = "word " * 20

    async def scenario(world: ServiceWorld) -> None:
        one = draft(1, prompt=prompt)
        await world.admit(one)
        client = world.read(one)
        await world.advance(3.0)

        assert client.terminal is not None
        assert client.terminal.event == "end"

    # Five batches of 0.4 s: twice the idle time before the first token.
    script = replace(SLOW, prefill_batch_tokens=4, prefill_delay_ms=400)
    run_world(scenario, replace(SETUP, engines={"r0": script}))


@pytest.mark.req("ORCH-3016")
def test_the_wall_time_goes_on_over_a_failover_and_the_idle_time_starts_anew() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1, max_tokens=100)
        await world.admit(one)
        client = world.read(one)
        await world.advance(1.95)
        world.kill("r0")
        world.revive("r0")
        await world.advance(0.9)
        assert client.terminal is None
        assert len(world.decodes) == 2

        await world.advance(0.5)

        timed_out(client, "timeouts.wall_ms 3000")

    run_world(scenario, SETUP)


@pytest.mark.req("ORCH-3079", partial="order and refusal")
def test_a_waiting_task_ends_at_its_deadline_and_not_by_the_watchdogs_times() -> None:
    async def scenario(world: ServiceWorld) -> None:
        for number in (1, 2):
            await world.admit(draft(number, max_tokens=100))
        one = draft(3, deadline_ms=1_500)
        await world.admit(one)
        client = world.read(one)
        await world.advance(1.4)
        assert client.frames == []

        await world.advance(0.1 + PERIOD_S)

        assert [frame.id for frame in client.frames] == [2]
        assert client.frames[0].data["code"] == "DEADLINE_UNMET"

    run_world(scenario, SETUP)


@pytest.mark.req("ORCH-3016")
def test_a_task_that_ends_in_time_hears_nothing_of_it() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1, max_tokens=29)
        await world.admit(one)
        client = world.read(one)
        await world.advance(10.0)

        assert client.terminal is not None
        assert client.terminal.event == "end"

    run_world(scenario, SETUP)


@pytest.mark.req("ORCH-3203", partial="all but the journal")
def test_a_journal_that_failed_is_tried_until_it_takes_records_again() -> None:
    async def scenario(world: ServiceWorld) -> None:
        world.life.journal.fail("disk full")
        await world.advance(2.0)
        assert world.life.journal.failing

        world.life.journal.fail(None)
        await world.advance(2.0)

        assert not world.life.journal.failing
        assert world.disk.rows == {}

    run_world(scenario, SETUP)


@pytest.mark.req("ORCH-3016")
@pytest.mark.parametrize("step_ms", [3_600_000, -3_600_000])
def test_a_step_of_the_wall_clock_neither_ends_nor_excuses_a_task(step_ms: int) -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1, max_tokens=100)
        await world.admit(one)
        client = world.read(one)
        await world.advance(1.0)

        world.clock_step_ms = step_ms
        await world.advance(1.9)
        assert client.terminal is None
        await world.advance(0.2 + PERIOD_S)

        timed_out(client, "timeouts.wall_ms 3000")

    run_world(scenario, SETUP)
