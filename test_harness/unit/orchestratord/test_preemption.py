"""What clients, metrics, log lines and a restart see of preemption. A token takes 10 ms here, and
the end of an answer another 10.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from harness_kit.core_builders import make_pool
from harness_kit.service_clients import StreamClient, draft, end_event, started_event, token_events
from harness_kit.service_world import PROFILE, ServiceWorld, Setup, run_world
from orchestrator_core.pool import PreemptionMode, PreemptionPolicy
from orchestrator_core.task import Determinism, Priority
from orchestratord.services.drafts import Draft
from worker_adapters.mock.script import MockScript

TOKENS = 40


def setup_of(mode: PreemptionMode, **changes: Any) -> Setup:
    """One slot."""
    pool = make_pool(sampler_profile_version=PROFILE, preemption=PreemptionPolicy(mode))
    engines = {"r0": MockScript(slots_total=1, token_delay_ms=10)}
    return Setup(pool=pool, engines=engines, **changes)


HARD = setup_of(PreemptionMode.HARD)


def long(number: int, **changes: Any) -> Draft:
    return draft(number, **({"priority": Priority.BATCH, "max_tokens": TOKENS} | changes))


def urgent(number: int, **changes: Any) -> Draft:
    return draft(number, **({"max_tokens": 2, "deadline_ms": 250} | changes))


async def interrupted(world: ServiceWorld, of: Draft, after_s: float = 0.095) -> StreamClient:
    """`of` runs and is read; then task 2 comes, which has no time to wait for it."""
    await world.admit(of)
    client = world.read(of)
    await world.advance(after_s)
    await world.admit(urgent(2))
    return client


def fields(logs: Sequence[Mapping[str, Any]], event: str, of: Draft) -> list[Mapping[str, Any]]:
    return [line for line in logs if line["event"] == event and line["job_id"] == of.task_id]


@pytest.mark.req("ORCH-3086", "ORCH-3087")
@pytest.mark.req("ORCH-3094", partial="all but preempted")
def test_an_interrupted_task_pauses_and_goes_on_byte_for_byte() -> None:
    one = long(1)

    async def scenario(world: ServiceWorld) -> None:
        submission = await world.admit(one)
        client = world.read(one)
        await world.advance(0.095)
        before = len(client.tokens)

        await world.admit(urgent(2))
        other = world.read(urgent(2))
        told = client.metrics[-1].data
        counted = world.metric("preemptions_total", mode="hard", engine="llamacpp")
        resumed = world.metric("resumptions_total", engine="llamacpp")
        await world.advance(0.015)
        paused = len(client.tokens)
        await world.advance(1.0)

        assert (told["preempted"], told["resumable"]) == (True, True)
        assert (counted, resumed) == (1, 0)
        assert before == paused == 9
        assert other.terminal is not None
        assert other.terminal.at_s == pytest.approx(0.125, abs=0.001)
        assert submission.promise is not None
        whole = [started_event(submission.promise), *token_events(one), end_event(TOKENS, 400)]
        assert client.raw == b"".join(whole)
        flags = [frame.data["preempted"] for frame in client.metrics]
        assert flags[0] is False
        assert flags[1] is True
        assert flags[2:]
        assert not any(flags[2:])
        assert "resumable" not in client.metrics[-1].data
        assert client.metrics[-1].data["failovers"] == 0
        assert world.metric("resumptions_total", engine="llamacpp") == 1
        assert world.metric("preemptions_total", mode="hard", engine="llamacpp") == 1
        assert world.decodes == [one.task_id, urgent(2).task_id, one.task_id]

    logs = run_world(scenario, HARD)

    assert [line["preempted"] for line in fields(logs, "task.admitted", one)] == [False]
    assert [line["tokens_out"] for line in fields(logs, "task.preempted", one)] == [9]
    assert [line["tokens_out"] for line in fields(logs, "task.resumed", one)] == [9]
    assert [line["preempted"] for line in fields(logs, "task.ended", one)] == [True]
    assert [line["preempted"] for line in fields(logs, "task.ended", urgent(2))] == [False]


@pytest.mark.req("ORCH-3086")
def test_a_reader_that_comes_during_the_pause_is_told() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = long(1)
        await interrupted(world, one)

        late = world.read(one)

        assert len(late.tokens) == 9
        assert [frame.data["preempted"] for frame in late.metrics] == [True]

    run_world(scenario, HARD)


@pytest.mark.req("ORCH-3086")
@pytest.mark.req("ORCH-2002", partial="all but one property of a stream")
def test_a_long_pause_shows_signs_of_life() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = long(1)
        client = await interrupted(world, one)
        world.kill("r0")
        await world.advance(20.0)
        signs = len(client.comments_at_s)

        world.revive("r0")
        await world.advance(5.0)

        assert signs == 1
        assert [frame.raw for frame in client.tokens] == token_events(one)

    run_world(scenario, HARD)


@pytest.mark.req("ORCH-3086")
@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
@pytest.mark.parametrize(
    ("pause_s", "first"), [(0.0, urgent(2)), (0.04, long(1))], ids=["in the pause", "resumed again"]
)
def test_after_a_crash_it_comes_before_its_class_and_goes_on_byte_for_byte(
    pause_s: float, first: Draft
) -> None:
    async def scenario(world: ServiceWorld) -> None:
        one, waiting = long(1), long(3)
        client = await interrupted(world, one)
        await world.admit(waiting)
        await world.advance(pause_s)

        world.crash()
        world.restart()
        order = world.life.scheduling.scheduler.waiting_keys("p")
        running = world.life.scheduling.scheduler.running("p")
        client.connect()
        await world.advance(2.0)

        assert running == (first.key,)
        assert order[-1] == waiting.key
        assert [frame.raw for frame in client.tokens] == token_events(one)
        assert [frame.id for frame in client.numbered] == [*range(1, TOKENS + 3)]
        late = world.read(urgent(2))
        assert [frame.raw for frame in late.tokens] == token_events(urgent(2))

    run_world(scenario, HARD)


@pytest.mark.req("ORCH-3086")
@pytest.mark.req("ORCH-3016", partial="all but what is left out of the wall time")
def test_neither_the_pause_nor_the_work_done_again_counts_as_wall_time() -> None:
    async def scenario(world: ServiceWorld) -> None:
        client = await interrupted(world, long(1), after_s=0.3)  # 740 ms in all, 410 at a stretch

        await world.advance(2.0)

        assert client.terminal is not None
        assert client.terminal.event == "end"
        assert client.terminal.at_s == pytest.approx(0.74, abs=0.001)

    run_world(scenario, replace(HARD, wall_ms=600))


@pytest.mark.req("ORCH-3086")
def test_a_best_effort_task_whose_tokens_were_seen_keeps_its_slot() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = long(1, determinism=Determinism.BEST_EFFORT)
        client = await interrupted(world, one)
        running = world.life.scheduling.scheduler.running("p")

        await world.advance(1.0)

        assert running == (one.key,)
        assert client.terminal is not None
        assert client.terminal.event == "end"
        assert world.metric("preemptions_total", mode="hard", engine="llamacpp") == 0

    run_world(scenario, HARD)


@pytest.mark.req("ORCH-3086")
@pytest.mark.req("ORCH-3017", partial="all but the services' part")
def test_an_interrupted_task_can_be_cancelled() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = long(1)
        client = await interrupted(world, one)

        asked = world.cancel(one)
        await world.advance(1.0)

        assert asked.acknowledged
        assert client.terminal is not None
        assert client.terminal.data["canceled"] is True
        assert client.terminal.data["tokens_out"] == 9
        assert world.decodes.count(one.task_id) == 1

    run_world(scenario, HARD)


@pytest.mark.req("ORCH-3085", "ORCH-3087")
@pytest.mark.req("ORCH-3094", partial="all but preempted")
def test_a_waiting_task_that_makes_way_is_told_when_to_come_back() -> None:
    victim = long(7, max_tokens=100)

    async def scenario(world: ServiceWorld) -> None:
        for number in range(3):  # now the speed is known
            await world.admit(draft(number))
            await world.advance(0.05)
        await world.admit(draft(5))
        await world.admit(victim)
        await world.admit(draft(6, max_tokens=20))
        client = world.read(victim)
        await world.advance(0.055)  # 5 is over and 6 runs: the next turn is the victim's

        one = await world.admit(urgent(8, deadline_ms=400))

        await world.advance(0.5)
        assert client.terminal is not None
        assert client.terminal.on_disk
        assert client.terminal.event == "error"
        assert client.terminal.id == 2
        data = client.terminal.data
        assert (data["code"], data["policy_label"]) == ("ADMISSION_REJECT", "preempted")
        assert data["retriable"] is True
        assert data["retry_after_ms"] == 195  # what is left of 6
        assert one.promise is not None
        assert one.promise.predicted_start_ms == 195
        assert world.metric("preemptions_total", mode="soft", engine="llamacpp") == 1
        assert world.metric("resumptions_total", engine="llamacpp") == 0
        assert world.metric("tasks_rejected_total", engine="llamacpp", reason="preempted") == 1

    logs = run_world(scenario, setup_of(PreemptionMode.SOFT))

    (ended,) = fields(logs, "task.ended", victim)
    assert (ended["preempted"], ended["outcome"]) == (True, "dropped")
