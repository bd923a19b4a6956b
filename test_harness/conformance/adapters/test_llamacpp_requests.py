"""What the llama.cpp adapter asks of an engine, and what it makes of the answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest

from harness_kit.fake_engine import FakeEngine
from harness_kit.greedy_decodes import GREEDY, request_of
from harness_kit.recording_sink import decoded
from worker_adapters.adapter_api.types import (
    DecodeRequest,
    EngineError,
    EngineFault,
    Health,
    Sampling,
)
from worker_adapters.llamacpp_http import LlamaCppAdapter

Run = Callable[[Any], None]

pytestmark = [
    pytest.mark.req("ORCH-3054", "OC-ADAPT-5001", partial="all but behaviour under one fault")
]


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
            await decoded(client, request_of())
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
