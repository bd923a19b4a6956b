"""The llama.cpp adapter, however the engine cuts its answer into reads and chunks."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from harness_kit.fake_completion import chunk_payload, sse
from harness_kit.fake_engine import FakeEngine
from harness_kit.fake_engine_script import Fault, FaultOnce
from harness_kit.greedy_decodes import expected_text, request_of
from harness_kit.recording_sink import RecordingSink, decoded
from worker_adapters.adapter_api.types import Decode, EngineFault
from worker_adapters.llamacpp_http import LlamaCppAdapter

Run = Callable[[Any], None]
FINAL = b'{"content":"","stop":true,"stop_type":"eos","tokens_predicted":2,"tokens_evaluated":3}'

pytestmark = [
    pytest.mark.req("ORCH-3054", "OC-ADAPT-5001", partial="all but behaviour under one fault")
]


class TestChunking:
    def test_a_character_is_whole_wherever_a_read_ends(self, fake: FakeEngine, run: Run) -> None:
        first = sse(chunk_payload("é", 0, 3))
        second = sse(chunk_payload("雨🌧", 1, 3)) + sse(FINAL)

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            for place in range(len(second)):
                fake.inject(FaultOnce(Fault.PLAY, writes=(first + second[:place], second[place:])))
                sink = RecordingSink()
                client.decode(request_of(), sink)
                await sink.until_tokens(1)  # so the first write was read, with what it cut
                fake.go_on()
                await sink.until_over()

                assert sink.end is not None, f"cut at {place}: {sink.error}"
                assert sink.pieces == ["é".encode(), "雨🌧".encode()], f"cut at {place}"
            await client.close()

        run(scenario())

    def test_a_character_in_halves_is_joined(self, fake: FakeEngine, run: Run) -> None:
        def raw(content: bytes) -> bytes:
            return sse(b'{"content":"' + content + b'","stop":false}')

        rain = "🌧".encode()
        writes = [
            raw(b"a\\ud83c") + raw(b"\\udf27b"),  # a surrogate pair in two events
            raw(rain[:1]) + raw(rain[1:3]) + raw(rain[3:] + b"c"),  # UTF-8 bytes in three
            raw(b"\\ud83c") + raw(b"d"),  # a first half that stays alone
            raw(rain[:2]) + sse(FINAL),  # one that the end cuts off
        ]
        fake.inject(FaultOnce(Fault.PLAY, writes=(b"".join(writes),)))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client, request_of())
            await client.close()

            assert sink.error is None
            assert sink.text == "a🌧b🌧c\ufffdd\ufffd"
            assert all(piece.decode() for piece in sink.pieces)

        run(scenario())

    def test_a_first_half_at_the_very_end_is_not_lost(self, fake: FakeEngine, run: Run) -> None:
        half = sse(b'{"content":"a\\ud83c","stop":false}')
        fake.inject(FaultOnce(Fault.PLAY, writes=(half + sse(FINAL),)))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client, request_of())
            await client.close()

            assert sink.error is None
            assert sink.text == "a\ufffd"

        run(scenario())

    @pytest.mark.req("ORCH-3017", partial="the engine's side; the task's end is the service's")
    def test_an_end_in_the_read_that_caused_a_cancel_is_not_told(
        self, fake: FakeEngine, run: Run
    ) -> None:
        fake.inject(FaultOnce(Fault.PLAY, writes=(sse(chunk_payload("a", 0, 3)) + sse(FINAL),)))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            decodes: list[Decode] = []
            sink = RecordingSink(on_first_tokens=lambda: decodes[0].cancel())
            decodes.append(client.decode(request_of(), sink))
            await sink.until_tokens()
            after = await decoded(client, request_of())
            await client.close()

            assert sink.calls == ["tokens"]
            assert after.text == expected_text()

        run(scenario())

    def test_an_engine_that_escapes_everything_gives_the_same_bytes(
        self, fake: FakeEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            plain = await decoded(client, request_of(max_tokens=64))
            fake.change(ascii_only=True)
            escaped = await decoded(client, request_of(max_tokens=64))
            await client.close()

            assert escaped.pieces == plain.pieces
            assert plain.text == expected_text(max_tokens=64)
            assert "🌧" in plain.text

        run(scenario())

    def test_tokens_of_one_read_come_in_one_call(self, fake: FakeEngine, run: Run) -> None:
        fake.change(tokens_per_write=8)

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client, request_of(max_tokens=8))
            await client.close()

            assert [len(read) for read in sink.reads] == [8]

        run(scenario())

    def test_text_in_the_final_chunk_is_a_token(self, fake: FakeEngine, run: Run) -> None:
        final = FINAL.replace(b'"content":""', b'"content":" end"')
        fake.inject(FaultOnce(Fault.PLAY, writes=(sse(chunk_payload("a", 0, 3)) + sse(final),)))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client, request_of())
            await client.close()

            assert sink.reads == [[b"a", b" end"]]
            assert sink.end is not None
            assert (sink.end.stop_reason, sink.end.tokens_in, sink.end.tokens_out) == ("eos", 3, 2)

        run(scenario())

    def test_an_unknown_way_to_stop_is_malformed(self, fake: FakeEngine, run: Run) -> None:
        fake.inject(FaultOnce(Fault.PLAY, writes=(sse(FINAL.replace(b"eos", b"tea")),)))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client, request_of())
            await client.close()

            assert sink.calls == ["error"]
            assert sink.error is not None
            assert sink.error.fault is EngineFault.MALFORMED

        run(scenario())

    def test_a_final_chunk_that_repeats_a_long_prompt_is_no_overflow(
        self, fake: FakeEngine, run: Run
    ) -> None:
        prompt = "é" * 700_000  # more than an event may have, before it is escaped
        repeated = json.dumps({"prompt": prompt})[1:-1].encode()
        final = FINAL[:-1] + b"," + repeated + b"}"
        fake.inject(FaultOnce(Fault.PLAY, writes=(sse(final),)))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client, request_of(prompt))
            await client.close()

            assert sink.error is None
            assert len(final) > 1 << 20

        run(scenario())
