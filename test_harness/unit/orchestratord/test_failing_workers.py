"""Workers that fail tasks: who is tried again, who is given up, and who is taken out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from harness_kit.service_clients import draft, token_events
from harness_kit.service_world import POOL, ServiceWorld, Setup, run_world
from orchestrator_core.task import Determinism
from orchestratord.services.dispatch import MAX_ATTEMPTS
from orchestratord.services.drafts import Draft
from worker_adapters.adapter_api.types import EngineFault, Health
from worker_adapters.mock.script import Misbehaviour, MockFault, MockScript

SCRIPT = MockScript(slots_total=1, token_delay_ms=10)
PAIR = Setup(engines={"r0": SCRIPT, "r1": SCRIPT})


def best_effort(number: int, **changes: Any) -> Draft:
    return draft(number, determinism=Determinism.BEST_EFFORT, **changes)


@pytest.mark.req("ORCH-3201", partial="all but one case of a failover")
def test_a_task_that_breaks_worker_after_worker_is_given_up() -> None:
    async def scenario(world: ServiceWorld) -> None:
        poison = draft(1)
        for engine in world.engines.values():
            engine.inject(*[MockFault(Misbehaviour.DIE, 1)] * MAX_ATTEMPTS)
        await world.admit(poison)
        client = world.read(poison)

        await world.advance(10.0)

        assert len(world.decodes) == MAX_ATTEMPTS
        assert client.terminal is not None
        assert client.terminal.data["code"] == "WORKER_RESET"
        assert len(client.tokens) == 1

    run_world(scenario, PAIR)


@pytest.mark.req("ORCH-3201", partial="all but one case of a failover")
def test_a_task_that_gets_further_with_each_worker_is_a_victim_and_goes_on() -> None:
    async def scenario(world: ServiceWorld) -> None:
        victim = draft(1, max_tokens=8)
        for engine in world.engines.values():
            engine.inject(*[MockFault(Misbehaviour.DIE, tokens) for tokens in range(1, 6)])
        await world.admit(victim)
        client = world.read(victim)

        await world.advance(20.0)

        assert len(world.decodes) > MAX_ATTEMPTS + 1
        assert client.terminal is not None
        assert client.terminal.event == "end"
        assert len(client.tokens) == 8

    run_world(scenario, PAIR)


@pytest.mark.req("ORCH-3010", partial="all but how a replica becomes unready")
def test_a_broken_connection_takes_the_replica_out_until_it_was_probed() -> None:
    async def scenario(world: ServiceWorld) -> None:
        world.engines["r0"].inject(MockFault(Misbehaviour.DIE, 1))
        await world.admit(draft(1))
        await world.advance(0.025)
        assert world.life.replicas.get(POOL, "r0") is None

        await world.advance(0.6)
        assert world.life.replicas.get(POOL, "r0") is not None

    run_world(scenario)


def test_a_garbled_answer_is_decoded_again_but_the_replica_stays_in_service() -> None:
    async def scenario(world: ServiceWorld) -> None:
        world.engines["r0"].inject(MockFault(Misbehaviour.GARBLE, 2))
        one = draft(1)
        await world.admit(one)
        client = world.read(one)

        await world.advance(0.2)

        assert world.life.replicas.get(POOL, "r0") is not None
        assert [f.raw for f in client.tokens] == token_events(one)

    run_world(scenario)


@pytest.mark.req("ORCH-3010")
@pytest.mark.parametrize(
    "fault",
    [EngineFault.INTERNAL, EngineFault.MALFORMED, EngineFault.UNAVAILABLE, EngineFault.TIMEOUT],
)
def test_a_task_that_fails_again_and_again_costs_no_neighbour_its_worker(
    fault: EngineFault,
) -> None:
    async def scenario(world: ServiceWorld) -> None:
        neighbour, poison = best_effort(1, max_tokens=40), draft(2)
        await world.admit(neighbour)
        client = world.read(neighbour)
        await world.advance(0.025)
        faults = [MockFault(Misbehaviour.ERROR, 1, fault)] * MAX_ATTEMPTS
        world.engines["r0"].inject(*faults)
        await world.admit(poison)
        poisoned = world.read(poison)

        await world.advance(1.0)

        assert world.decodes == [neighbour.task_id] + [poison.task_id] * MAX_ATTEMPTS
        assert poisoned.terminal is not None
        assert poisoned.terminal.data["code"] == "WORKER_RESET"
        assert client.terminal is not None
        assert client.terminal.event == "end"
        assert len(client.tokens) == 40

    logs = run_world(scenario, Setup(engines={"r0": replace(SCRIPT, slots_total=2)}))

    assert "replica.lost" not in [line["event"] for line in logs]


@pytest.mark.req("ORCH-3010")
def test_a_replica_that_fails_a_task_and_its_probe_is_lost_with_that_probe() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1)
        world.engines["r0"].inject(MockFault(Misbehaviour.ERROR, 1, EngineFault.INTERNAL))
        await world.admit(one)
        await world.advance(0.005)
        world.engines["r0"].health = Health.LOADING
        await world.advance(0.01)
        assert world.life.replicas.get(POOL, "r0") is not None

        await world.advance(0.025)

        assert world.life.replicas.get(POOL, "r0") is None

    run_world(scenario)
