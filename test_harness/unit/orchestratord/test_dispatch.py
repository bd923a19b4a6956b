"""From a slot to a stream: attempts, workers that fail, and what a reader sees of that."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from harness_kit.service_clients import draft, end_event, started_event, token_events
from harness_kit.service_world import POOL, ServiceWorld, Setup, run_world
from orchestrator_core.task import Determinism
from orchestratord.services import records
from orchestratord.services.drafts import Draft
from worker_adapters.adapter_api.types import (
    Decode,
    DecodeEnd,
    DecodeRequest,
    EngineFault,
    TokenSink,
)
from worker_adapters.mock.client import MockClient
from worker_adapters.mock.engine import LoopScheduler, MockEngine
from worker_adapters.mock.script import Misbehaviour, MockFault, MockScript

SCRIPT = MockScript(slots_total=1, token_delay_ms=10)
PAIR = Setup(engines={"r0": SCRIPT, "r1": SCRIPT})
LIAR = Setup(engines={"r0": SCRIPT, "r1": replace(SCRIPT, salt="other")})


def best_effort(number: int, **changes: Any) -> Draft:
    return draft(number, determinism=Determinism.BEST_EFFORT, **changes)


def records_of(world: ServiceWorld, kind: type[records.Record]) -> list[records.Record]:
    return [record for record in world.disk_records() if isinstance(record, kind)]


def test_an_undisturbed_stream_is_started_tokens_and_end_byte_for_byte() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1)
        submission = await world.admit(one)
        client = world.read(one)

        await world.advance(1.0)

        assert submission.promise is not None
        whole = [started_event(submission.promise), *token_events(one), end_event(4, 40)]
        assert client.raw == b"".join(whole)
        assert client.finished

    run_world(scenario)


@pytest.mark.req("ORCH-3201")
def test_a_strict_task_goes_on_elsewhere_without_a_gap_when_its_worker_dies() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1)
        submission = await world.admit(one)
        client = world.read(one)
        await world.advance(0.025)
        assert len(client.tokens) == 2

        world.kill("r0")
        await world.advance(1.0)

        assert submission.promise is not None
        whole = [started_event(submission.promise), *token_events(one), end_event(4, 40)]
        assert client.raw == b"".join(whole)
        assert world.decodes == [one.task_id, one.task_id]
        assert [frame.data["failovers"] for frame in client.metrics][-1] == 1
        assert client.metrics[-1].data["kv_warmth"] is False
        assert client.metrics[-1].data["kv_migrated"] is False
        assert failovers(world) == {"resumed": 1, "lost": 0, "mismatch": 0}

    run_world(scenario, PAIR)


@pytest.mark.req("ORCH-3201")
def test_a_replica_with_other_text_ends_the_stream_and_none_of_its_bytes_are_shown() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1)
        assert token_events(one)[:2] != token_events(one, salt="other")[:2]
        await world.admit(one)
        client = world.read(one)
        await world.advance(0.025)

        world.kill("r0")
        await world.advance(1.0)

        assert b"".join(f.raw for f in client.tokens) == b"".join(token_events(one)[:2])
        assert client.terminal is not None
        assert client.terminal.id == 4
        assert client.terminal.data["code"] == "WORKER_RESET"
        assert client.terminal.data["retriable"] is True
        assert client.terminal.on_disk
        assert failovers(world) == {"resumed": 1, "lost": 0, "mismatch": 1}
        assert world.engines["r1"].running_count == 0
        assert world.life.scheduling.scheduler.running(POOL) == ()

    logs = run_world(scenario, LIAR)

    assert "task.failover_mismatch" in [line["event"] for line in logs]


@pytest.mark.req("ORCH-3201", partial="all but one case of a failover")
def test_a_second_run_that_ends_too_early_is_a_mismatch() -> None:
    class Short(MockClient):
        """An engine that stops after one token, whatever was asked for."""

        def decode(self, request: DecodeRequest, sink: TokenSink) -> Decode:
            short = DecodeRequest(
                prompt=request.prompt,
                max_tokens=1,
                seed=request.seed,
                sampling=request.sampling,
                cold=request.cold,
            )
            return super().decode(short, sink)

    async def scenario(world: ServiceWorld) -> None:
        short = Short(MockEngine(SCRIPT, LoopScheduler()), None)
        properties = await short.properties()
        one = draft(1)
        await world.admit(one)
        client = world.read(one)
        await world.advance(0.035)
        assert len(client.tokens) == 3
        world.life.replicas.replica_ready(POOL, "r1", short, properties, ())

        world.kill("r0")
        await world.advance(0.1)

        assert len(client.tokens) == 3
        assert client.terminal is not None
        assert client.terminal.data["code"] == "WORKER_RESET"
        assert failovers(world)["mismatch"] == 1

    run_world(scenario)


def failovers(world: ServiceWorld) -> dict[str, float]:
    return {
        outcome: world.metric("failovers_total", engine="llamacpp", pool_id=POOL, outcome=outcome)
        for outcome in ("resumed", "lost", "mismatch")
    }


def test_a_best_effort_task_starts_again_while_nothing_was_shown() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = best_effort(1)
        await world.admit(one)
        client = world.read(one)
        await world.advance(0.005)
        assert client.tokens == []

        world.kill("r0")
        await world.advance(1.0)

        assert len(client.tokens) == 4
        assert client.terminal is not None
        assert client.terminal.event == "end"

    run_world(scenario, PAIR)


@pytest.mark.req("ORCH-3201", partial="strict tasks")
def test_a_best_effort_task_that_showed_tokens_ends_with_worker_reset() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = best_effort(1)
        await world.admit(one)
        client = world.read(one)
        await world.advance(0.025)

        world.kill("r0")
        await world.advance(1.0)

        assert client.terminal is not None
        assert client.terminal.data["code"] == "WORKER_RESET"
        assert client.terminal.data["retriable"] is True
        assert world.decodes == [one.task_id]
        assert failovers(world)["lost"] == 1

    run_world(scenario, PAIR)


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
@pytest.mark.parametrize("failed_over", [False, True])
def test_a_best_effort_task_shows_nothing_before_its_start_is_on_disk(failed_over: bool) -> None:
    async def scenario(world: ServiceWorld) -> None:
        blocker, one = draft(1, max_tokens=20), best_effort(2)
        await world.admit(blocker)
        await world.admit(one)
        client = world.read(one)
        world.life.journal.hold()
        await world.advance(0.25)  # the blocker ends, its slot goes to `one`
        assert world.life.jobs.get(one.key) is not None
        if failed_over:
            world.kill("r0")
            world.revive("r0")
            world.life.replicas.connection_lost(POOL, "r0", "cut")
            await world.advance(0.6)

        assert client.numbered == []

        world.life.journal.resume()
        await world.advance(1.0)
        assert len(client.tokens) == 4
        assert len(records_of(world, records.TaskStarted)) == 2

    run_world(scenario)


@pytest.mark.parametrize(
    ("fault", "reason"), [(EngineFault.INVALID, "invalid"), (EngineFault.CONTEXT, "context")]
)
def test_a_request_that_the_engine_refuses_ends_at_once_and_keeps_the_replica(
    fault: EngineFault, reason: str
) -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1)
        world.engines["r0"].inject(MockFault(Misbehaviour.ERROR, 0, fault))
        await world.admit(one)
        client = world.read(one)

        await world.advance(0.1)

        assert client.terminal is not None
        assert client.terminal.data["code"] == "INVALID_PARAMS"
        assert client.terminal.data["retriable"] is False
        assert world.life.replicas.get(POOL, "r0") is not None
        assert world.decodes == [one.task_id]

    run_world(scenario, PAIR)


@pytest.mark.parametrize(
    ("determinism", "kv_hint", "cold"),
    [
        (Determinism.STRICT, "reuse", True),
        (Determinism.BEST_EFFORT, "reuse", False),
        (Determinism.BEST_EFFORT, "cold", True),
        (Determinism.BEST_EFFORT, None, False),
    ],
)
def test_a_strict_decode_never_reuses_a_prefix(
    determinism: Determinism, kv_hint: str | None, cold: bool
) -> None:
    async def scenario(world: ServiceWorld) -> None:
        text = "one two three four five"
        await world.admit(best_effort(1, prompt=text))
        await world.advance(1.0)
        await world.admit(draft(2, prompt=text, determinism=determinism, kv_hint=kv_hint))
        await world.advance(1.0)

        assert (world.engines["r0"].cached_tokens == 0) is cold

    run_world(scenario)


@pytest.mark.req("ORCH-3203", partial="the start of a best_effort task")
@pytest.mark.parametrize("failed_over", [False, True])
def test_a_best_effort_task_whose_start_could_not_be_written_begins_once_it_could(
    failed_over: bool,
) -> None:
    async def scenario(world: ServiceWorld) -> None:
        blocker, one = draft(1, max_tokens=20), best_effort(2)
        await world.admit(blocker)
        await world.admit(one)
        client = world.read(one)
        world.life.journal.fail("disk full")
        await world.advance(1.0)  # the blocker ends, its slot goes to `one`
        if failed_over:
            world.life.replicas.connection_lost(POOL, "r0", "cut")
            await world.advance(0.6)

        assert client.numbered == []
        assert world.decodes == [blocker.task_id]

        world.life.journal.fail(None)
        await world.advance(1.0)

        assert len(client.tokens) == 4
        assert world.decodes == [blocker.task_id, one.task_id]
        started = [r.task_id for r in records_of(world, records.TaskStarted)]  # type: ignore[union-attr]
        assert started == [blocker.task_id, one.task_id]

    run_world(scenario)


@pytest.mark.req("ORCH-3016", partial="a task that waits for the journal")
def test_a_best_effort_task_whose_start_is_never_written_ends_after_the_idle_time() -> None:
    async def scenario(world: ServiceWorld) -> None:
        blocker, one = draft(1, max_tokens=20), best_effort(2)
        await world.admit(blocker)
        await world.admit(one)
        client = world.read(one)
        world.life.journal.fail("disk full")
        await world.advance(6.0)
        assert world.life.scheduling.scheduler.running(POOL) == ()

        world.life.journal.fail(None)
        await world.advance(1.0)

        assert client.terminal is not None
        assert client.terminal.data["code"] == "DECODE_TIMEOUT"
        assert client.terminal.data["retriable"] is True
        assert world.decodes == [blocker.task_id]

    run_world(scenario)


class Untimed(MockClient):
    """An engine that does not say how long a decode took."""

    def decode(self, request: DecodeRequest, sink: TokenSink) -> Decode:
        return super().decode(request, _UntimedSink(sink))


class _UntimedSink:
    def __init__(self, sink: TokenSink) -> None:
        self.on_prefill = sink.on_prefill
        self.on_tokens = sink.on_tokens
        self.on_error = sink.on_error
        self._sink = sink

    def on_end(self, end: DecodeEnd) -> None:
        self._sink.on_end(msgspec.structs.replace(end, decode_ms=0))


def test_a_decode_that_the_engine_does_not_time_is_timed_without_the_wall_clock() -> None:
    async def scenario(world: ServiceWorld) -> None:
        untimed = Untimed(MockEngine(SCRIPT, LoopScheduler()), None)
        world.life.replicas.replica_ready(POOL, "r9", untimed, await untimed.properties(), ())
        world.life.replicas.connection_lost(POOL, "r0", "cut")
        one = draft(1)
        await world.admit(one)
        client = world.read(one)
        await world.advance(0.015)

        world.clock_step_ms = 3_600_000
        await world.advance(0.2)

        assert client.terminal is not None
        assert client.terminal.data["decode_ms"] == 40  # from 10 to 50 ms

    run_world(scenario, Setup(engines={"r0": SCRIPT}))
