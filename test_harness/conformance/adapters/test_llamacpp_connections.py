"""Which connections the llama.cpp adapter uses, keeps and closes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from harness_kit.fake_engine import FakeEngine
from harness_kit.fake_engine_script import Fault, FaultOnce
from harness_kit.greedy_decodes import expected_text, request_of
from harness_kit.recording_sink import WAIT_S, RecordingSink, decoded
from harness_kit.waiting import wait_until_async
from worker_adapters.adapter_api.types import EngineFault, Health
from worker_adapters.llamacpp_http import LlamaCppAdapter

Run = Callable[[Any], None]

pytestmark = [
    pytest.mark.req("ORCH-3054", "OC-ADAPT-5001", partial="all but behaviour under one fault")
]


class TestConnections:
    def test_one_after_the_other_they_use_one_connection(self, fake: FakeEngine, run: Run) -> None:
        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            for _ in range(20):
                sink = await decoded(client, request_of())
                assert sink.end is not None
                # The response's last bytes may come in a read of their own.
                await client.slots()
            await client.close()

        run(scenario())
        # One of them carries the control calls.
        assert fake.server.connections_opened == 2

    def test_a_reused_connection_that_was_just_closed_is_replaced_once(
        self, fake: FakeEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            await decoded(client, request_of())
            await client.slots()
            fake.inject(FaultOnce(Fault.CLOSE_REUSED))
            sink = await decoded(client, request_of())
            await client.close()

            assert sink.text == expected_text()
            assert sink.calls.count("end") == 1

        run(scenario())
        sent = [request for request in fake.server.requests if request.path == "/completion"]
        assert len(sent) == 3

    def test_a_fresh_connection_that_dies_is_not_tried_again(
        self, fake: FakeEngine, run: Run
    ) -> None:
        fake.inject(FaultOnce(Fault.DIE))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client, request_of())
            await client.close()

            assert sink.error is not None
            assert sink.error.fault is EngineFault.RESET

        run(scenario())
        sent = [request for request in fake.server.requests if request.path == "/completion"]
        assert len(sent) == 1

    @pytest.mark.req("ORCH-3017", partial="the engine's side; the task's end is the service's")
    def test_a_cancelled_connection_is_closed_and_never_reused(
        self, fake: FakeEngine, run: Run
    ) -> None:
        fake.change(token_interval_s=0.005)

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            for _ in range(3):
                sink = RecordingSink()
                decode = client.decode(request_of(max_tokens=500), sink)
                await sink.until_tokens()
                decode.cancel()
            await wait_until_async(lambda: fake.server.abandoned == 3, WAIT_S)
            await client.close()

        run(scenario())
        assert fake.server.connections_opened == 3

    def test_an_engine_that_came_back_on_its_port_is_used_again(
        self, fake: FakeEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            await decoded(client, request_of())
            await asyncio.to_thread(fake.kill)
            gone = await decoded(client, request_of())
            health = await client.health(2.0)
            await asyncio.to_thread(fake.start)
            back = await decoded(client, request_of())
            await client.close()

            assert gone.error is not None
            assert gone.error.fault is EngineFault.RESET
            assert health is Health.DOWN
            assert back.text == expected_text()

        run(scenario())


@pytest.mark.req("ORCH-3010", partial="all but what the adapter does for it")
def test_a_probe_is_answered_however_many_slow_calls_are_under_way(
    fake: FakeEngine, run: Run
) -> None:
    slow = ["/embedding", "/rerank", "/tokenize", "/apply-template"]
    fake.change(hung_paths=frozenset(slow))

    async def scenario() -> None:
        client = LlamaCppAdapter().connect(fake.url)
        calls: list[asyncio.Future[Any]] = []
        for _ in range(8):
            calls += [
                asyncio.ensure_future(client.embed(["a"])),
                asyncio.ensure_future(client.rerank("a", ["b"])),
                asyncio.ensure_future(client.count_tokens("a")),
                asyncio.ensure_future(client.apply_template([{"role": "user", "content": "a"}])),
            ]
        asked = [path for path in slow for _ in range(8)]
        try:
            await wait_until_async(
                lambda: sorted(r.path for r in fake.server.requests) == sorted(asked),
                WAIT_S,
                "every slow call is with the engine",
            )

            assert await client.health(1.0) is Health.OK
            assert len(await client.slots()) == 2
            assert await client.metrics()
        finally:
            for call in calls:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)
            await client.close()

    run(scenario())
