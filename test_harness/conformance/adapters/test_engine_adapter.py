"""What every engine adapter promises, proved on each of them: one suite, many engines."""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from harness_kit.engine_targets import CTX, SLOTS, TARGETS, EngineTarget, RunningEngine
from harness_kit.recording_sink import WAIT_S, RecordingSink, decoded
from worker_adapters.adapter_api import metric_names
from worker_adapters.adapter_api.types import (
    Decode,
    DecodeRequest,
    EngineClient,
    EngineError,
    EngineFault,
    Health,
    Sampling,
)

Run = Callable[[Any], None]
ROOT = Path(__file__).parents[3]
PROMPT = "Once upon a time, a café 雨 stood at the river"
SAMPLED = Sampling(temperature=0.8, top_p=0.95, top_k=40)


def request_of(
    prompt: str = PROMPT,
    max_tokens: int = 24,
    *,
    seed: int = 7,
    sampling: Sampling = SAMPLED,
    cold: bool = True,
) -> DecodeRequest:
    return DecodeRequest(prompt, max_tokens, seed, sampling, cold, "conformance-1")


async def wait_for_busy(client: EngineClient, count: int) -> None:
    """Until exactly `count` slots are busy."""
    async with asyncio.timeout(WAIT_S):
        while True:
            if sum(slot.busy for slot in await client.slots()) == count:
                return
            await asyncio.sleep(0)


async def turn_loop(times: int = 50) -> None:
    """Let everything that is due happen."""
    for _ in range(times):
        await asyncio.sleep(0)


def test_every_adapter_that_is_registered_has_a_target() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    registered = set(project["entry-points"]["llama_orch.engine_adapters"])

    assert {target.engine for target in TARGETS.values()} == registered
    assert "llamacpp-real" in TARGETS


