"""One streamed /completion: request body out, events in, tokens to the sink.

On a task's path between the connection and dispatch. Invariants: exactly one of `on_end` and
`on_error`, nothing after `cancel`; tokens of one read go out in one `on_tokens`; progress events
are never tokens; a stream without its final chunk is RESET, never an end. Requirements: ORCH-3054,
ORCH-3058, ORCH-3017, OC-ADAPT-5001, OC-ADAPT-5010.
"""

from __future__ import annotations

import json

import msgspec

from worker_adapters.adapter_api.faults import fault_of_status, malformed, one_line
from worker_adapters.adapter_api.http_stream import Exchange
from worker_adapters.adapter_api.sse import EVENT_MAX_BYTES, SseDecoder
from worker_adapters.adapter_api.text_pieces import CharacterJoiner, escape
from worker_adapters.adapter_api.types import (
    DecodeEnd,
    DecodeRequest,
    EngineError,
    EngineFault,
    TokenSink,
)
from worker_adapters.llamacpp_http.wire import (
    Chunk,
    ErrorAnswer,
    ErrorBody,
    Timings,
    decode_chunk,
)

SEED_MODULUS = 1 << 32
RANDOM_SEED = SEED_MODULUS - 1  # LLAMA_DEFAULT_SEED: the engine draws a seed of its own
ERROR_BODY_MAX_BYTES = 64 << 10  # an error answer is a sentence
STOP_REASONS = {"limit": "limit", "eos": "eos", "word": "stop"}

# Settings a server's start options could change, pinned so that a profile means the same on every
# replica (ORCH-3058). Values are neutral; the chain is llama.cpp's own order, without samplers
# that OrchQueue v1 does not offer.
PINNED = {
    "stream": True,
    "return_progress": True,
    # The final chunk would otherwise repeat the prompt and every setting.
    "response_fields": [
        "content",
        "stop",
        "stop_type",
        "truncated",
        "tokens_predicted",
        "tokens_evaluated",
        "timings",
    ],
    "samplers": ["penalties", "top_k", "top_p", "min_p", "temperature"],
    "repeat_last_n": 64,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "dynatemp_range": 0.0,
    "mirostat": 0,
    "n_keep": 0,
    "n_probs": 0,
    "ignore_eos": False,
    "logit_bias": [],
    "lora": [],
}
# The same on every request, so encoded once: `{"stream":true,...` without the closing brace.
_PINNED_FIELDS = msgspec.json.encode(PINNED)[:-1]

SENT_PER_REQUEST = frozenset(
    {
        "prompt",
        "n_predict",
        "seed",
        "cache_prompt",
        "temperature",
        "top_p",
        "top_k",
        "min_p",
        "repeat_penalty",
        "stop",
    }
)


def engine_seed(seed: int) -> int:
    """`seed` in 32 bits. The value llama.cpp reads as "draw one" becomes 0 (ORCH-3045)."""
    folded = seed % SEED_MODULUS
    return 0 if folded == RANDOM_SEED else folded


def completion_body(request: DecodeRequest) -> bytes:
    """The JSON body of /completion for `request`."""
    sampling = request.sampling
    own = msgspec.json.encode(
        {
            "prompt": request.prompt,
            "n_predict": request.max_tokens,
            "seed": engine_seed(request.seed),
            "cache_prompt": not request.cold,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "min_p": sampling.min_p,
            "repeat_penalty": sampling.repeat_penalty,
            "stop": sampling.stop,
        }
    )
    return b"%b,%b" % (_PINNED_FIELDS, own[1:])


def error_of(status: int, body: bytes) -> EngineError:
    """The typed error of an answer other than 200."""
    try:
        said = msgspec.json.decode(body, type=ErrorAnswer).error
    except ValueError:
        said = ErrorBody()
    if said.type == "exceed_context_size_error":
        fault = EngineFault.CONTEXT
    else:
        fault = fault_of_status(status)
    return EngineError(fault, one_line(said.message) or f"the engine answered {status}")


