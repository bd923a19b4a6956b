"""What llama.cpp's server says, as types; fields that we do not read are ignored.

Decoded once per chunk on the token path, so only what the adapter uses is named. `Chunk.content`
and `Chunk.stop` are required: a JSON object without them is not a chunk, which is how garbled
output is told from tokens. Measured against build 11549. Requirements: ORCH-3054, OC-ADAPT-5001.
"""

from __future__ import annotations

import msgspec


class Progress(msgspec.Struct):
    """Prefill so far; `total` and `processed` count tokens, `cache` those that were reused."""

    total: int
    processed: int
    cache: int = 0


class Timings(msgspec.Struct):
    cache_n: int = 0
    prompt_ms: float = 0.0
    predicted_ms: float = 0.0


class Chunk(msgspec.Struct):
    """One event of /completion: progress, a token, or the end (`stop`)."""

    content: str
    stop: bool
    tokens_predicted: int = 0
    tokens_evaluated: int = 0
    prompt_progress: Progress | None = None
    stop_type: str = ""
    truncated: bool = False
    timings: Timings | None = None


class ErrorBody(msgspec.Struct):
    message: str = ""
    type: str = ""


class ErrorAnswer(msgspec.Struct):
    error: ErrorBody


class GenerationDefaults(msgspec.Struct):
    n_ctx: int
    params: dict[str, object] = {}


class Props(msgspec.Struct):
    total_slots: int
    default_generation_settings: GenerationDefaults
    model_path: str = ""
    model_alias: str = ""
    model_ftype: str = ""
    build_info: str = ""
    chat_template: str = ""
    bos_token: str = ""
    eos_token: str = ""


class Slot(msgspec.Struct):
    """`n_prompt_tokens` counts the tokens held in KV; a slot that never ran lacks it."""

    id: int
    is_processing: bool
    n_ctx: int = 0
    n_prompt_tokens: int = 0


class Tokens(msgspec.Struct):
    tokens: list[object]


class Templated(msgspec.Struct):
    prompt: str


class FlatEmbedding(msgspec.Struct):
    """/embedding of builds before 4600: one vector, for one input."""

    embedding: list[float]


class IndexedEmbedding(msgspec.Struct):
    """/embedding of later builds: a list of these, one vector per pooled input."""

    index: int
    embedding: list[list[float]]


class RerankResult(msgspec.Struct):
    index: int
    relevance_score: float


class RerankAnswer(msgspec.Struct):
    results: list[RerankResult]


decode_chunk = msgspec.json.Decoder(Chunk).decode
