"""How long an engine would take: prefill and decode at a pace, with a seeded jitter.

On a simulated task's path: stands where the adapter and its engine stand. The invariant: a task's
service time depends on its place among the arrivals and the seed alone, so that two policies are
compared over the same luck. Requirements: ORCH-3081.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import exp
from random import Random


@dataclass(frozen=True, slots=True)
class ServiceTime:
    """What one task takes on any replica, in milliseconds."""

    prefill_ms: int
    decode_ms: int

    @property
    def total_ms(self) -> int:
        return self.prefill_ms + self.decode_ms

    def tokens_after(self, ran_ms: int, tokens_out: int) -> int:
        """How many of `tokens_out` are decoded `ran_ms` after the start."""
        if ran_ms <= self.prefill_ms:
            return 0
        return min(tokens_out * (ran_ms - self.prefill_ms) // max(self.decode_ms, 1), tokens_out)


@dataclass(frozen=True, slots=True)
class EngineModel:
    """Paces of every replica; `jitter_ratio` is the standard deviation of a phase's time over its
    mean (log-normal; 0 is none).

    The defaults are those of a 7B model on one data-centre GPU with a few slots in use.
    """

    prefill_ms_per_token: float = 0.25
    decode_ms_per_token: float = 20.0
    jitter_ratio: float = 0.1

    def draw(self, random: Random, prompt_tokens: int, tokens_out: int) -> ServiceTime:
        """The service time of one task; always two draws, whatever the lengths."""
        prefill_ms = prompt_tokens * self.prefill_ms_per_token * self._noise(random)
        decode_ms = tokens_out * self.decode_ms_per_token * self._noise(random)
        return ServiceTime(round(prefill_ms), max(round(decode_ms), 1))

    def _noise(self, random: Random) -> float:
        sigma = self.jitter_ratio
        return exp(random.gauss(0.0, sigma) - sigma * sigma / 2) if sigma else 1.0
