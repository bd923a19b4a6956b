"""What only a real llama.cpp can show: its identity, its cache, its embeddings, its silence."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from importlib.metadata import version
from typing import Any

import pytest

from harness_kit.llamacpp_engine import LlamaCppEngine
from harness_kit.recording_sink import RecordingSink
from worker_adapters.adapter_api.types import DecodeRequest, Health, Sampling
from worker_adapters.llamacpp_http import LlamaCppAdapter

Run = Callable[[Any], None]
PROMPT = "The river was low and we walked on toward a house with green doors, then it rained"


@pytest.fixture(scope="module")
def real() -> Iterator[LlamaCppEngine]:
    with LlamaCppEngine(extra=("--embedding",)) as engine:
        yield engine


def request_of(max_tokens: int, *, cold: bool = True) -> DecodeRequest:
    return DecodeRequest(PROMPT, max_tokens, 7, Sampling(temperature=0.8), cold)


@pytest.mark.req("OC-ADAPT-5011")
@pytest.mark.req("ORCH-3032", partial="all but the adapter's part")
@pytest.mark.req("ORCH-3054", "OC-ADAPT-5001", partial="all but version and digest")
def test_it_is_known_by_its_package_and_the_digest_of_its_file(
    real: LlamaCppEngine, run: Run
) -> None:
    summed = subprocess.run(
        ["sha256sum", str(real.model_path)], capture_output=True, check=True, text=True
    )

    async def scenario() -> None:
        client = LlamaCppAdapter().connect(real.url, model_digest="sha256:configured")
        properties = await client.properties()
        await client.close()

        assert properties.engine_version == f"llama.cpp xllamacpp-{version('xllamacpp')}"
        assert properties.model_digest == "sha256:" + summed.stdout.split()[0]
        # 30 layers, 3 KV heads of 64 each, K and V, two bytes.
        assert properties.kv_bytes_per_token == 30 * 3 * 64 * 2 * 2
        assert {"embeddings", "interruptible_decode"} <= properties.features
        assert "rerank" not in properties.features

    run(scenario())


def test_a_warm_prefix_shows_in_the_end_figures(real: LlamaCppEngine, run: Run) -> None:
    async def scenario() -> None:
        client = LlamaCppAdapter().connect(real.url)
        ends = []
        for cold in (True, False):
            sink = RecordingSink()
            client.decode(request_of(8, cold=cold), sink)
            await sink.until_over()
            ends.append(sink.end)
        held = max(slot.kv_tokens for slot in await client.slots())
        await client.close()

        first, second = ends
        assert first is not None
        assert second is not None
        assert first.cached_tokens == 0
        assert second.cached_tokens > first.tokens_in // 2
        assert second.tokens_in == first.tokens_in
        assert held >= first.tokens_in
        assert first.prefill_ms > 0
        assert first.decode_ms > 0

    run(scenario())


def test_like_texts_have_like_embeddings(real: LlamaCppEngine, run: Run) -> None:
    texts = [PROMPT, PROMPT, "def main(argv): return 0"]

    async def scenario() -> None:
        client = LlamaCppAdapter().connect(real.url)
        one, same, other = await client.embed(texts)
        await client.close()

        assert len(one) == len(other) == 576
        assert one == pytest.approx(same, abs=1e-3)
        assert one != pytest.approx(other, abs=1e-3)

    run(scenario())


def test_a_stopped_engine_is_silent_and_goes_on_with_nothing_lost(
    real: LlamaCppEngine, run: Run
) -> None:
    async def scenario() -> None:
        client = LlamaCppAdapter().connect(real.url)
        whole = RecordingSink()
        client.decode(request_of(48), whole)
        await whole.until_over()
        sink = RecordingSink()
        client.decode(request_of(48), sink)
        await sink.until_tokens(4)
        os.kill(real.pid, signal.SIGSTOP)
        try:
            stopped = await client.health(0.5)
            over_while_stopped = sink.is_over
        finally:
            os.kill(real.pid, signal.SIGCONT)
        await sink.until_over()
        await client.close()

        assert stopped is Health.DOWN
        assert not over_while_stopped
        assert sink.end is not None
        assert sink.text == whole.text

    run(scenario())
