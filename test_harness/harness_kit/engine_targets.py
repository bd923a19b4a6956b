"""Every engine adapter as the conformance suite meets it: started, with two slots of 1024 tokens.

A new adapter is added here and has to pass what the others pass. `long_tokens` is an answer that
lasts until it is cancelled, `slow_prompt` one whose prefill takes several steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

from harness_kit.fake_engine import FakeEngine
from harness_kit.fake_engine_script import FakeScript
from harness_kit.llamacpp_engine import MODEL, LlamaCppEngine
from worker_adapters.adapter_api.types import EngineAdapter, Health
from worker_adapters.llamacpp_http import LlamaCppAdapter
from worker_adapters.mock import MockAdapter, MockScript

SLOTS = 2
CTX = 1024
_mock_urls = (f"mock://engine-{number}" for number in count())


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """One engine that serves; `kill` ends it as a crash does."""

    adapter: EngineAdapter
    url: str
    version: str  # what the engine version has to begin with
    kill: Callable[[], None]
    long_tokens: int = 900
    slow_prompt: str = "the river was low and we walked on " * 110  # 880 to 890 tokens


@dataclass(frozen=True, slots=True)
class Replicas:
    """Real engines for the determinism suite: `start` runs one with so many slots and gives its URL
    and what reads the settings that its process shows; with one slot they are `single_request`."""

    model: str
    start: Callable[[int], AbstractContextManager[tuple[str, Callable[[], Mapping[str, Any]]]]]
    single_request: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EngineTarget:
    """`running` starts an engine of its own; `loading` one that still loads, with what makes it
    ready (None where time does); `replicas` where it is a real engine, whose bytes count."""

    engine: str
    running: Callable[[], AbstractContextManager[RunningEngine]]
    loading: Callable[
        [], AbstractContextManager[tuple[EngineAdapter, str, Callable[[], None] | None]]
    ]
    replicas: Replicas | None = None


_MOCK_SCRIPT = MockScript(slots_total=SLOTS, ctx_max=CTX, token_delay_ms=2.0, prefill_delay_ms=20.0)
_FAKE_SCRIPT = FakeScript(
    slots_total=SLOTS, ctx_max=CTX, token_interval_s=0.002, prefill_interval_s=0.02
)


@contextmanager
def _mock() -> Iterator[RunningEngine]:
    adapter, url = MockAdapter(_MOCK_SCRIPT), next(_mock_urls)
    yield RunningEngine(adapter, url, "mock 1", adapter.engine_at(url).kill)


@contextmanager
def _mock_loading() -> Iterator[tuple[EngineAdapter, str, Callable[[], None] | None]]:
    adapter, url = MockAdapter(_MOCK_SCRIPT), next(_mock_urls)
    engine = adapter.engine_at(url)
    engine.health = Health.LOADING
    yield adapter, url, engine.revive


@contextmanager
def _fake() -> Iterator[RunningEngine]:
    with FakeEngine(_FAKE_SCRIPT) as engine:
        adapter = LlamaCppAdapter()
        yield RunningEngine(adapter, engine.url, "llama.cpp b11549-fake", engine.kill)


@contextmanager
def _fake_loading() -> Iterator[tuple[EngineAdapter, str, Callable[[], None] | None]]:
    with FakeEngine(FakeScript(health_status=503)) as engine:
        yield LlamaCppAdapter(), engine.url, lambda: engine.change(health_status=200)


@contextmanager
def _llamacpp() -> Iterator[RunningEngine]:
    with LlamaCppEngine(ctx=CTX, parallel=SLOTS) as engine:
        adapter = LlamaCppAdapter()
        yield RunningEngine(adapter, engine.url, "llama.cpp xllamacpp-", engine.kill)


@contextmanager
def _llamacpp_loading() -> Iterator[tuple[EngineAdapter, str, Callable[[], None] | None]]:
    engine = LlamaCppEngine(ctx=CTX, parallel=SLOTS)
    try:
        engine.launch()
        yield LlamaCppAdapter(), engine.url, None
    finally:
        engine.__exit__()


@contextmanager
def _llamacpp_replica(slots: int) -> Iterator[tuple[str, Callable[[], Mapping[str, Any]]]]:
    # Measured: one slot without continuous batching gives the same bytes in every process.
    alone = ("--no-cont-batching",) if slots == 1 else ()
    with LlamaCppEngine(ctx=CTX, parallel=slots, extra=alone) as engine:
        yield engine.url, engine.settings


TARGETS: Mapping[str, EngineTarget] = {
    "mock": EngineTarget("mock", _mock, _mock_loading),
    "llamacpp-fake": EngineTarget("llamacpp", _fake, _fake_loading),
    "llamacpp-real": EngineTarget(
        "llamacpp",
        _llamacpp,
        _llamacpp_loading,
        Replicas(
            MODEL,
            _llamacpp_replica,
            {
                "total_slots": 1,
                "cont_batching": False,
                "threads": 1,
                "model": MODEL,
                "prompt_tokens_cached": 0,
            },
        ),
    ),
}