@pytest.mark.req("ORCH-3054", "OC-ADAPT-5001", partial="all but one property of one operation")
class TestControl:
    @pytest.mark.req("ORCH-3054", "OC-ADAPT-5001")
    def test_a_serving_engine_is_healthy(self, engine: RunningEngine, run: Run) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)

            assert await client.health(5.0) is Health.OK
            await client.close()

        run(scenario())

    @pytest.mark.req("ORCH-3054", "OC-ADAPT-5001")
    @pytest.mark.req("OC-ADAPT-5011")
    @pytest.mark.req("ORCH-3032", partial="all but the adapter's part")
    @pytest.mark.req("ORCH-2008", partial="all but what an adapter says of itself")
    def test_properties_tell_version_digest_slots_and_context(
        self, target: EngineTarget, engine: RunningEngine, run: Run
    ) -> None:
        configured = "sha256:" + "c" * 64

        async def scenario() -> None:
            client = engine.adapter.connect(engine.url, model_digest=configured)
            first = await client.properties()
            again = await client.properties()
            await client.close()

            assert engine.adapter.engine == target.engine
            assert first.engine_version.startswith(engine.version)
            assert re.fullmatch("sha256:[0-9a-f]{64}", first.model_digest)
            assert (first.slots_total, first.ctx_max) == (SLOTS, CTX)
            assert {"interruptible_decode", "chat_template"} <= first.features
            assert first.model_name
            assert again == first

        run(scenario())

    @pytest.mark.req("ORCH-3019")
    def test_each_slot_tells_whether_it_is_busy_whoever_keeps_it_so(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            observer, somebody = (engine.adapter.connect(engine.url) for _ in range(2))
            decodes = []
            for count in range(SLOTS + 1):
                await wait_for_busy(observer, count)
                slots = await observer.slots()
                assert sorted(slot.id for slot in slots) == list(range(SLOTS))
                assert all(slot.kv_tokens > 0 for slot in slots if slot.busy)
                if count < SLOTS:
                    sink = RecordingSink()
                    request = request_of(max_tokens=engine.long_tokens, seed=count)
                    decodes.append(somebody.decode(request, sink))
                    await sink.until_tokens(1)
            for decode in decodes:
                decode.cancel()
            await wait_for_busy(observer, 0)
            await observer.close()
            await somebody.close()

        run(scenario())

    def test_prompts_are_counted_as_a_decode_counts_them(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            counted = await client.count_tokens(PROMPT)
            sink = await decoded(client, request_of(max_tokens=1))
            await client.close()

            assert sink.end is not None
            assert counted == sink.end.tokens_in
            assert counted > 3

        run(scenario())

    @pytest.mark.req("ORCH-3058", "OC-ADAPT-5010")
    def test_the_template_wraps_every_message_in_order(
        self, engine: RunningEngine, run: Run
    ) -> None:
        messages = [
            {"role": "system", "content": "You are brief."},
            {"role": "user", "content": 'Say "雨"\nplease'},
        ]

        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            prompt = await client.apply_template(messages)
            await client.close()

            first, second = prompt.find("You are brief."), prompt.find('Say "雨"\nplease')
            assert 0 <= first < second
            assert "assistant" in prompt[second:]

        run(scenario())

    @pytest.mark.req("ORCH-3054", "OC-ADAPT-5001")
    def test_metrics_come_under_our_names(self, engine: RunningEngine, run: Run) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            await decoded(client, request_of(max_tokens=4))
            figures = await client.metrics()
            await client.close()

            assert set(figures) <= metric_names.ALL
            assert figures[metric_names.REQUESTS_WAITING] == 0
            assert figures[metric_names.GENERATED_TOKENS_TOTAL] >= 4
            assert 0.0 <= figures[metric_names.KV_CACHE_USAGE_RATIO] <= 1.0

        run(scenario())

    def test_a_workload_is_a_feature_or_unsupported(self, engine: RunningEngine, run: Run) -> None:
        async def fault_of(call: Any) -> EngineFault | None:
            try:
                await call
            except EngineError as error:
                return error.fault
            return None

        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            features = (await client.properties()).features
            embedding = await fault_of(client.embed(["a cat", "two dogs"]))
            ranking = await fault_of(client.rerank("a cat", ["a cat", "two dogs"]))
            await client.close()

            unsupported = EngineFault.UNSUPPORTED
            assert embedding == (None if "embeddings" in features else unsupported)
            assert ranking == (None if "rerank" in features else unsupported)

        run(scenario())


@pytest.mark.req("ORCH-3054", "OC-ADAPT-5001", partial="all but one property of one operation")
class TestDecode:
    @pytest.mark.req("ORCH-3054", "OC-ADAPT-5001")
    def test_a_stream_is_prefill_then_tokens_then_one_end(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            sink = await decoded(client, request_of(max_tokens=16))
            await turn_loop()
            await client.close()

            shape = re.sub(r"(\w)\1*", r"\1", "".join(call[0] for call in sink.calls))
            assert shape == "pte"
            assert sink.calls.count("end") == 1
            assert all(piece for piece in sink.pieces)
            assert len(sink.reads) > 1
            end = sink.end
            assert end is not None
            assert (end.stop_reason, end.tokens_out) == ("limit", 16)
            assert sink.prefill[-1] == (end.tokens_in, end.tokens_in)
            assert sink.prefill == sorted(sink.prefill)
            assert 0 < len(sink.pieces) <= 17
            assert end.cached_tokens == 0
            assert min(end.prefill_ms, end.decode_ms) >= 0

        run(scenario())

    @pytest.mark.req("ORCH-3045", partial="the whole path, which has its own suite")
    def test_one_seed_gives_the_same_bytes_again_and_beside_others(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            first = await decoded(client, request_of(seed=11))
            again, beside = await asyncio.gather(
                decoded(client, request_of(seed=11)), decoded(client, request_of(seed=12))
            )
            await client.close()

            assert again.pieces == first.pieces
            assert beside.text != first.text

        run(scenario())

    @pytest.mark.req("ORCH-3045", partial="the whole path, which has its own suite")
    def test_no_seed_makes_the_engine_draw_one(self, engine: RunningEngine, run: Run) -> None:
        # 2**32 - 1 is llama.cpp's "random"; 2**63 - 1 is the same number in 32 bits.
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            for seed in (2**32 - 1, 2**63 - 1):
                first = await decoded(client, request_of(seed=seed))
                again = await decoded(client, request_of(seed=seed))

                assert again.text == first.text
            await client.close()

        run(scenario())

    @pytest.mark.req("ORCH-3058", "OC-ADAPT-5010")
    def test_a_stop_string_cuts_the_same_text(self, engine: RunningEngine, run: Run) -> None:
        greedy = Sampling()

        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            whole = await decoded(client, request_of(sampling=greedy))
            stop = whole.text[len(whole.text) // 2 :][:6]
            cut = await decoded(client, request_of(sampling=Sampling(stop=(stop,))))
            await client.close()

            assert cut.end is not None
            assert cut.end.stop_reason == "stop"
            assert cut.text == whole.text[: whole.text.index(stop)]

        run(scenario())

    def test_a_prompt_beyond_the_context_is_refused_as_such(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            sink = await decoded(client, request_of("word " * (CTX + 50), max_tokens=4))
            await client.close()

            assert sink.calls == ["error"]
            assert sink.error is not None
            assert sink.error.fault is EngineFault.CONTEXT

        run(scenario())

    def test_an_answer_that_fills_the_context_ends_with_context(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            words = CTX - 20
            sink = await decoded(client, request_of("river " * words, max_tokens=200))
            await client.close()

            assert sink.end is not None
            assert sink.end.stop_reason == "context"
            assert words <= sink.end.tokens_in + sink.end.tokens_out <= CTX + 1

        run(scenario())

    def test_decodes_beyond_the_slots_wait_and_all_end(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            sinks = await asyncio.gather(
                *(decoded(client, request_of(max_tokens=6, seed=seed)) for seed in range(5))
            )
            await client.close()

            assert [sink.calls[-1] for sink in sinks] == ["end"] * 5

        run(scenario())


@pytest.mark.req("ORCH-3017", partial="the task's end, which is the service's")
@pytest.mark.req("ORCH-3054", "OC-ADAPT-5001", partial="all but one property of one operation")
class TestCancel:
    @pytest.mark.req("ORCH-3054", "OC-ADAPT-5001")
    def test_a_cancelled_decode_frees_its_slot_and_says_nothing_more(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            sink = RecordingSink()
            decode = client.decode(request_of(max_tokens=engine.long_tokens), sink)
            await sink.until_tokens(3)
            await wait_for_busy(client, 1)
            heard = len(sink.calls)
            decode.cancel()
            decode.cancel()
            await wait_for_busy(client, 0)
            await turn_loop()
            await client.close()

            assert len(sink.calls) == heard
            assert not sink.is_over

        run(scenario())

    @pytest.mark.req("ORCH-3054", "OC-ADAPT-5001")
    def test_a_decode_cancelled_in_prefill_frees_its_slot(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            sink = RecordingSink()
            decode = client.decode(request_of(engine.slow_prompt), sink)
            await sink.until(lambda: bool(sink.prefill))
            decode.cancel()
            await wait_for_busy(client, 0)
            await client.close()

            processed, total = sink.prefill[-1]
            assert processed < total
            assert sink.reads == []
            assert not sink.is_over

        run(scenario())

    def test_cancelling_in_the_callback_is_the_last_word(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            decodes: list[Decode] = []
            sink = RecordingSink(on_first_tokens=lambda: decodes[0].cancel())
            decodes.append(client.decode(request_of(max_tokens=2), sink))
            await sink.until_tokens()
            await wait_for_busy(client, 0)
            await turn_loop()
            await client.close()

            assert sink.calls[-1] == "tokens"
            assert len(sink.reads) == 1

        run(scenario())

    def test_cancelling_before_anything_happened_is_silent(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            sink = RecordingSink()
            client.decode(request_of(max_tokens=engine.long_tokens), sink).cancel()
            await wait_for_busy(client, 0)
            await turn_loop()
            await client.close()

            assert sink.calls == []

        run(scenario())

    def test_a_waiting_decode_leaves_the_queue(self, engine: RunningEngine, run: Run) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            running = [RecordingSink() for _ in range(SLOTS)]
            decodes = [client.decode(request_of(max_tokens=engine.long_tokens), s) for s in running]
            for sink in running:
                await sink.until_tokens()
            waiting = RecordingSink()
            client.decode(request_of(), waiting).cancel()
            for decode in decodes:
                decode.cancel()
            await wait_for_busy(client, 0)
            sink = await decoded(client, request_of(max_tokens=4))
            await client.close()

            assert waiting.calls == []
            assert sink.end is not None

        run(scenario())

    def test_cancelling_a_finished_decode_changes_nothing(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            first, second = RecordingSink(), RecordingSink()
            decode = client.decode(request_of(max_tokens=4), first)
            await first.until_over()
            client.decode(request_of(max_tokens=4), second)
            decode.cancel()
            await second.until_over()
            await client.close()

            assert second.end is not None
            assert second.pieces == first.pieces

        run(scenario())


@pytest.mark.req("ORCH-3054", partial="all but one property of one operation")
class TestLoss:
    def test_closing_the_client_ends_what_runs_with_one_reset(
        self, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario() -> None:
            client = engine.adapter.connect(engine.url)
            other = engine.adapter.connect(engine.url)
            sink = RecordingSink()
            client.decode(request_of(max_tokens=engine.long_tokens), sink)
            await sink.until_tokens()
            await client.close()
            await wait_for_busy(other, 0)
            await other.close()

            assert sink.error is not None
            assert sink.error.fault is EngineFault.RESET
            assert sink.calls.count("error") == 1

        run(scenario())

    @pytest.mark.req("ORCH-3045", partial="the whole path, which has its own suite")
    def test_two_engines_agree_and_one_that_dies_resets_its_decode(
        self, target: EngineTarget, engine: RunningEngine, run: Run
    ) -> None:
        async def scenario(doomed: RunningEngine) -> None:
            here = engine.adapter.connect(engine.url)
            there = doomed.adapter.connect(doomed.url)
            one = await decoded(here, request_of(max_tokens=32))
            other = await decoded(there, request_of(max_tokens=32))
            sink, late = RecordingSink(), RecordingSink()
            there.decode(request_of(max_tokens=doomed.long_tokens), sink)
            await sink.until_tokens()
            doomed.kill()
            await sink.until_over()
            there.decode(request_of(), late)
            await late.until_over()
            health = await there.health(2.0)
            with pytest.raises(EngineError) as failure:
                await there.properties()
            await here.close()
            await there.close()

            assert other.pieces == one.pieces
            assert sink.error is not None
            assert sink.error.fault is EngineFault.RESET
            assert sink.calls.count("error") == 1
            assert late.calls == ["error"]
            assert late.error is not None
            assert late.error.fault is EngineFault.RESET
            assert health is Health.DOWN
            assert failure.value.fault is EngineFault.RESET

        with target.running() as doomed:
            run(scenario(doomed))

    def test_an_engine_is_loading_before_it_is_ok(self, target: EngineTarget, run: Run) -> None:
        async def scenario() -> None:
            with target.loading() as (adapter, url, make_ready):
                client = adapter.connect(url)
                seen: list[Health] = []
                async with asyncio.timeout(90.0):
                    while Health.OK not in seen:
                        health = await client.health(5.0)
                        if health not in seen[-1:]:
                            seen.append(health)
                        if health is Health.LOADING and make_ready is not None:
                            make_ready()
                        await asyncio.sleep(0)
                at_once = await decoded(client, request_of(max_tokens=1))
                await client.close()

                # An engine that nobody holds may be loaded before it is asked the first time.
                may_come = [Health.DOWN, Health.LOADING, Health.OK]
                assert seen == [health for health in may_come if health in seen]
                assert make_ready is None or Health.LOADING in seen
                assert at_once.calls[-1] == "end"

        run(scenario())
