"""Does this engine work? A few tokens, the same again, a cancel and its figures, before Ready.

Between a replica's first healthy answer and Ready, over the same client that tasks will use. An
engine that only embeds is tested by an embedding. Invariants: a slot that the test took is free
when it ends, or the test failed (where others use the engine too, that cannot be told); every step
is bounded in time; nothing of a prompt or an answer is logged. Requirements: ORCH-3049, ORCH-3045.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import TypeVar

import structlog

from worker_adapters.adapter_api.types import (
    DecodeEnd,
    DecodeRequest,
    EngineClient,
    EngineError,
    EngineFault,
    EngineProperties,
    Sampling,
)

# A first decode may compile kernels or page a model in.
DECODE_S = 60.0
CALL_S = 10.0
# A closed connection frees its slot with the next token or batch.
SLOT_FREE_S = 10.0
SLOT_POLL_S = 0.02

TOKENS = 8
# Long enough to be cancelled in the middle whatever the engine's speed.
CANCELLED_TOKENS = 512
PROMPT = "Once upon a time"
SEED = 1
# The sampler takes part: two runs agree only where the seed is used.
SAMPLED = Sampling(temperature=0.8, top_p=0.95, top_k=40)

_log = structlog.get_logger(__name__)
T = TypeVar("T")


class SelfTestFailed(Exception):
    """An engine does not work; the message names the step and what happened. `fault` is the
    engine call's, if one failed."""

    def __init__(self, message: str, fault: EngineFault | None = None) -> None:
        super().__init__(message)
        self.fault = fault


class _Collected:
    """A `TokenSink` that keeps what one decode gave."""

    def __init__(self) -> None:
        self.text = bytearray()
        self.first_token = asyncio.Event()
        self.over: asyncio.Future[DecodeEnd] = asyncio.get_running_loop().create_future()

    def on_prefill(self, processed_tokens: int, total_tokens: int) -> None:
        """Progress of the prompt is of no interest here."""

    def on_tokens(self, pieces: list[bytes]) -> None:
        self.text += b"".join(pieces)
        self.first_token.set()

    def on_end(self, end: DecodeEnd) -> None:
        if not self.over.done():
            self.over.set_result(end)
        self.first_token.set()

    def on_error(self, error: EngineError) -> None:
        if not self.over.done():
            self.over.set_exception(error)
        self.first_token.set()


async def self_test(
    client: EngineClient, properties: EngineProperties, *, shared: bool = False
) -> None:
    """Use the engine as tasks will. Raises `SelfTestFailed`.

    `shared`: others may use it meanwhile, so that a busy slot proves nothing: an engine does not
    tell whose it is, and the next in its queue takes one that we gave back.
    Strict tasks are the default of every pool, so the same seed has to give the same bytes twice
    from a cold start (ORCH-3045).
    """
    try:
        first = await _decoded(client, Sampling())
    except SelfTestFailed as failure:
        embeds = "embeddings" in properties.features
        if failure.fault is not EngineFault.UNSUPPORTED or not embeds:
            raise
        await _embeds(client)
    else:
        if await _decoded(client, Sampling()) != first:
            raise SelfTestFailed("decode: two greedy decodes from a cold start differ")
        if await _decoded(client, SAMPLED) != await _decoded(client, SAMPLED):
            raise SelfTestFailed(f"decode: two decodes with seed {SEED} differ")
        await _cancels(client, properties, shared=shared)
    await _tells_figures(client)


def _request(max_tokens: int, sampling: Sampling) -> DecodeRequest:
    return DecodeRequest(
        prompt=PROMPT, max_tokens=max_tokens, seed=SEED, sampling=sampling, cold=True
    )


async def _decoded(client: EngineClient, sampling: Sampling) -> bytes:
    """The text of a short decode."""
    sink = _Collected()
    decode = client.decode(_request(TOKENS, sampling), sink)
    try:
        end = await _within("decode", DECODE_S, sink.over)
    finally:
        decode.cancel()
    if end.tokens_out < 1 and end.stop_reason != "eos":
        raise SelfTestFailed(f"decode: no token ({end.stop_reason})")
    return bytes(sink.text)


async def _cancels(client: EngineClient, properties: EngineProperties, *, shared: bool) -> None:
    """A decode that is cancelled in its middle gives its slot back, where that can be told."""
    busy_before = None if shared else await _busy_slots(client)
    sink = _Collected()
    max_tokens = min(CANCELLED_TOKENS, properties.ctx_max // 2)
    decode = client.decode(_request(max_tokens, Sampling()), sink)
    try:
        await _within("cancel", DECODE_S, sink.first_token.wait())
    finally:
        decode.cancel()
    if sink.over.done():
        await _within("cancel", CALL_S, sink.over)  # raises what it failed with
    sink.over.cancel()
    if busy_before is None:
        return
    loop = asyncio.get_running_loop()
    deadline_s = loop.time() + SLOT_FREE_S
    while (busy := await _busy_slots(client)) is not None and busy > busy_before:
        if loop.time() > deadline_s:
            raise SelfTestFailed(f"cancel: its slot is still busy after {SLOT_FREE_S:g} s")
        await asyncio.sleep(SLOT_POLL_S)


async def _busy_slots(client: EngineClient) -> int | None:
    """How many; None for an engine that does not tell."""
    try:
        return sum(slot.busy for slot in await _within("slots", CALL_S, client.slots()))
    except SelfTestFailed as failure:
        if failure.fault is EngineFault.UNSUPPORTED:
            return None
        raise


async def _embeds(client: EngineClient) -> None:
    vectors = await _within("embed", DECODE_S, client.embed([PROMPT]))
    if len(vectors) != 1 or not vectors[0]:
        raise SelfTestFailed("embed: no vector")


async def _tells_figures(client: EngineClient) -> None:
    """Telemetry answers; an engine that was started without it says so, and that is an answer."""
    try:
        await _within("telemetry", CALL_S, client.metrics())
    except SelfTestFailed as failure:
        if failure.fault is not EngineFault.UNSUPPORTED:
            raise
        _log.warning("self_test.no_telemetry", cause=str(failure))


async def _within(step: str, limit_s: float, work: Awaitable[T]) -> T:
    try:
        async with asyncio.timeout(limit_s):
            return await work
    except TimeoutError:
        raise SelfTestFailed(
            f"{step}: not over within {limit_s:g} s", EngineFault.TIMEOUT
        ) from None
    except EngineError as error:
        raise SelfTestFailed(f"{step}: {error.message}", error.fault) from error
