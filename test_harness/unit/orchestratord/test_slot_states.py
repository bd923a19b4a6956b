from __future__ import annotations

import asyncio
from collections import Counter

import pytest

from harness_kit.service_clients import draft
from harness_kit.service_world import POOL, ServiceWorld, Setup, run_world
from orchestratord.services.slot_states import MAX_ASKED, usage_ratio
from worker_adapters.adapter_api.types import EngineError, EngineFault, SlotState
from worker_adapters.mock.client import MockClient
from worker_adapters.mock.engine import LoopScheduler, MockEngine
from worker_adapters.mock.script import MockScript

SCRIPT = MockScript(slots_total=2, ctx_max=100, token_delay_ms=10)
ONE_ENGINE = Setup(engines={"r0": SCRIPT})


class SlowSlots(MockClient):
    """Answers about its slots when it is told to; counts the questions."""

    def __init__(self) -> None:
        super().__init__(MockEngine(SCRIPT, LoopScheduler()), None)
        self.asked = 0
        self.answer = asyncio.Event()
        self.fault: EngineFault | None = None

    async def slots(self) -> list[SlotState]:
        self.asked += 1
        await self.answer.wait()
        if self.fault is not None:
            raise EngineError(self.fault, "no slots")
        return [SlotState(0, True, 50), SlotState(1, False, 30)]


def usage(world: ServiceWorld, replica_id: str = "r0") -> float:
    return world.metric(
        "kv_cache_usage_ratio",
        engine="llamacpp",
        engine_version="mock 1",
        pool_id=POOL,
        replica_id=replica_id,
    )


async def add(world: ServiceWorld, name: str) -> SlowSlots:
    client = SlowSlots()
    properties = await client.properties()
    world.life.replicas.replica_ready(POOL, name, client, properties, ())
    return client


@pytest.mark.parametrize(
    ("kv_tokens", "room", "ratio"), [([50, 30], 200, 0.4), ([150, 90], 200, 1.0), ([50], 0, 0.0)]
)
def test_usage_is_tokens_held_over_room(kv_tokens: list[int], room: int, ratio: float) -> None:
    slots = [SlotState(number, False, tokens) for number, tokens in enumerate(kv_tokens)]

    assert usage_ratio(slots, room) == ratio


@pytest.mark.req("ORCH-3022", partial="the bound")
@pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
class TestPolling:
    def test_the_metric_is_what_the_engine_says_of_its_slots(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            look = world.life.slot_states.look
            look()
            await world.settle()
            assert usage(world) == 0.0

            await world.admit(draft(1, prompt="one two three", ctx=100))
            await world.advance(1.0)
            look()
            await world.settle()

            held = sum(world.engines["r0"].kv_tokens(slot) for slot in range(2))
            assert held > 0
            assert usage(world) == held / 200

        run_world(scenario, ONE_ENGINE)

    def test_a_replica_that_is_gone_shows_nothing_even_if_its_answer_comes_late(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            slow = await add(world, "slow")
            look = world.life.slot_states.look
            look()
            slow.answer.set()
            await world.settle()
            assert usage(world, "slow") == 0.4

            slow.answer.clear()
            look()
            await world.settle()
            world.life.replicas.connection_lost(POOL, "slow", "reset")
            slow.answer.set()
            await world.settle()

            assert usage(world, "slow") == 0.0

        run_world(scenario, ONE_ENGINE)

    def test_an_engine_that_does_not_answer_is_not_asked_again_meanwhile(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            slow = await add(world, "slow")
            look = world.life.slot_states.look

            for _ in range(3):
                look()
                await world.settle()
            assert slow.asked == 1

            slow.answer.set()
            await world.settle()
            look()
            await world.settle()
            assert slow.asked == 2

        run_world(scenario, ONE_ENGINE)

    def test_an_engine_without_slots_is_asked_again_and_disturbs_nobody(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            odd, good = await add(world, "odd"), await add(world, "s0")
            odd.fault = EngineFault.UNSUPPORTED
            odd.answer.set()
            good.answer.set()
            look = world.life.slot_states.look

            for _ in range(2):
                look()
                await world.settle()

            assert odd.asked == 2
            assert (usage(world, "odd"), usage(world, "s0")) == (0.0, 0.4)

        run_world(scenario, ONE_ENGINE)

    @pytest.mark.req("ORCH-3019")
    def test_an_engine_that_tells_no_more_keeps_no_slot_from_us(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            slow = await add(world, "slow")
            slow.answer.set()
            look, scheduler = world.life.slot_states.look, world.life.scheduling.scheduler

            kept = []
            for fault in (None, None, EngineFault.UNSUPPORTED):
                slow.fault = fault
                look()
                await world.settle()
                kept.append(scheduler.foreign(POOL, "slow"))

            assert kept == [0, 1, 0]

        run_world(scenario, ONE_ENGINE)

    def test_many_replicas_are_asked_in_turn_and_never_more_than_the_bound_at_once(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            clients = [await add(world, f"s{number}") for number in range(2 * MAX_ASKED - 1)]
            for client in clients:
                client.answer.set()
            look = world.life.slot_states.look  # and r0

            look()
            await world.settle()
            assert sum(client.asked for client in clients) == MAX_ASKED - 1
            look()
            await world.settle()

            assert Counter(client.asked for client in clients) == {1: 2 * MAX_ASKED - 1}

        run_world(scenario, ONE_ENGINE)
