"""Pre-encoded answers of the fake engine: OpenAI chat chunks and llama.cpp's native stream.

Upstream end of the bench. Invariant: every token is one SSE event in one HTTP chunk, and the
bytes of a token are built once, so that the engine costs next to nothing beside its writes.
"""

from __future__ import annotations

import json
from typing import Any, Protocol

WORDS = (
    " sound", " of", " the", " river", " was", " low", " and", " we", " walked", " on",
    " toward", " a", " house", " with", " green", " doors", ",", " then", " it", " rained",
)  # fmt: skip
STREAM_HEAD = (
    b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\n"
    b"cache-control: no-cache\r\ntransfer-encoding: chunked\r\n\r\n"
)
LAST_CHUNK = b"0\r\n\r\n"
CREATED_S = 1_700_000_000  # any fixed time: answers must not differ between runs
PROMPT_TOKENS = 9  # what the engine claims to have evaluated, whatever the prompt
CACHED_TOKENS_MAX = 100_000  # bounds the cache of numbered llama.cpp chunks (some 200 B each)


def chunk(payload: bytes) -> bytes:
    """One HTTP/1.1 chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(payload), payload)


def event(value: dict[str, Any]) -> bytes:
    """One SSE event in one HTTP chunk."""
    return chunk(b"data: " + json.dumps(value, separators=(",", ":")).encode() + b"\n\n")


class Answer(Protocol):
    """The bytes of one streamed answer."""

    first: bytes
    """What goes out before the first token, in the same write as the head."""

    def token(self, index: int, total: int) -> bytes:
        """The chunk of token `index` (from 0) of `total`."""

    def tail(self, total: int) -> bytes:
        """What ends an answer of `total` tokens, the last chunk included."""


class ChatAnswer:
    """Chunks of POST /v1/chat/completions as vLLM sends them."""

    def __init__(self, model: str) -> None:
        def delta(content: dict[str, str], finish: str | None = None) -> bytes:
            return event(
                {
                    "id": "chatcmpl-0123456789abcdef0123456789abcdef",
                    "object": "chat.completion.chunk",
                    "created": CREATED_S,
                    "model": model,
                    "choices": [
                        {"index": 0, "delta": content, "logprobs": None, "finish_reason": finish}
                    ],
                }
            )

        self.first = delta({"role": "assistant", "content": ""})
        self._tokens = [delta({"content": word}) for word in WORDS]
        self._last = delta({"content": " end"}, "length")
        self._tail = chunk(b"data: [DONE]\n\n") + LAST_CHUNK

    def token(self, index: int, total: int) -> bytes:
        """The chunk of one token; the last one carries the finish reason."""
        return self._last if index == total - 1 else self._tokens[index % len(WORDS)]

    def tail(self, total: int) -> bytes:
        """`[DONE]`, whatever the length."""
        return self._tail


class LlamaAnswer:
    """Chunks of llama.cpp's POST /completion; they number their tokens, so they are cached."""

    first = b""

    def __init__(self, model: str) -> None:
        self._model = model
        self._tokens: dict[int, bytes] = {}

    def token(self, index: int, total: int) -> bytes:
        """The chunk of one token."""
        cached = self._tokens.get(index)
        if cached is not None:
            return cached
        built = event(
            {
                "index": 0,
                "content": WORDS[index % len(WORDS)],
                "tokens": [2139 + index % len(WORDS)],
                "stop": False,
                "id_slot": -1,
                "tokens_predicted": index + 1,
                "tokens_evaluated": PROMPT_TOKENS,
            }
        )
        if len(self._tokens) < CACHED_TOKENS_MAX:
            self._tokens[index] = built
        return built

    def tail(self, total: int) -> bytes:
        """The final event with its counts and timings."""
        return event(self.final(total)) + LAST_CHUNK

    def final(self, total: int, text: str = "") -> dict[str, Any]:
        """The last event of a stream, or with `text` the whole body of an answer without one."""
        return {
            "index": 0,
            "content": text,
            "tokens": [],
            "id_slot": 0,
            "stop": True,
            "model": self._model,
            "tokens_predicted": total,
            "tokens_evaluated": PROMPT_TOKENS,
            "has_new_line": False,
            "truncated": False,
            "stop_type": "limit",
            "stopping_word": "",
            "tokens_cached": total + PROMPT_TOKENS - 1,
            "timings": {
                "cache_n": 0,
                "prompt_n": PROMPT_TOKENS,
                "prompt_ms": 1.0,
                "prompt_per_token_ms": 0.1,
                "prompt_per_second": 1000.0,
                "predicted_n": total,
                "predicted_ms": float(total),
                "predicted_per_token_ms": 1.0,
                "predicted_per_second": 1000.0,
            },
        }


def chat_body(model: str, total: int) -> dict[str, Any]:
    """A whole chat completion, for requests that ask for no stream (readiness probes of peers)."""
    text = "".join(WORDS[i % len(WORDS)] for i in range(total))
    return {
        "id": "chatcmpl-0",
        "object": "chat.completion",
        "created": CREATED_S,
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": text},
                "finish_reason": "length",
            }
        ],
        "usage": {
            "prompt_tokens": PROMPT_TOKENS,
            "completion_tokens": total,
            "total_tokens": PROMPT_TOKENS + total,
        },
    }
