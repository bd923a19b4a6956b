"""The llama.cpp adapter against an engine that misbehaves on its sockets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from harness_kit.fake_completion import chunk_payload, sse
from harness_kit.fake_engine import FakeEngine
from harness_kit.fake_engine_script import Fault, FaultOnce
from harness_kit.recording_sink import WAIT_S, RecordingSink
from harness_kit.waiting import wait_until, wait_until_async
from worker_adapters.adapter_api.types import (
    Decode,
    DecodeRequest,
    EngineClient,
    EngineError,
    EngineFault,
    Health,
    Sampling,
)
from worker_adapters.llamacpp_http import LlamaCppAdapter
from worker_adapters.mock.script import answer_of

Run = Callable[[Any], None]
GREEDY = Sampling()
FINAL = b'{"content":"","stop":true,"stop_type":"eos","tokens_predicted":2,"tokens_evaluated":3}'

pytestmark = [
    pytest.mark.req("ORCH-3054", "OC-ADAPT-5001", partial="all but behaviour under one fault")
]


def request_of(prompt: str = "one two three", max_tokens: int = 12) -> DecodeRequest:
    return DecodeRequest(prompt, max_tokens, 7, GREEDY, True)


def expected_text(prompt: str = "one two three", max_tokens: int = 12) -> str:
    return "".join(answer_of(prompt, 7, GREEDY, max_tokens).pieces)


async def decoded(client: EngineClient, request: DecodeRequest | None = None) -> RecordingSink:
    sink = RecordingSink()
    client.decode(request or request_of(), sink)
    await sink.until_over()
    return sink


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
            sink = await decoded(client)
            after = await decoded(client)
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
            sink = await decoded(client)
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
            sink = await decoded(client)
            await client.close()

            assert sink.error is not None
            assert sink.error.fault is EngineFault.INTERNAL
            assert sink.error.message == "the engine answered 502"

        run(scenario())

    def test_an_answer_that_is_no_http_is_malformed(self, fake: FakeEngine, run: Run) -> None:
        fake.inject(FaultOnce(Fault.NOT_HTTP))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client)
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
            sink = await decoded(client)
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
            sink = await decoded(client)
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
            after = await decoded(client)
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
            sink = await decoded(client)
            await client.close()

            assert sink.reads == [[b"a", b" end"]]
            assert sink.end is not None
            assert (sink.end.stop_reason, sink.end.tokens_in, sink.end.tokens_out) == ("eos", 3, 2)

        run(scenario())

    def test_an_unknown_way_to_stop_is_malformed(self, fake: FakeEngine, run: Run) -> None:
        fake.inject(FaultOnce(Fault.PLAY, writes=(sse(FINAL.replace(b"eos", b"tea")),)))

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            sink = await decoded(client)
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


class TestConnections:
    def test_one_after_the_other_they_use_one_connection(self, fake: FakeEngine, run: Run) -> None:
        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            for _ in range(20):
                sink = await decoded(client)
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
            await decoded(client)
            await client.slots()
            fake.inject(FaultOnce(Fault.CLOSE_REUSED))
            sink = await decoded(client)
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
            sink = await decoded(client)
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
            await decoded(client)
            await asyncio.to_thread(fake.kill)
            gone = await decoded(client)
            health = await client.health(2.0)
            await asyncio.to_thread(fake.start)
            back = await decoded(client)
            await client.close()

            assert gone.error is not None
            assert gone.error.fault is EngineFault.RESET
            assert health is Health.DOWN
            assert back.text == expected_text()

        run(scenario())


class TestRequests:
    @pytest.mark.req("OC-ADAPT-5002", "ORCH-3058")
    def test_only_the_native_api_is_called(self, fake: FakeEngine, run: Run) -> None:
        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            await client.health(2.0)
            await client.properties()
            await client.count_tokens("one two")
            await client.apply_template([{"role": "user", "content": "hi"}])
            await client.slots()
            await client.metrics()
            await client.embed(["a"])
            await client.rerank("a", ["a"])
            await decoded(client)
            await client.close()

        run(scenario())
        paths = {request.path for request in fake.server.requests}
        native = "health props tokenize apply-template slots metrics embedding rerank completion"
        assert paths == {f"/{name}" for name in native.split()}

    @pytest.mark.req("ORCH-3058", "OC-ADAPT-5010")
    def test_every_sampler_setting_is_sent_and_no_other_sampler_runs(
        self, fake: FakeEngine, run: Run
    ) -> None:
        sampling = Sampling(0.5, 0.9, 40, 0.05, 1.1, ("\n", "END"))
        request = DecodeRequest("hi", 3, 2**40 + 9, sampling, False, "corr-1")

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            await decoded(client, request)
            await client.close()

        run(scenario())
        seen = fake.server.requests[-1]
        body = json.loads(seen.body)
        assert seen.headers["x-correlation-id"] == "corr-1"
        wanted = {
            "prompt": "hi",
            "n_predict": 3,
            "seed": 9,
            "cache_prompt": True,
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.05,
            "repeat_penalty": 1.1,
            "stop": ["\n", "END"],
            "stream": True,
            "return_progress": True,
        }
        assert {name: body[name] for name in wanted} == wanted
        assert body["samplers"] == ["penalties", "top_k", "top_p", "min_p", "temperature"]
        assert body["presence_penalty"] == body["frequency_penalty"] == body["mirostat"] == 0

    def test_prompts_are_counted_with_the_special_tokens_of_a_completion(
        self, fake: FakeEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            count = await client.count_tokens("one <|im_end|> two")
            await client.close()

            assert count == 3

        run(scenario())
        asked = json.loads(fake.server.requests[-1].body)
        assert asked == {
            "content": "one <|im_end|> two",
            "add_special": True,
            "parse_special": True,
        }

    def test_a_correlation_id_cannot_add_a_header(self, fake: FakeEngine, run: Run) -> None:
        request = DecodeRequest("hi", 3, 1, GREEDY, True, "x\r\nInjected: 1")

        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            await decoded(client, request)
            await client.close()

        run(scenario())
        assert "injected" not in fake.server.requests[-1].headers
        assert "x-correlation-id" not in fake.server.requests[-1].headers

    def test_embeddings_and_scores_come_in_the_order_of_the_inputs(
        self, fake: FakeEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            one, other = await client.embed(["a cat", "two dogs"])
            scores = await client.rerank("two dogs", ["a cat", "two dogs", "two cats"])
            fake.change(flat_embeddings=True)
            flat = await client.embed(["two dogs"])
            await client.close()

            assert one != other
            assert flat == [other]
            assert scores == [0.0, 1.0, 0.5]

        run(scenario())

    @pytest.mark.req("OC-ADAPT-5011")
    @pytest.mark.req("ORCH-3032", partial="the adapter's part")
    def test_the_configured_digest_counts_only_where_the_file_cannot_be_read(
        self, fake: FakeEngine, run: Run, tmp_path: Any
    ) -> None:
        # SHA-256 of "abc": FIPS 180-2, appendix B.1.
        abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        model = tmp_path / "model.gguf"
        model.write_bytes(b"abc")

        async def scenario() -> None:
            adapter = LlamaCppAdapter()
            client = adapter.connect(fake.url, model_digest="sha256:configured")
            unknown = adapter.connect(fake.url)
            fake.change(model_path=str(model))
            readable = await client.properties()
            model.write_bytes(b"other")
            changed = await client.properties()
            fake.change(model_path=str(tmp_path / "missing.gguf"))
            missing = await client.properties()
            nothing = await unknown.properties()
            await client.close()
            await unknown.close()

            assert readable.model_digest == f"sha256:{abc}"
            assert readable.kv_bytes_per_token == 0  # it is no GGUF file
            assert changed.model_digest not in (f"sha256:{abc}", "sha256:configured")
            assert missing.model_digest == "sha256:configured"
            assert nothing.model_digest == "unknown"

        run(scenario())

    def test_settings_that_change_bytes_change_the_settings_digest(
        self, fake: FakeEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            before = await client.properties()
            fake.change(model_alias="fake@v1+ubatch=64")
            launched = await client.properties()
            fake.change(chat_template="other")
            templated = await client.properties()
            await client.close()

            assert len({before.settings, launched.settings, templated.settings}) == 3
            assert (launched.model_name, launched.engine_version) == ("fake", "llama.cpp v1")
            assert before.engine_version == "llama.cpp b11549-fake"

        run(scenario())

    def test_control_calls_fail_with_a_typed_error(self, fake: FakeEngine, run: Run) -> None:
        async def scenario() -> None:
            client = LlamaCppAdapter().connect(fake.url)
            faults = []
            for change in (
                {"health_status": 503},
                {"health_status": 500},
            ):
                fake.change(**change)
                with pytest.raises(EngineError) as failure:
                    await client.properties()
                faults.append(failure.value.fault)
            health = await client.health(2.0)
            await client.close()

            assert faults == [EngineFault.UNAVAILABLE, EngineFault.INTERNAL]
            assert health is Health.DOWN

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
