"""The one interface between the orchestrator and an engine.

On a task's path: dispatch calls `EngineClient.decode(request, sink)`; the adapter turns engine
bytes into tokens and calls the sink, synchronously, from the event loop. Invariants every adapter
keeps (the conformance suite proves them): exactly one of `on_end` and `on_error` per decode, none
after `Decode.cancel()`; a piece is never empty and never cuts a character; everything that arrived
in one read is handed over in one `on_tokens` call; cancel closes the upstream connection.
Requirements: ORCH-3054, ORCH-3058, OC-ADAPT-5001, OC-ADAPT-5011.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

import msgspec


class Sampling(msgspec.Struct, frozen=True, gc=False):
    """Sampler settings after profile and request were merged; every field is sent to the engine."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    repeat_penalty: float = 1.0
    stop: tuple[str, ...] = ()


class DecodeRequest(msgspec.Struct, frozen=True, gc=False):
    """One decode, from the first token. `cold` forbids reuse of a cached prefix (strict tasks)."""

    prompt: str
    max_tokens: int
    seed: int
    sampling: Sampling
    cold: bool
    correlation_id: str = ""
    traceparent: str = ""  # W3C Trace Context; "": not traced


class DecodeEnd(msgspec.Struct, frozen=True, gc=False):
    """How a decode ended by itself. `cached_tokens` is what the engine says it reused."""

    stop_reason: str  # limit | eos | stop | context
    tokens_in: int
    tokens_out: int
    cached_tokens: int
    prefill_ms: int
    decode_ms: int


class EngineFault(StrEnum):
    """Why an engine call failed; closed set, mapped once to public codes in dispatch."""

    RESET = "reset"  # connection refused, cut, reset, or a stream without its final chunk
    UNAVAILABLE = "unavailable"  # 503, loading, no slot
    INVALID = "invalid"  # the engine refuses the request itself (400)
    CONTEXT = "context"  # prompt longer than the engine's context
    MALFORMED = "malformed"  # bytes that break the engine's own protocol
    INTERNAL = "internal"  # 5xx, error event in mid-stream
    UNSUPPORTED = "unsupported"  # 501: this engine does not offer the workload
    TIMEOUT = "timeout"  # a control call (health, props, tokenize) took too long


class EngineError(Exception):
    """An engine call failed. `fault` says how; the message is safe to show to a client."""

    def __init__(self, fault: EngineFault, message: str) -> None:
        super().__init__(message)
        self.fault = fault
        self.message = message


class Health(StrEnum):
    OK = "ok"
    LOADING = "loading"
    DOWN = "down"


# The model digest of an engine that cannot tell it: equal to itself only within one pool.
UNKNOWN_DIGEST = "unknown"


@dataclass(frozen=True, slots=True)
class EngineProperties:
    """What an engine says of itself once it is healthy.

    `settings` digests whatever changes output bytes beside version, digest and context;
    `kv_bytes_per_token` is 0 where it cannot be known; `features` holds names such as
    `interruptible_decode`, `embeddings`, `rerank`, `chat_template`.
    """

    engine_version: str
    model_digest: str
    model_name: str
    slots_total: int
    ctx_max: int
    kv_bytes_per_token: int = 0
    settings: str = ""
    features: frozenset[str] = field(default=frozenset())


@dataclass(frozen=True, slots=True)
class SlotState:
    id: int
    busy: bool
    kv_tokens: int


class TokenSink(Protocol):
    """Where a decode's tokens go. Called from the event loop; must not block or raise."""

    def on_prefill(self, processed_tokens: int, total_tokens: int) -> None: ...

    def on_tokens(self, pieces: list[bytes]) -> None:
        """Texts of the tokens of one read: JSON-escaped UTF-8 without the quotes, none empty."""
        ...

    def on_end(self, end: DecodeEnd) -> None: ...

    def on_error(self, error: EngineError) -> None: ...


class Decode(Protocol):
    """A running decode."""

    def cancel(self) -> None:
        """Close the upstream connection; the sink hears nothing more. Idempotent."""
        ...


class EngineClient(Protocol):
    """One replica of one engine, over its native API. Coroutines raise `EngineError` only."""

    async def health(self, timeout_s: float) -> Health: ...

    async def properties(self) -> EngineProperties: ...

    async def count_tokens(self, text: str) -> int: ...

    async def apply_template(self, messages: Sequence[Mapping[str, str]]) -> str: ...

    async def slots(self) -> list[SlotState]: ...

    async def metrics(self) -> dict[str, float]:
        """The engine's own figures under our names (see `metric_names`)."""
        ...

    async def embed(self, inputs: Sequence[str]) -> list[list[float]]: ...

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]: ...

    def decode(self, request: DecodeRequest, sink: TokenSink) -> Decode: ...

    async def close(self) -> None: ...


class EngineAdapter(Protocol):
    """What an entry point in `llama_orch.engine_adapters` names."""

    @property
    def engine(self) -> str: ...

    def connect(self, url: str, *, model_digest: str | None = None) -> EngineClient:
        """A client for the engine at `url`; `model_digest` is the configured one, used where the
        engine cannot tell and its model file cannot be read. Opens no connection yet."""
        ...
