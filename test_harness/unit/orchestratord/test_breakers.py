"""A slow engine, and what clients, log and core see of the pool's circuit breaker, in virtual time.

Five interactive tasks a second; their first token takes 20 ms, or two seconds on a bad day, and 900
are promised. The window is 40 s, the breaker opens after 5 s and closes after 10 s.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from harness_kit.service_clients import draft
from harness_kit.service_world import POOL, ServiceWorld, Setup, run_world
from orchestrator_core.admission.circuit_breaker import BreakerPolicy
from orchestrator_core.errors import Code, Refusal
from orchestrator_core.task import Priority
from orchestratord.services.slo import Objective
from worker_adapters.mock.script import MockScript

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH
SETUP = Setup(
    engines={"r0": MockScript(slots_total=64, token_delay_ms=20)},
    objectives=(Objective(INTERACTIVE, "first_token_p95_ms", 900),),
    slo_window_s=40,
    breaker=BreakerPolicy(open_after_ms=5_000, close_after_ms=10_000),
)
EVERY_S = 0.2
LIMIT_S = 120


class Traffic:
    """Interactive tasks at a constant pace, numbered from 1; batch tasks are asked for between."""

    def __init__(self, world: ServiceWorld) -> None:
        self.world = world
        self.number = 0

    def pace(self, token_ms: float) -> None:
        engine = self.world.engines["r0"]
        engine.script = replace(engine.script, token_delay_ms=token_ms)

    def ask(self, priority: Priority) -> Any:
        self.number += 1
        return self.world.submit(draft(self.number, priority=priority, max_tokens=1))

    async def go_on(self, seconds: float) -> None:
        """Everybody is admitted."""
        for _ in range(round(seconds / EVERY_S)):
            asked = self.ask(INTERACTIVE)
            await self.world.advance(EVERY_S)
            assert asked.admitted, asked.outcome

    async def until_shed(self, *priorities: Priority) -> float:
        """Go on until exactly these are refused; returns the seconds it took."""
        begun_s = self.world.now_s
        while self.world.life.breakers.shed(POOL) != priorities:
            assert self.world.now_s < begun_s + LIMIT_S, "the breaker does not move"
            self.ask(INTERACTIVE)
            await self.world.advance(EVERY_S)
        return self.world.now_s - begun_s

    async def answer(self, priority: Priority) -> Any:
        asked = self.ask(priority)
        await self.world.settle()
        return asked.outcome


def told(logs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """What the log says of objectives and breakers, and whom it is about."""
    lines = [line for line in logs if line["event"].startswith(("slo.", "breaker."))]
    return [(line["event"], line["priority"]) for line in lines]


@pytest.mark.req("ORCH-3040")
@pytest.mark.req("ORCH-3041", partial="measured; alerts are not built")
def test_a_slow_engine_costs_batch_work_its_admission_until_it_is_fast_again() -> None:
    async def scenario(world: ServiceWorld) -> None:
        traffic = Traffic(world)
        await traffic.go_on(10)

        traffic.pace(2_000)
        await traffic.until_shed(BATCH)
        refused = await traffic.answer(BATCH)
        admitted = await traffic.answer(INTERACTIVE)
        traffic.pace(20)
        closed_s = await traffic.until_shed()
        again = await traffic.answer(BATCH)

        assert isinstance(refused, Refusal)
        assert refused.code is Code.ADMISSION_REJECT
        assert (refused.policy_label, refused.retriable) == ("circuit-breaker", True)
        assert refused.retry_after_ms == pytest.approx(10_000, abs=300)
        words = refused.message.partition("for now: ")[2].replace(",", "").split()
        assert (words[0], words[-2:]) == ("interactive.first_token_p95_ms", ["goal", "900"])
        assert float(words[2]) == pytest.approx(2_000, rel=0.05)
        assert not isinstance(admitted, Refusal)
        assert not isinstance(again, Refusal)
        # The last slow one comes after 2 s, 2.5 s are recent, a look a second; then 10 s of calm.
        assert 10 <= closed_s <= 2 + 2.5 + 1 + 10
        # What it was opened for is no cause of the next time.
        assert world.life.breakers._causes == {}

    logs = run_world(scenario, SETUP)

    assert told(logs) == [
        ("slo.violated", "interactive"),
        ("breaker.opened", "batch"),
        ("slo.met", "interactive"),
        ("breaker.closed", "batch"),
    ]
    violated = next(line for line in logs if line["event"] == "slo.violated")
    assert (violated["objective"], violated["goal"]) == ("first_token_p95_ms", 900)
    assert violated["value"] == pytest.approx(2_000, rel=0.05)
    assert violated["met_ratio"] < 0.95
    assert violated["samples"] >= 20


@pytest.mark.req("ORCH-3040")
def test_an_old_violation_costs_the_next_priority_nothing() -> None:
    async def scenario(world: ServiceWorld) -> None:
        traffic = Traffic(world)
        traffic.pace(2_000)
        await traffic.until_shed(BATCH)

        traffic.pace(20)
        await world.advance(9.9)  # nobody asks: nothing says that it goes on
        silent = world.life.breakers.shed(POOL)
        admitted = await traffic.answer(INTERACTIVE)
        await world.advance(6)

        assert silent == (BATCH,)
        assert not isinstance(admitted, Refusal)
        assert world.life.breakers.shed(POOL) == ()

    run_world(scenario, SETUP)


@pytest.mark.req("ORCH-3040")
def test_a_violation_that_goes_on_costs_the_next_priority_too_and_it_is_tried_again() -> None:
    async def scenario(world: ServiceWorld) -> None:
        traffic = Traffic(world)
        traffic.pace(2_000)
        await traffic.until_shed(BATCH)

        await traffic.go_on(3)
        no_nearer = await traffic.answer(BATCH)
        next_s = 3 + await traffic.until_shed(INTERACTIVE, BATCH)
        refused = [await traffic.answer(priority) for priority in (INTERACTIVE, BATCH)]
        trial_s = await traffic.until_shed(BATCH)
        on_trial = await traffic.answer(INTERACTIVE)

        assert no_nearer.retry_after_ms == pytest.approx(10_000, abs=1_000)
        assert next_s == pytest.approx(5, abs=0.3)
        assert trial_s == pytest.approx(10, abs=0.3)
        assert [answer.policy_label for answer in refused] == ["circuit-breaker"] * 2
        assert refused[0].retry_after_ms == pytest.approx(10_000, abs=300)
        assert refused[1].retry_after_ms == pytest.approx(20_000, abs=300)
        assert not isinstance(on_trial, Refusal)

    run_world(scenario, SETUP)


@pytest.mark.req("ORCH-3040")
def test_a_breaker_that_is_off_refuses_nobody_and_the_violation_is_still_told() -> None:
    async def scenario(world: ServiceWorld) -> None:
        traffic = Traffic(world)
        traffic.pace(2_000)

        await traffic.go_on(30)

        assert not isinstance(await traffic.answer(BATCH), Refusal)

    logs = run_world(scenario, replace(SETUP, breaker=None))

    assert told(logs) == [("slo.violated", "interactive")]


@pytest.mark.req("ORCH-3040")
def test_a_restart_begins_with_a_closed_breaker() -> None:
    async def scenario(world: ServiceWorld) -> None:
        traffic = Traffic(world)
        traffic.pace(2_000)
        await traffic.until_shed(BATCH)

        world.crash()
        world.restart()

        assert not isinstance(await traffic.answer(BATCH), Refusal)

    run_world(scenario, SETUP)


@pytest.mark.req("ORCH-3041", partial="measured; alerts are not built")
def test_a_slot_that_is_kept_busy_gives_batch_tasks_what_it_can() -> None:
    async def scenario(world: ServiceWorld) -> None:
        for number in range(1, 201):
            await world.admit(draft(number, priority=BATCH, max_tokens=20))

        await world.advance(20)

        (measure,) = world.life.slo.measures([POOL])
        # A task is 20 tokens of 10 ms, and one more to its end.
        assert measure.value == pytest.approx(20 / 21, abs=0.03)
        assert measure.samples >= 20
        assert not measure.violated

    setup = Setup(
        engines={"r0": MockScript(slots_total=1, token_delay_ms=10)},
        objectives=(Objective(BATCH, "throughput_ratio", 0.8),),
        slo_window_s=20,
    )
    run_world(scenario, setup)