class CompletionStream:
    """Reads one response; also the `Decode` that dispatch holds."""

    __slots__ = (
        "_error_body",
        "_exchange",
        "_joiner",
        "_pieces_left",
        "_sink",
        "_sse",
        "_status",
    )

    def __init__(self, request: DecodeRequest, sink: TokenSink) -> None:
        self._sink: TokenSink | None = sink
        self._exchange: Exchange | None = None
        # An engine that ignores `response_fields` repeats the prompt in its final chunk, each
        # byte of it escaped to at most six.
        self._sse = SseDecoder(EVENT_MAX_BYTES + 6 * len(request.prompt.encode()))
        self._joiner: CharacterJoiner | None = None  # made when a character comes in halves
        self._pieces_left = request.max_tokens + 1  # the final chunk may carry text as well
        self._status = 0
        self._error_body = bytearray()

    def carried_by(self, exchange: Exchange) -> None:
        """Remember what to close; called once, right after the request was posted."""
        self._exchange = exchange

    def cancel(self) -> None:
        """Close the upstream connection; the sink hears nothing more. Idempotent."""
        if self._sink is not None:
            self._sink = None
            if self._exchange is not None:
                self._exchange.cancel()

    # -- ResponseConsumer --

    def on_head(self, status: int) -> None:
        self._status = status

    def on_body(self, data: bytes) -> None:
        if self._status != 200:
            if len(self._error_body) < ERROR_BODY_MAX_BYTES:
                self._error_body += data
            return
        pieces: list[bytes] = []
        end: DecodeEnd | None = None
        error: EngineError | None = None
        try:
            for payload in self._sse.feed(data):
                try:
                    chunk = decode_chunk(payload)
                    text = chunk.content
                    if self._joiner is not None:
                        text = self._joiner.join_surrogates(text)
                except ValueError:
                    chunk, text = self._salvage(payload)
                if chunk.stop:
                    end = self._end_of(chunk)
                    if self._joiner is not None:
                        text += self._joiner.flush()
                if text:
                    self._pieces_left -= 1
                    if self._pieces_left < 0:
                        raise malformed("more tokens than it was asked for")
                    pieces.append(escape(text))
                elif chunk.prompt_progress is not None and self._sink is not None:
                    progress = chunk.prompt_progress
                    self._sink.on_prefill(progress.processed, progress.total)
                if end is not None:
                    break
        except EngineError as failure:
            end, error = None, failure
        if pieces and self._sink is not None:
            self._sink.on_tokens(pieces)
        if error is not None:
            self._fail(error)
        elif end is not None and self._sink is not None:
            sink, self._sink = self._sink, None
            assert self._exchange is not None
            self._exchange.release()
            sink.on_end(end)

    def on_complete(self) -> None:
        if self._status == 200:
            error = EngineError(
                EngineFault.RESET, "the engine ended the stream without its final chunk"
            )
        else:
            error = error_of(self._status, bytes(self._error_body))
        self._fail(error)

    def on_lost(self, error: EngineError) -> None:
        self._fail(error)

    # -- rarely --

    def _fail(self, error: EngineError) -> None:
        sink, self._sink = self._sink, None
        if self._exchange is not None:
            self._exchange.cancel()
        if sink is not None:
            sink.on_error(error)

    def _end_of(self, chunk: Chunk) -> DecodeEnd:
        reason = STOP_REASONS.get(chunk.stop_type)
        if reason is None:
            raise malformed(f"an unknown stop type {chunk.stop_type!r}")
        timings = chunk.timings or Timings()
        return DecodeEnd(
            stop_reason="context" if reason == "limit" and chunk.truncated else reason,
            tokens_in=chunk.tokens_evaluated,
            tokens_out=chunk.tokens_predicted,
            cached_tokens=timings.cache_n,
            prefill_ms=round(timings.prompt_ms),
            decode_ms=round(timings.predicted_ms),
        )

    def _salvage(self, payload: bytes) -> tuple[Chunk, str]:
        """What is no plain chunk: an error event, or text with a character in halves.

        Raises:
            EngineError: INTERNAL or CONTEXT for an error event, MALFORMED for anything else.
        """
        try:
            said = msgspec.json.decode(payload, type=ErrorAnswer).error
        except ValueError:
            pass
        else:
            too_long = said.type == "exceed_context_size_error"
            fault = EngineFault.CONTEXT if too_long else EngineFault.INTERNAL
            raise EngineError(fault, one_line(said.message) or "the engine failed")
        if self._joiner is None:
            self._joiner = CharacterJoiner()
        try:
            payload.decode()
            whole = True
        except UnicodeDecodeError:
            whole = False
        try:
            loaded = json.loads(payload.decode("utf-8", "surrogateescape"))
            chunk = msgspec.convert(loaded, Chunk)
            if whole:
                return chunk, self._joiner.join_surrogates(chunk.content)
            raw = chunk.content.encode("utf-8", "surrogateescape")
            return chunk, self._joiner.join_bytes(raw)
        except (ValueError, RecursionError):
            raise malformed("a chunk that is not a completion chunk") from None
