from __future__ import annotations

import pytest

from harness_kit.recording_sink import RecordingSink
from harness_kit.service_clients import draft
from harness_kit.service_world import POOL, ServiceWorld, Setup, run_world
from worker_adapters.adapter_api.types import Decode, DecodeRequest, Sampling
from worker_adapters.mock.client import MockClient
from worker_adapters.mock.script import MockScript

# Somebody else's answer lasts 100 seconds unless it is cancelled; ours have four tokens.
SCRIPT = MockScript(slots_total=1, ctx_max=20_000, token_delay_ms=10)
SEEN_S = 2.1  # two looks, a second apart


def decode_directly(world: ServiceWorld, engine: str) -> Decode:
    """Somebody uses the engine beside us."""
    request = DecodeRequest("theirs", 10_000, 1, Sampling(), True, "not-ours")
    return MockClient(world.engines[engine], None).decode(request, RecordingSink())


@pytest.mark.req("ORCH-3019")
class TestForeignDecodes:
    def test_a_task_goes_to_the_replica_whose_engine_has_a_slot(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            decode_directly(world, "r0")
            await world.advance(SEEN_S)

            await world.admit(draft(1))

            theirs, ours = world.engines["r0"], world.engines["r1"]
            assert (theirs.waiting_count, ours.running_count) == (0, 1)

        run_world(scenario, Setup(engines={"r0": SCRIPT, "r1": SCRIPT}))

    def test_a_task_waits_for_the_slot_here_and_not_in_the_engine_until_it_is_free(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            theirs = decode_directly(world, "r0")
            await world.advance(SEEN_S)

            waiting = await world.admit(draft(1))
            await world.advance(5.0)

            scheduler = world.life.scheduling.scheduler
            assert waiting.promise is not None
            assert waiting.promise.predicted_start_ms >= 1000
            assert (world.decodes, scheduler.slots_free(POOL)) == ([], 0)

            theirs.cancel()
            await world.advance(1.0)

            assert world.decodes == [draft(1).correlation_id]
            assert scheduler.foreign(POOL, "r0") == 0

        logs = run_world(scenario, Setup(engines={"r0": SCRIPT}))

        said = [entry["slots"] for entry in logs if entry["event"] == "slot_states.foreign"]
        assert said == [1, 0]

    def test_our_own_decodes_are_never_taken_for_somebody_elses(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            for number in range(40):
                await world.admit(draft(number, max_tokens=60))  # 0.6 seconds each
            await world.advance(25.0)

            assert len(world.decodes) == 40

        logs = run_world(scenario, Setup(engines={"r0": SCRIPT}))

        assert not [entry for entry in logs if entry["event"] == "slot_states.foreign"]
