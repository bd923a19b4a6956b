"""How a fake llama.cpp server behaves and misbehaves: plain data (see `fake_engine`)."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum


class Fault(StrEnum):
    """What happens to one completion instead of its next token."""

    REFUSE = "refuse"  # `status` and `body` instead of a stream
    DIE = "die"  # the connection is reset
    END = "end"  # the response ends properly, without a final chunk
    GARBLE = "garble"  # an event that is not JSON
    FOREIGN = "foreign"  # an event that is JSON, but no chunk
    ERROR = "error"  # an error event
    SILENT = "silent"  # nothing more, ever
    SLOW = "slow"  # the token interval becomes `slow_s`
    HUGE = "huge"  # `huge_bytes` without an end of line
    EXTRA = "extra"  # never stops giving tokens
    NOT_HTTP = "not_http"  # bytes that are no response at all
    CLOSE_REUSED = "close_reused"  # a connection that served before is closed without an answer
    PLAY = "play"  # `writes`, one by one; each further one waits for `FakeEngine.go_on`


@dataclass(frozen=True, slots=True)
class FaultOnce:
    """One fault, for one completion, after `after_tokens` of its tokens."""

    kind: Fault
    after_tokens: int = 0
    status: int = 503
    body: bytes = b'{"error":{"code":503,"message":"no slot available","type":"unavailable_error"}}'
    slow_s: float = 5.0
    huge_bytes: int = 4 << 20
    writes: tuple[bytes, ...] = ()


@dataclass(frozen=True, slots=True)
class FakeScript:
    """One engine; intervals in seconds."""

    slots_total: int = 2
    ctx_max: int = 4096
    token_interval_s: float = 0.0
    tokens_per_write: int = 1
    prefill_interval_s: float = 0.0
    prefill_batch_tokens: int = 64
    health_status: int = 200
    build_info: str = "b11549-fake"
    model_alias: str = "fake"
    model_path: str = ""
    chat_template: str = "chatml"
    embeddings: bool = True
    flat_embeddings: bool = False
    rerank: bool = True
    hung_paths: frozenset[str] = frozenset()  # asked for one of them it never answers
    ascii_only: bool = False  # escape every other character, as some JSON writers do
    salt: str = ""
