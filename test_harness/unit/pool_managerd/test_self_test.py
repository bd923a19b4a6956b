"""The self-test against the mock adapter and against engines that fail one of its steps."""

from __future__ import annotations

import asyncio
import dataclasses

import pytest

from harness_kit.scripted_engine import PROPERTIES, ScriptedClient, ScriptedEngine
from harness_kit.virtual_time import run_virtual
from pool_managerd.self_test import CALL_S, DECODE_S, SLOT_FREE_S, SelfTestFailed, self_test
from worker_adapters.adapter_api.types import EngineFault, EngineProperties
from worker_adapters.mock.client import MockAdapter
from worker_adapters.mock.engine import MockEngine
from worker_adapters.mock.script import Misbehaviour, MockFault, MockScript

pytestmark = pytest.mark.req("ORCH-3049", partial="the start that a failure stops")

EMBEDS = dataclasses.replace(PROPERTIES, features=frozenset({"embeddings"}))


def prove(engine: ScriptedEngine) -> float:
    """Seconds that the self-test of it took."""

    async def scenario() -> float:
        await self_test(ScriptedClient(engine), engine.properties)
        return asyncio.get_running_loop().time()

    return run_virtual(scenario())


def mock_after_test(*faults: MockFault, script: MockScript | None = None) -> MockEngine:
    """The mock's engine after its self-test."""

    async def scenario() -> MockEngine:
        adapter = MockAdapter(script or MockScript(token_delay_ms=5))
        engine = adapter.engine_at("mock")
        for fault in faults:
            engine.inject(fault)
        client = adapter.connect("mock")
        try:
            await self_test(client, await client.properties())
        finally:
            await client.close()
        return engine

    return run_virtual(scenario())


def test_an_engine_that_works_passes_and_every_slot_is_free_again() -> None:
    engine = mock_after_test()

    assert engine.running_count == 0
    assert engine.generated_tokens >= 4 * 8


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (Misbehaviour.DIE, "decode: "),
        (Misbehaviour.GARBLE, "decode: "),
        (Misbehaviour.ERROR, "decode: "),
        (Misbehaviour.SILENT, f"decode: not over within {DECODE_S:g} s"),
    ],
)
def test_a_decode_that_misbehaves_fails_it_within_its_bound(kind: Misbehaviour, said: str) -> None:
    with pytest.raises(SelfTestFailed, match=said):
        mock_after_test(MockFault(kind, after_tokens=3))


def test_an_engine_of_two_minds_fails_it() -> None:
    with pytest.raises(SelfTestFailed, match="two greedy decodes from a cold start differ"):
        prove(ScriptedEngine(drifts=True))


def test_a_slot_that_a_cancel_does_not_free_fails_it() -> None:
    with pytest.raises(SelfTestFailed, match=f"still busy after {SLOT_FREE_S:g} s"):
        prove(ScriptedEngine(leaks_slots=True))


def test_slots_that_others_use_are_no_leak() -> None:
    engine = ScriptedEngine(busy_slots=2)

    prove(engine)

    assert engine.busy_slots == 2


def test_a_mute_engine_fails_it_in_bounded_time() -> None:
    with pytest.raises(SelfTestFailed) as failure:
        prove(ScriptedEngine(mute=True))

    assert failure.value.fault is EngineFault.TIMEOUT


@pytest.mark.parametrize("fault", [EngineFault.TIMEOUT, EngineFault.MALFORMED, EngineFault.RESET])
def test_figures_that_do_not_come_fail_it(fault: EngineFault) -> None:
    with pytest.raises(SelfTestFailed, match="telemetry: scripted fault"):
        prove(ScriptedEngine(telemetry_fault=fault))


def test_an_engine_started_without_figures_may_say_so() -> None:
    assert prove(ScriptedEngine(telemetry_fault=EngineFault.UNSUPPORTED)) < CALL_S


def test_an_engine_that_only_embeds_is_tested_by_an_embedding() -> None:
    engine = ScriptedEngine(decode_fault=EngineFault.UNSUPPORTED, properties=EMBEDS)

    prove(engine)

    assert engine.decodes == 1


@pytest.mark.parametrize("properties", [PROPERTIES, EMBEDS])
def test_an_engine_that_can_do_neither_fails_it(properties: EngineProperties) -> None:
    fault = EngineFault.UNSUPPORTED if properties is PROPERTIES else EngineFault.INTERNAL

    with pytest.raises(SelfTestFailed, match="decode: scripted fault"):
        prove(ScriptedEngine(decode_fault=fault, properties=properties))
