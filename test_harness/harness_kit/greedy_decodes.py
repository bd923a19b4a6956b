"""A short greedy decode, and the text that the fake llama.cpp server answers it with."""

from __future__ import annotations

from worker_adapters.adapter_api.types import DecodeRequest, Sampling
from worker_adapters.mock.script import answer_of

GREEDY = Sampling()
SEED = 7


def request_of(prompt: str = "one two three", max_tokens: int = 12) -> DecodeRequest:
    """Decoded from a cold start."""
    return DecodeRequest(prompt, max_tokens, SEED, GREEDY, cold=True)


def expected_text(prompt: str = "one two three", max_tokens: int = 12) -> str:
    """What the fake engine makes of the same request."""
    return "".join(answer_of(prompt, SEED, GREEDY, max_tokens).pieces)
