"""What the scripted engine says and how it misbehaves: plain data and one pure function.

`pieces_of` is the whole "model": the tokens of a prompt are a pure function of prompt, seed and
sampling, so two engines with one script agree byte for byte (ORCH-3045) and a test can name the
expected stream. Not for serving: words are drawn from a hash. Requirements: ORCH-3058.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from msgspec import structs

from worker_adapters.adapter_api.types import EngineFault, Sampling

# One to four bytes a character in UTF-8, and every character class JSON has to escape.
WORDS = (
    " the", " river", " was", " low", ",", " and", " we", " walked", " on", " café", " naïve",
    " 雨", " 🌧", " \"so\"", " a\\b", "\n", "\t", ".", " house", " green",
)  # fmt: skip
_TOKEN = re.compile(r"\s*\S+|\s+")


class Misbehaviour(StrEnum):
    """What a scripted decode does instead of going on."""

    DIE = "die"  # the connection breaks
    GARBLE = "garble"  # bytes that are no protocol
    SILENT = "silent"  # nothing more comes, ever
    SLOW = "slow"  # every further token takes `slow_ms`
    ERROR = "error"  # the engine says it failed


@dataclass(frozen=True, slots=True)
class MockFault:
    """Happens to one decode, after `after_tokens` tokens were given."""

    kind: Misbehaviour
    after_tokens: int = 0
    fault: EngineFault = EngineFault.INTERNAL  # of ERROR
    slow_ms: int = 1000  # of SLOW


@dataclass(frozen=True, slots=True)
class MockScript:
    """One engine. Delays are in milliseconds; `salt` makes an engine disagree with the others."""

    slots_total: int = 4
    ctx_max: int = 4096
    token_delay_ms: float = 0.0
    prefill_delay_ms: float = 0.0  # of each batch of `prefill_batch_tokens`
    prefill_batch_tokens: int = 64
    engine_version: str = "mock 1"
    model_digest: str | None = "sha256:" + "0" * 64
    model_name: str = "mock"
    kv_bytes_per_token: int = 1024
    features: frozenset[str] = frozenset(
        {"interruptible_decode", "chat_template", "embeddings", "rerank"}
    )
    salt: str = ""


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer: texts that become one token each, and how it stopped (limit or stop)."""

    pieces: tuple[str, ...]
    stop_reason: str


def split_tokens(text: str) -> list[str]:
    """`text` as the mock's tokens: a word with the space before it."""
    return _TOKEN.findall(text)


def answer_of(
    prompt: str, seed: int, sampling: Sampling, max_tokens: int, salt: str = ""
) -> Answer:
    """The answer to `prompt`; the seed matters at a temperature above 0 only."""
    drawn = seed if sampling.temperature > 0 else 0
    # A stop string cuts the answer, it does not change it.
    drawing = structs.replace(sampling, stop=())
    key = hashlib.blake2b(repr((prompt, drawn, drawing, salt)).encode(), digest_size=32).digest()
    pieces: list[str] = []
    for index in range(max_tokens):
        digest = hashlib.blake2b(index.to_bytes(8, "big"), key=key, digest_size=4).digest()
        pieces.append(WORDS[int.from_bytes(digest, "big") % len(WORDS)])
    text = "".join(pieces)
    cuts = [at for at in (text.find(stop) for stop in sampling.stop if stop) if at >= 0]
    if not cuts:
        return Answer(tuple(pieces), "limit")
    kept: list[str] = []
    room = min(cuts)  # characters before the first stop string
    for piece in pieces:
        if room <= 0:
            break
        kept.append(piece[:room])
        room -= len(piece)
    return Answer(tuple(kept), "stop")


def template_of(messages: list[Mapping[str, str]]) -> str:
    """A chat as a prompt, in ChatML."""
    turns = "".join(
        f"<|im_start|>{message['role']}\n{message['content']}<|im_end|>\n" for message in messages
    )
    return turns + "<|im_start|>assistant\n"


def vector_of(text: str) -> list[float]:
    """A unit-free embedding of `text`: eight numbers in [-1, 1)."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return [byte / 128 - 1.0 for byte in digest]


def score_of(query: str, document: str) -> float:
    """Share of the query's words that `document` holds, 0 to 1."""
    asked = set(query.lower().split())
    return len(asked & set(document.lower().split())) / len(asked) if asked else 0.0
