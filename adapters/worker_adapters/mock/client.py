"""The mock behind `EngineAdapter` and `EngineClient`.

Shipped as product code, as httpx ships its mock transport: whoever writes a service or a plugin
tests against an engine that passes the very conformance suite the real ones pass. It can never be
configured for a pool: `mock` is not in the closed list of engines (ORCH-2008). Invariant: one URL
is one engine, so a "restart" or a second client meets the same state. Requirements: ORCH-3058.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from worker_adapters.adapter_api import metric_names
from worker_adapters.adapter_api.faults import reset
from worker_adapters.adapter_api.types import (
    UNKNOWN_DIGEST,
    Decode,
    DecodeRequest,
    EngineError,
    EngineFault,
    EngineProperties,
    Health,
    SlotState,
    TokenSink,
)
from worker_adapters.mock.engine import LoopScheduler, MockDecode, MockEngine, Scheduler
from worker_adapters.mock.script import (
    MockScript,
    score_of,
    split_tokens,
    template_of,
    vector_of,
)


class MockAdapter:
    """Engines by URL; each is made from `script` when its URL is first connected to."""

    engine = "mock"

    def __init__(
        self, script: MockScript | None = None, scheduler: Scheduler | None = None
    ) -> None:
        self._script = script or MockScript()
        self._scheduler = scheduler or LoopScheduler()
        self._engines: dict[str, MockEngine] = {}

    def engine_at(self, url: str) -> MockEngine:
        """The engine at `url`, to inject faults into or to look at."""
        engine = self._engines.get(url)
        if engine is None:
            engine = self._engines[url] = MockEngine(self._script, self._scheduler)
        return engine

    def connect(self, url: str, *, model_digest: str | None = None) -> MockClient:
        """A client of the engine at `url`; any text is a URL here."""
        return MockClient(self.engine_at(url), model_digest)


class MockClient:
    """One client of a scripted engine."""

    def __init__(self, engine: MockEngine, model_digest: str | None) -> None:
        self._engine = engine
        self._configured_digest = model_digest
        self._decodes: list[MockDecode] = []

    async def health(self, timeout_s: float) -> Health:
        return self._engine.health

    async def properties(self) -> EngineProperties:
        self._engine.require_up()
        script = self._engine.script
        return EngineProperties(
            engine_version=script.engine_version,
            model_digest=script.model_digest or self._configured_digest or UNKNOWN_DIGEST,
            model_name=script.model_name,
            slots_total=script.slots_total,
            ctx_max=script.ctx_max,
            kv_bytes_per_token=script.kv_bytes_per_token,
            settings="mock",
            features=script.features,
        )

    async def count_tokens(self, text: str) -> int:
        self._engine.require_up()
        return len(split_tokens(text))

    async def apply_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        self._engine.require_up()
        return template_of(list(messages))

    async def slots(self) -> list[SlotState]:
        engine = self._engine
        engine.require_up()
        return [
            SlotState(slot, engine.is_busy(slot), engine.kv_tokens(slot))
            for slot in range(engine.script.slots_total)
        ]

    async def metrics(self) -> dict[str, float]:
        engine = self._engine
        engine.require_up()
        slots = engine.script.slots_total
        used = sum(engine.kv_tokens(slot) for slot in range(slots))
        return {
            metric_names.REQUESTS_RUNNING: engine.running_count,
            metric_names.REQUESTS_WAITING: engine.waiting_count,
            metric_names.PROMPT_TOKENS_TOTAL: engine.prompt_tokens,
            metric_names.PROMPT_TOKENS_CACHED_TOTAL: engine.cached_tokens,
            metric_names.GENERATED_TOKENS_TOTAL: engine.generated_tokens,
            metric_names.KV_CACHE_USAGE_RATIO: min(1.0, used / (slots * engine.script.ctx_max)),
        }

    async def embed(self, inputs: Sequence[str]) -> list[list[float]]:
        self._require("embeddings")
        return [vector_of(text) for text in inputs]

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        self._require("rerank")
        return [score_of(query, document) for document in documents]

    def decode(self, request: DecodeRequest, sink: TokenSink) -> Decode:
        decode = self._engine.begin(request, sink)
        self._decodes = [known for known in self._decodes if known.is_open]
        self._decodes.append(decode)
        return decode

    async def close(self) -> None:
        for decode in self._decodes:
            decode.fail(reset("the client was closed"))
        self._decodes.clear()

    def _require(self, feature: str) -> None:
        self._engine.require_up()
        if feature not in self._engine.script.features:
            raise EngineError(EngineFault.UNSUPPORTED, f"this engine does not offer {feature}")
