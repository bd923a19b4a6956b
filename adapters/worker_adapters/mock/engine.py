"""The scripted engine: slots, a queue, and decodes that run on the event loop.

Where a real adapter has a connection and a server behind it, the mock has this. It keeps the
promises of `TokenSink` by construction and misbehaves on demand: `inject` for one decode,
`kill`/`revive` for the whole engine. Time comes from an injected scheduler, so a simulation may
drive it. Invariants: at most `slots_total` decodes run, the others wait in arrival order; a cancel
frees the slot at once. Requirements: ORCH-3017, ORCH-3054.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Protocol

from worker_adapters.adapter_api.faults import malformed, reset
from worker_adapters.adapter_api.text_pieces import escape
from worker_adapters.adapter_api.types import (
    DecodeEnd,
    DecodeRequest,
    EngineError,
    EngineFault,
    Health,
    TokenSink,
)
from worker_adapters.mock.script import (
    Answer,
    Misbehaviour,
    MockFault,
    MockScript,
    answer_of,
    split_tokens,
)


class Cancellable(Protocol):
    def cancel(self) -> None: ...


class Scheduler(Protocol):
    """Where the engine's time comes from."""

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Cancellable: ...


class LoopScheduler:
    """The running event loop's clock."""

    def call_later(self, delay_s: float, call: Callable[[], None]) -> Cancellable:
        return asyncio.get_running_loop().call_later(delay_s, call)


