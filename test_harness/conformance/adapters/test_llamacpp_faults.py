"""The llama.cpp adapter against an engine that misbehaves on its sockets."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from harness_kit.fake_engine import FakeEngine
from harness_kit.fake_engine_script import Fault, FaultOnce
from harness_kit.greedy_decodes import GREEDY, expected_text, request_of
from harness_kit.recording_sink import WAIT_S, RecordingSink, decoded
from harness_kit.waiting import wait_until, wait_until_async
from worker_adapters.adapter_api.types import EngineFault
from worker_adapters.llamacpp_http import LlamaCppAdapter
from worker_adapters.mock.script import answer_of

Run = Callable[[Any], None]

pytestmark = [
    pytest.mark.req("ORCH-3054", "OC-ADAPT-5001", partial="all but behaviour under one fault")
]


class TestFaultsOfAStream:
    @pytest.mark.parametrize(
        ("kind", "fault"),
        [
            (Fault.DIE, EngineFault.RESET),
            (Fault.END, EngineFault.RESET),
            (Fault.GARBLE, EngineFault.MALFORMED),
            (Fault.FOREIGN, EngineFault.MALFORMED),
            (Fault.ERROR, EngineFault.INTERNAL),
            (Fault.HUGE, EngineFault.MALFORMED),
            (Fault.EXTRA, EngineFault.MALFORMED),
        ],
    )
    @pytest.mark.parametrize("after_tokens", [0, 1, 5])
    def test_what_came_before_the_fault_is_kept_and_the_fault_is_told_once(
        self, fake: FakeEngine, run: Run, kind: Fault, fault: EngineFault, after_tokens: int
    ) -> None:
        fake.inject(FaultOnce(kind, after_tokens))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client, request_of())
            after = await decoded(client, request_of())
            await client.close()

            assert sink.error is not None
            assert sink.error.fault is fault
            assert sink.calls.count("error") == 1
            assert sink.text.startswith(
                "".join(answer_of("one two three", 7, GREEDY, 12).pieces[:after_tokens])
            )
            assert kind is Fault.EXTRA or len(sink.pieces) == after_tokens
            assert len(sink.pieces) <= 13
            assert after.text == expected_text()

        run(scenario())
        wait_until(lambda: not fake.server.running, WAIT_S, "every slot free")

    @pytest.mark.parametrize(
        ("status", "kind", "fault"),
        [
            (503, "unavailable_error", EngineFault.UNAVAILABLE),
            (429, "rate_limit", EngineFault.UNAVAILABLE),
            (501, "not_supported_error", EngineFault.UNSUPPORTED),
            (400, "invalid_request_error", EngineFault.INVALID),
            (400, "exceed_context_size_error", EngineFault.CONTEXT),
            (500, "server_error", EngineFault.INTERNAL),
            (418, "teapot", EngineFault.INVALID),
        ],
    )
    def test_a_refusal_becomes_its_fault_with_the_engines_words(
        self, fake: FakeEngine, run: Run, status: int, kind: str, fault: EngineFault
    ) -> None:
        body = json.dumps({"error": {"code": status, "message": "no\nsuch luck", "type": kind}})
        fake.inject(FaultOnce(Fault.REFUSE, status=status, body=body.encode()))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client, request_of())
            await client.close()

            assert sink.calls == ["error"]
            assert sink.error is not None
            assert (sink.error.fault, sink.error.message) == (fault, "no such luck")

        run(scenario())

    def test_a_refusal_that_is_no_json_still_has_a_message(
        self, fake: FakeEngine, run: Run
    ) -> None:
        fake.inject(FaultOnce(Fault.REFUSE, status=502, body=b"<html>" + b"x" * 200_000))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client, request_of())
            await client.close()

            assert sink.error is not None
            assert sink.error.fault is EngineFault.INTERNAL
            assert sink.error.message == "the engine answered 502"

        run(scenario())

    def test_an_answer_that_is_no_http_is_malformed(self, fake: FakeEngine, run: Run) -> None:
        fake.inject(FaultOnce(Fault.NOT_HTTP))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client, request_of())
            await client.close()

            assert sink.calls == ["error"]
            assert sink.error is not None
            assert sink.error.fault is EngineFault.MALFORMED

        run(scenario())

    @pytest.mark.req("ORCH-3017", partial="the engine's side; the task's end is the service's")
    @pytest.mark.parametrize("after_tokens", [0, 2])
    def test_a_silent_engine_causes_no_callback_and_can_be_cancelled(
        self, fake: FakeEngine, run: Run, after_tokens: int
    ) -> None:
        fake.inject(FaultOnce(Fault.SILENT, after_tokens))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = RecordingSink()
            decode = client.decode(request_of(), sink)
            await wait_until_async(lambda: bool(fake.server.running), WAIT_S)
            if after_tokens:
                await sink.until_tokens(after_tokens)
            heard = list(sink.calls)
            for _ in range(3):  # round trips in which a callback would have come
                await client.slots()
            before_cancel = list(sink.calls)
            decode.cancel()
            await wait_until_async(lambda: not fake.server.running, WAIT_S)
            await client.close()

            assert before_cancel == heard
            assert len(sink.pieces) == after_tokens
            assert sink.calls == heard
            assert fake.server.abandoned == 1

        run(scenario())

    @pytest.mark.req("ORCH-3017", partial="the engine's side; the task's end is the service's")
    def test_a_slow_engine_is_waited_for_until_it_is_cancelled(
        self, fake: FakeEngine, run: Run
    ) -> None:
        fake.inject(FaultOnce(Fault.SLOW, 3, slow_s=60.0))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = RecordingSink()
            decode = client.decode(request_of(), sink)
            await sink.until_tokens(4)
            decode.cancel()
            await wait_until_async(lambda: not fake.server.running, WAIT_S)
            await client.close()

            assert len(sink.pieces) == 4
            assert not sink.is_over

        run(scenario())
