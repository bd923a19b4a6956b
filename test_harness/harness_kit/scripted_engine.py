"""An engine without a process: a test says how it is, the pool host finds out through the port."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pool_managerd.observer import Cause
from pool_managerd.replica_state import ReplicaState
from worker_adapters.adapter_api.types import (
    Decode,
    DecodeEnd,
    DecodeRequest,
    EngineClient,
    EngineError,
    EngineFault,
    EngineProperties,
    Health,
    SlotState,
    TokenSink,
)

PROPERTIES = EngineProperties(
    engine_version="scripted 1",
    model_digest="sha256:" + "0" * 64,
    model_name="scripted",
    slots_total=4,
    ctx_max=2048,
)


@dataclass(slots=True)
class ScriptedEngine:
    """How the engine is right now. `silent`: it accepts, and never answers; `drifts`: no two
    decodes agree; `leaks_slots`: a cancel frees nothing; `telemetry_fault`, `decode_fault`: what
    these calls fail with; `mute`: a decode gives nothing, ever."""

    health: Health = Health.OK
    silent: bool = False
    properties: EngineProperties = PROPERTIES
    properties_fault: EngineFault | None = None
    decode_fault: EngineFault | None = None
    telemetry_fault: EngineFault | None = None
    drifts: bool = False
    leaks_slots: bool = False
    mute: bool = False
    decodes: int = 0
    busy_slots: int = 0
    probes: int = 0
    open_clients: int = 0
    claimed_digests: list[str | None] = field(default_factory=list)


# A request for more tokens is a long one: it goes on until it is cancelled.
SHORT_TOKENS = 64


class ScriptedDecode:
    """A decode of a scripted engine: its tokens come with the next turn of the event loop."""

    def __init__(self, engine: ScriptedEngine, request: DecodeRequest, sink: TokenSink) -> None:
        self._engine = engine
        self._request = request
        self._sink = sink
        self._open = True
        engine.decodes += 1
        engine.busy_slots += 1
        asyncio.get_running_loop().call_soon(self._go)

    def cancel(self) -> None:
        """The slot is free again, unless the engine leaks it."""
        if self._open:
            self._open = False
            self._engine.busy_slots -= not self._engine.leaks_slots

    def _go(self) -> None:
        engine, asked = self._engine, self._request.max_tokens
        if not self._open or engine.mute:
            return
        if engine.decode_fault is not None:
            self._end()
            self._sink.on_error(EngineError(engine.decode_fault, "scripted fault"))
            return
        piece = b"tick%d " % (engine.decodes if engine.drifts else self._request.seed)
        if asked > SHORT_TOKENS:
            self._sink.on_tokens([piece])
            return
        self._sink.on_tokens([piece] * asked)
        self._end()
        self._sink.on_end(DecodeEnd("limit", 4, asked, 0, 0, 0))

    def _end(self) -> None:
        self._open = False
        self._engine.busy_slots -= 1


class ScriptedClient:
    """`EngineClient` of a `ScriptedEngine`; its decodes are good enough for a self-test."""

    def __init__(self, engine: ScriptedEngine) -> None:
        self._engine = engine
        engine.open_clients += 1

    async def health(self, timeout_s: float) -> Health:
        self._engine.probes += 1
        if self._engine.silent:
            await asyncio.sleep(timeout_s)
            return Health.DOWN
        return self._engine.health

    async def properties(self) -> EngineProperties:
        if self._engine.properties_fault is not None:
            raise EngineError(self._engine.properties_fault, "scripted fault")
        return self._engine.properties

    async def count_tokens(self, text: str) -> int:
        raise _unsupported()

    async def apply_template(self, messages: Sequence[Mapping[str, str]]) -> str:
        raise _unsupported()

    async def slots(self) -> list[SlotState]:
        return [
            SlotState(number, number < self._engine.busy_slots, 0)
            for number in range(self._engine.properties.slots_total)
        ]

    async def metrics(self) -> dict[str, float]:
        if self._engine.telemetry_fault is not None:
            raise EngineError(self._engine.telemetry_fault, "scripted fault")
        return {}

    async def embed(self, inputs: Sequence[str]) -> list[list[float]]:
        if "embeddings" not in self._engine.properties.features:
            raise _unsupported()
        return [[1.0, 0.0] for _ in inputs]

    async def rerank(self, query: str, documents: Sequence[str]) -> list[float]:
        raise _unsupported()

    def decode(self, request: DecodeRequest, sink: TokenSink) -> Decode:
        return ScriptedDecode(self._engine, request, sink)

    async def close(self) -> None:
        self._engine.open_clients -= 1


class ScriptedAdapter:
    """`EngineAdapter` that knows its engines by URL; `anywhere` answers at every other one."""

    engine = "llamacpp"

    def __init__(
        self,
        engines: Mapping[str, ScriptedEngine] | None = None,
        anywhere: ScriptedEngine | None = None,
    ) -> None:
        self._engines = dict(engines or {})
        self._anywhere = anywhere

    def connect(self, url: str, *, model_digest: str | None = None) -> ScriptedClient:
        engine = self._engines.get(url, self._anywhere)
        if engine is None:
            raise ValueError(f"no scripted engine at {url}")
        engine.claimed_digests.append(model_digest)
        return ScriptedClient(engine)


class ReplicaRecorder:
    """`ReplicaObserver` that remembers: what happened as (word, replica), and the values."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.properties: list[EngineProperties] = []
        self.labels: list[tuple[tuple[str, str], ...]] = []
        self.causes: list[Cause] = []
        self.states: list[tuple[str, str]] = []
        self.self_tests: list[bool] = []
        self.memory_failures: list[str] = []
        self.device_faults: list[str] = []

    def replica_ready(
        self,
        pool_id: str,
        replica_id: str,
        client: EngineClient,
        properties: EngineProperties,
        labels: tuple[tuple[str, str], ...],
    ) -> None:
        self.events.append(("ready", replica_id))
        self.properties.append(properties)
        self.labels.append(labels)

    def replica_lost(self, pool_id: str, replica_id: str, cause: Cause) -> None:
        self.events.append(("lost", replica_id))
        self.causes.append(cause)

    def preload_outcome(self, pool_id: str, replica_id: str, ok: bool, cause: Cause | None) -> None:
        self.events.append(("preloaded" if ok else "preload failed", replica_id))
        if cause is not None:
            self.causes.append(cause)

    def restarted(self, pool_id: str, replica_id: str) -> None:
        self.events.append(("restarted", replica_id))

    def replica_state(self, pool_id: str, replica_id: str, state: ReplicaState) -> None:
        self.states.append((replica_id, str(state)))

    def self_tested(self, pool_id: str, replica_id: str, ok: bool) -> None:
        self.self_tests.append(ok)

    def out_of_memory(self, pool_id: str, replica_id: str, memory: str) -> None:
        self.memory_failures.append(memory)

    def device_error(self, pool_id: str, replica_id: str, fault: str) -> None:
        self.device_faults.append(fault)

    def words(self) -> list[str]:
        """What happened, whatever the replica."""
        return [word for word, _ in self.events]


def _unsupported() -> EngineError:
    return EngineError(EngineFault.UNSUPPORTED, "this engine is for probing")
