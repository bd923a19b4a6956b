"""A task's readers: signs of life, metrics events, slow ones."""

from __future__ import annotations

import asyncio
import gc
import sys
from collections.abc import Callable
from dataclasses import replace
from types import FrameType
from typing import Any

import pytest

from harness_kit.service_clients import draft, end_event, token_events
from harness_kit.service_world import ServiceWorld, Setup, run_world
from orchestratord.services import streams
from orchestratord.services.jobs import Phase
from orchestratord.services.streams import KEEP_ALIVE_S, REPLAY_TOKENS, StreamReader
from worker_adapters.mock.script import Misbehaviour, MockFault, MockScript

SLOW = MockScript(slots_total=1, token_delay_ms=100)


class OneWriteAtATime:
    """A socket whose buffer is full after each write, until the client has read it."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.congested = False
        self.finished = asyncio.Event()

    def write(self, data: bytes) -> None:
        assert not self.congested, "written to a full buffer"
        self.writes.append(data)
        self.congested = True

    def finish(self, last: bytes = b"") -> None:
        if last:
            self.write(last)
        self.finished.set()


@pytest.mark.req("ORCH-2002", partial="all but one property of a stream")
@pytest.mark.req("OC-CTRL-2020", partial="all but signs of life while nothing happens")
def test_a_waiting_stream_shows_a_sign_of_life_every_15_seconds() -> None:
    async def scenario(world: ServiceWorld) -> None:
        await world.admit(draft(1, max_tokens=400))
        await world.admit(draft(2))
        client = world.read(draft(2))

        await world.advance(38.5)

        assert [round(at_s) for at_s in client.comments_at_s] == [15, 30]
        assert client.frames == []

    run_world(scenario, Setup(engines={"r0": SLOW}))


def test_a_running_stream_without_tokens_shows_a_sign_of_life_too() -> None:
    async def scenario(world: ServiceWorld) -> None:
        world.engines["r0"].inject(MockFault(Misbehaviour.SILENT, 1))
        await world.admit(draft(1))
        client = world.read(draft(1))

        await world.advance(KEEP_ALIVE_S + 1.5)

        assert len(client.tokens) == 1
        assert [round(at_s) for at_s in client.comments_at_s] == [15]

    run_world(scenario, Setup(engines={"r0": SLOW}, metrics_s=100, idle_ms=50_000))


class TestMetricsEvents:
    """ORCH-3100: what a client can plan with; without id, never replayed."""

    SETUP = Setup(engines={"r0": SLOW}, metrics_s=2.0)

    @pytest.mark.req("ORCH-3100")
    @pytest.mark.req("ORCH-3202", partial="all but metrics events")
    def test_one_comes_right_after_started_and_then_every_metrics_ms(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1, max_tokens=50))
            client = world.read(draft(1, max_tokens=50))
            await world.advance(10.0)

            kinds = [frame.event for frame in client.frames[:4]]
            assert kinds == ["started", "metrics", "token", "token"]
            times = [round(frame.at_s, 1) for frame in client.metrics]
            assert times == [0.0, 2.0, 4.0]
            assert all(frame.id is None for frame in client.metrics)
            assert client.frames[-1].event == "end"

        run_world(scenario, self.SETUP)

    @pytest.mark.req("ORCH-3100")
    def test_it_says_how_the_task_fares(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1, max_tokens=50))
            await world.admit(draft(2))
            client = world.read(draft(1, max_tokens=50))
            await world.advance(3.0)

            last = client.metrics[-1].data
            assert last["queue_depth"] == 1
            assert last["tokens_out"] in (19, 20)  # at 2.0 s
            assert 0.0 <= last["on_time_probability"] <= 1.0
            assert last["kv_warmth"] is False
            assert last["kv_migrated"] is False
            assert last["failovers"] == 0
            assert last["replica_id"] == "r0"
            assert last["engine_version"] == "mock 1"
            assert last["model_digest"] == "sha256:" + "0" * 64

        run_world(scenario, self.SETUP)

    def test_a_stream_without_tokens_gets_them_from_the_tick(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.engines["r0"].inject(MockFault(Misbehaviour.SILENT, 1))
            await world.admit(draft(1))
            client = world.read(draft(1))
            await world.advance(6.5)

            assert [round(frame.at_s) for frame in client.metrics] == [0, 3, 5]

        run_world(scenario, replace(self.SETUP, idle_ms=50_000))

    @pytest.mark.req("ORCH-3202", partial="all but metrics events")
    def test_they_are_not_replayed_and_waiting_tasks_have_none(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1, max_tokens=30))
            await world.admit(draft(2))
            waiting = world.read(draft(2))
            await world.advance(2.5)
            assert waiting.metrics == []
            await world.advance(2.0)

            late = world.read(draft(1, max_tokens=30))

            assert late.finished
            assert late.metrics == []

        run_world(scenario, self.SETUP)

    def test_a_reader_that_comes_back_gets_none_before_the_next_is_due(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1, max_tokens=30))
            client = world.read(draft(1, max_tokens=30))
            await world.advance(0.55)
            client.leave()
            seen = len(client.metrics)

            assert client.connect()
            await world.advance(0.5)
            assert len(client.metrics) == seen
            await world.advance(1.5)
            assert len(client.metrics) == seen + 1

        run_world(scenario, self.SETUP)


class TestSlowReaders:
    @pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
    @pytest.mark.req("ORCH-2002", partial="all but one property of a stream")
    def test_one_that_stops_reading_slows_nobody_and_misses_nothing(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            one = draft(1, max_tokens=40)
            await world.admit(one)
            slow, quick = world.read(one), world.read(one)
            await world.advance(0.55)
            slow.congested = True
            before = len(slow.frames)
            await world.advance(10.0)
            assert len(slow.frames) == before
            assert not slow.finished
            assert quick.finished

            slow.resume()

            assert slow.finished
            assert slow.raw == quick.raw
            assert [frame.raw for frame in slow.tokens] == token_events(one)

        run_world(scenario, Setup(engines={"r0": SLOW}))

    @pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
    @pytest.mark.req("ORCH-2002", partial="all but one property of a stream")
    def test_a_replay_fills_one_bounded_buffer_at_a_time(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            one = draft(1)
            await world.admit(one)
            job = world.life.jobs.get(one.key)
            assert job is not None
            job.log.append([b"x"] * 10_000)  # as an engine might in one read
            world.cancel(one)
            writer = OneWriteAtATime()

            reader = world.life.hub.attach(job, 0, writer)
            reader.pump()
            while not writer.finished.is_set():
                count = len(writer.writes)
                await world.advance(1.0)
                assert len(writer.writes) == count, "nothing is written to a full buffer"
                writer.congested = False
                reader.pump()

            sizes = [data.count(b"event: token") for data in writer.writes]
            assert max(sizes) == REPLAY_TOKENS
            assert sum(sizes) == job.log.tokens
            ids = b"".join(writer.writes).split(b"\nid: ")[1:]
            numbers = [int(part.split(b"\n")[0]) for part in ids]
            assert numbers == list(range(1, job.log.tokens + 3))

        run_world(scenario, Setup(engines={"r0": SLOW}))

    def test_it_gets_no_keep_alive_and_no_metrics_while_it_is_full(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.engines["r0"].inject(MockFault(Misbehaviour.SILENT, 1))
            await world.admit(draft(1))
            client = world.read(draft(1))
            await world.advance(0.5)
            client.congested = True
            seen = len(client.frames)

            await world.advance(40.0)

            assert len(client.frames) == seen
            assert client.comments_at_s == []

        run_world(scenario, Setup(engines={"r0": SLOW}, idle_ms=50_000))


class TestReadingAgain:
    @pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
    @pytest.mark.req("ORCH-2002", partial="all but one property of a stream")
    def test_many_readers_early_and_late_see_the_same_bytes(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            one = draft(1, max_tokens=20)
            await world.admit(one)
            readers = [world.read(one)]
            for _ in range(4):
                await world.advance(0.6)
                readers.append(world.read(one))

            assert len({reader.raw for reader in readers}) == 1
            assert all(reader.finished for reader in readers)

        run_world(scenario, Setup(engines={"r0": SLOW}))

    @pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
    @pytest.mark.parametrize("last_event_id", [0, 1, 3, 6, 7, 40])
    def test_a_reader_gets_what_comes_after_the_id_it_names(self, last_event_id: int) -> None:
        async def scenario(world: ServiceWorld) -> None:
            one = draft(1)
            await world.admit(one)
            whole = world.read(one)
            await world.advance(1.0)

            late = world.read(one, last_event_id)

            assert late.raw == b"".join(f.raw for f in whole.numbered[last_event_id:])
            assert late.finished

        run_world(scenario, Setup(engines={"r0": SLOW}))

    def test_a_reader_ahead_of_a_running_task_waits_for_its_place(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            one = draft(1)
            await world.admit(one)
            ahead = world.read(one, last_event_id=4)
            await world.advance(0.35)
            assert ahead.numbered == []

            await world.advance(1.0)

            assert ahead.raw == token_events(one)[3] + end_event(4, 400)

        run_world(scenario, Setup(engines={"r0": SLOW}))


class TestDisconnect:
    CANCEL = Setup(engines={"r0": SLOW}, cancel_on_disconnect=True)

    def test_by_default_a_task_goes_on_without_readers(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            client = world.read(draft(1))
            await world.advance(0.15)
            client.leave()
            await world.advance(2.0)

            assert client.connect()

            assert [frame.raw for frame in client.tokens] == token_events(draft(1))

        run_world(scenario, Setup(engines={"r0": SLOW}))

    @pytest.mark.req("ORCH-3017", partial="all but the services' part")
    def test_with_cancel_the_last_reader_takes_the_task_along(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            one, other = world.read(draft(1)), world.read(draft(1))
            await world.advance(0.15)
            one.leave()
            assert world.engines["r0"].running_count == 1

            other.leave()

            assert world.engines["r0"].running_count == 0
            await world.settle()
            assert other.connect()
            assert other.terminal is not None
            assert other.terminal.data["canceled"] is True
            assert other.terminal.data["tokens_out"] == 1

        run_world(scenario, self.CANCEL)

    def test_a_shutdown_is_no_disconnect(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            client = world.read(draft(1))
            await world.advance(0.15)

            world.life.hub.close_all(waiting_only=False)

            assert client.finished
            assert client.terminal is None
            assert world.engines["r0"].running_count == 1

        run_world(scenario, self.CANCEL)

    def test_what_waits_is_closed_first_at_a_shutdown(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.admit(draft(2))
            running, waiting = world.read(draft(1)), world.read(draft(2))

            world.life.hub.close_all(waiting_only=True)

            assert waiting.finished
            assert waiting.frames == []
            assert not running.finished
            assert len(world.life.hub) == 1

        run_world(scenario, Setup(engines={"r0": SLOW}))


def test_open_streams_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streams, "MAX_READERS", 2)

    async def scenario(world: ServiceWorld) -> None:
        await world.admit(draft(1))
        first = world.read(draft(1))
        assert not world.life.hub.full
        world.read(draft(1))
        assert world.life.hub.full

        first.leave()

        assert not world.life.hub.full

    run_world(scenario, Setup(engines={"r0": SLOW}))


class TestRetention:
    @pytest.mark.req("ORCH-3202", partial="all but how long a stream can be read")
    def test_a_finished_log_is_kept_for_retain_s_after_its_end(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))  # ends at 0.4 s
            await world.advance(30.3)
            assert world.life.jobs.get(draft(1).key) is not None

            await world.advance(0.5)

            assert world.life.jobs.get(draft(1).key) is None
            assert (await world.admit(draft(1))).admitted, "its id is free again"

        run_world(scenario, Setup(engines={"r0": SLOW}, retain_s=30))

    @pytest.mark.req("ORCH-3202", partial="all but how long a stream can be read")
    def test_beyond_retain_bytes_the_oldest_logs_go(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            for number in range(1, 4):
                await world.admit(draft(number))
            await world.advance(2.0)

            kept = [n for n in range(1, 4) if world.life.jobs.get(draft(n).key) is not None]

            assert kept == [3]

        run_world(scenario, Setup(engines={"r0": SLOW}, retain_bytes=2 * 2048))

    def test_a_log_that_goes_while_it_is_read_is_read_to_its_end(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            client = world.read(draft(1))
            client.congested = True
            await world.advance(10.0)
            assert world.life.jobs.get(draft(1).key) is None

            client.resume()

            assert client.finished
            assert [frame.raw for frame in client.tokens] == token_events(draft(1))

        run_world(scenario, Setup(engines={"r0": SLOW}, retain_s=1))


def test_a_stream_that_has_ended_leaves_nothing_to_the_garbage_collector() -> None:
    async def scenario(world: ServiceWorld) -> None:
        await world.admit(draft(1))
        await world.advance(1.0)
        job = world.life.jobs.get(draft(1).key)
        assert job is not None
        assert job.phase is Phase.ENDED
        gc.collect()
        gc.disable()

        try:
            world.life.hub.attach(job, 0, OneWriteAtATime()).pump()
            left = [found for found in gc.get_objects() if isinstance(found, StreamReader)]
        finally:
            gc.enable()

        assert left == []
        assert job.begun is job.ended is None

    run_world(scenario)


def test_what_a_notice_takes_does_not_grow_with_the_readers_of_other_tasks() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one, other = draft(1, max_tokens=50), draft(2, max_tokens=50)
        for of in (one, other):
            await world.admit(of)
        client = world.read(one)
        await world.advance(0.15)
        job = world.life.jobs.get(one.key)
        assert job is not None
        told = len(client.metrics)

        alone = lines_run(lambda: world.life.hub.notice(job))
        for _ in range(200):
            world.read(other)
        crowded = lines_run(lambda: world.life.hub.notice(job))

        assert alone == crowded > 0
        assert len(client.metrics) == told + 2
        client.leave()
        world.life.hub.notice(job)
        assert len(client.metrics) == told + 2

    run_world(scenario, Setup(engines={"r0": SLOW}))


def lines_run(work: Callable[[], None]) -> int:
    """How many lines of `services.streams` itself `work` takes: time, without a clock."""
    count = 0

    def trace(frame: FrameType, event: str, _argument: object) -> Any:
        nonlocal count
        if frame.f_code.co_filename != streams.__file__:
            return None
        count += event == "line"
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count