class MockDecode:
    """One decode: waits for a slot, prefills, gives tokens, ends."""

    def __init__(self, engine: MockEngine, request: DecodeRequest, sink: TokenSink) -> None:
        self._engine = engine
        self._sink: TokenSink | None = sink
        self._timer: Cancellable | None = None
        self._fault = engine.take_fault()
        self._request = request
        self.prompt = split_tokens(request.prompt)
        self.cold = request.cold
        self._answer = Answer((), "limit")
        self._prefilled = 0
        self._cached = 0
        self.given = 0
        self.slot: int | None = None

    @property
    def is_open(self) -> bool:
        """Whether the sink may still hear something."""
        return self._sink is not None

    @property
    def kv_tokens(self) -> int:
        return self._prefilled + self.given

    def cancel(self) -> None:
        """Leave the engine; the sink hears nothing more. Idempotent."""
        self._sink = None
        self._leave()

    def refuse(self, error: EngineError) -> None:
        """End with `error` on the next turn of the loop, without ever taking a slot."""
        self._after(0.0, lambda: self.fail(error))

    def start(self, slot: int, cached_tokens: int) -> None:
        """A slot is free: begin to prefill, behind what the slot holds already."""
        self.slot = slot
        self._cached = self._prefilled = cached_tokens
        request, script = self._request, self._engine.script
        room = script.ctx_max - len(self.prompt)
        self._answer = answer_of(
            request.prompt,
            request.seed,
            request.sampling,
            min(request.max_tokens, room),
            script.salt,
        )
        if self._answer.stop_reason == "limit" and room < request.max_tokens:
            self._answer = Answer(self._answer.pieces, "context")
        self._after(0.0, self._prefill)

    def fail(self, error: EngineError) -> None:
        """End with `error`."""
        sink, self._sink = self._sink, None
        self._leave()
        if sink is not None:
            sink.on_error(error)

    def _prefill(self) -> None:
        if self._sink is None:
            return
        total = len(self.prompt)
        self._sink.on_prefill(self._prefilled, total)
        if self._prefilled < total:
            batch = self._engine.script.prefill_batch_tokens
            self._prefilled = min(total, self._prefilled + batch)
            self._after(self._engine.script.prefill_delay_ms / 1000, self._prefill)
        else:
            self._after(self._engine.script.token_delay_ms / 1000, self._step)

    def _step(self) -> None:
        if self._sink is None:
            return
        delay_ms = self._engine.script.token_delay_ms
        fault = self._fault
        if fault is not None and self.given >= fault.after_tokens:
            match fault.kind:
                case Misbehaviour.DIE:
                    return self.fail(reset("it was cut"))
                case Misbehaviour.GARBLE:
                    return self.fail(malformed("a chunk that is not a completion chunk"))
                case Misbehaviour.ERROR:
                    return self.fail(EngineError(fault.fault, "the engine failed"))
                case Misbehaviour.SILENT:
                    return None
                case Misbehaviour.SLOW:
                    delay_ms = fault.slow_ms
        if self.given < len(self._answer.pieces):
            piece = self._answer.pieces[self.given]
            self.given += 1
            self._engine.generated_tokens += 1
            self._sink.on_tokens([escape(piece)])
            self._after(delay_ms / 1000, self._step)
        else:
            self._end()
        return None

    def _end(self) -> None:
        sink, self._sink = self._sink, None
        script = self._engine.script
        batches = -(-(len(self.prompt) - self._cached) // script.prefill_batch_tokens)
        end = DecodeEnd(
            stop_reason=self._answer.stop_reason,
            tokens_in=len(self.prompt),
            tokens_out=self.given,
            cached_tokens=self._cached,
            prefill_ms=round(batches * script.prefill_delay_ms),
            decode_ms=round(self.given * script.token_delay_ms),
        )
        self._leave()
        if sink is not None:
            sink.on_end(end)

    def _after(self, delay_s: float, call: Callable[[], None]) -> None:
        if self._sink is not None:
            self._timer = self._engine.scheduler.call_later(delay_s, call)

    def _leave(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._engine.left(self)


class MockEngine:
    """One engine, shared by every client that was connected to its URL."""

    def __init__(self, script: MockScript, scheduler: Scheduler) -> None:
        self.script = script
        self.scheduler = scheduler
        self.health = Health.OK
        self.generated_tokens = 0
        self.prompt_tokens = 0
        self.cached_tokens = 0
        self._faults: deque[MockFault] = deque()
        self._waiting: deque[MockDecode] = deque()
        self._running: dict[int, MockDecode] = {}
        self._held: dict[int, list[str]] = {}  # slot → prompt tokens whose KV it holds

    @property
    def running_count(self) -> int:
        return len(self._running)

    @property
    def waiting_count(self) -> int:
        return len(self._waiting)

    def inject(self, *faults: MockFault) -> None:
        """Each fault happens to one of the next decodes, in order."""
        self._faults.extend(faults)

    def take_fault(self) -> MockFault | None:
        return self._faults.popleft() if self._faults else None

    def kill(self) -> None:
        """Die: every decode ends with RESET, every call after that is refused."""
        self.health = Health.DOWN
        self._held.clear()
        for decode in [*self._running.values(), *self._waiting]:
            decode.fail(reset("it was cut"))

    def revive(self) -> None:
        """Come back, with cold slots."""
        self.health = Health.OK

    def require_up(self) -> None:
        """Raises: EngineError, RESET when the engine is dead and UNAVAILABLE while it loads."""
        if self.health is Health.DOWN:
            raise reset("refused")
        if self.health is Health.LOADING:
            raise EngineError(EngineFault.UNAVAILABLE, "Loading model")

    def begin(self, request: DecodeRequest, sink: TokenSink) -> MockDecode:
        """Queue a decode; it starts on a later turn of the event loop."""
        decode = MockDecode(self, request, sink)
        try:
            self.require_up()
        except EngineError as error:
            decode.refuse(error)
            return decode
        if len(decode.prompt) >= self.script.ctx_max:
            tokens, ctx = len(decode.prompt), self.script.ctx_max
            decode.refuse(
                EngineError(
                    EngineFault.CONTEXT,
                    f"request ({tokens} tokens) exceeds the available context size ({ctx} tokens)",
                )
            )
            return decode
        self._waiting.append(decode)
        self._fill()
        return decode

    def left(self, decode: MockDecode) -> None:
        """`decode` ended or was cancelled: its slot goes to who has waited longest."""
        if decode in self._waiting:
            self._waiting.remove(decode)
        if decode.slot is not None and self._running.get(decode.slot) is decode:
            del self._running[decode.slot]
            self._fill()

    def kv_tokens(self, slot: int) -> int:
        """Tokens whose KV `slot` holds."""
        decode = self._running.get(slot)
        return decode.kv_tokens if decode is not None else len(self._held.get(slot, ()))

    def is_busy(self, slot: int) -> bool:
        return slot in self._running

    def _fill(self) -> None:
        while self._waiting and self.health is Health.OK:
            free = [s for s in range(self.script.slots_total) if s not in self._running]
            if not free:
                return
            decode = self._waiting.popleft()
            slot = max(free, key=lambda s: (self._shared(s, decode.prompt), -s))
            cached = 0 if decode.cold else self._shared(slot, decode.prompt)
            # As llama.cpp does, the last prompt token is evaluated in any case.
            cached = min(cached, max(0, len(decode.prompt) - 1))
            self._held[slot] = decode.prompt
            self._running[slot] = decode
            self.prompt_tokens += len(decode.prompt) - cached
            self.cached_tokens += cached
            decode.start(slot, cached)

    def _shared(self, slot: int, prompt: list[str]) -> int:
        shared = 0
        for held, wanted in zip(self._held.get(slot, ()), prompt, strict=False):
            if held != wanted:
                break
            shared += 1
        return shared
