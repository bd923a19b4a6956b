"""The 64 seeds of the determinism suite: `seeds.json`, each with its prompt and number of tokens.

The file is stable: a test pins its SHA-256, so that streams recorded by different releases are of
the same seeds. ORCH_SEED_DEFAULT=N runs the same prompts with the seeds N, N+1, … instead.
Invariant: what is asked follows from the file and that variable alone. Requirement: OC-TEST-7003.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SEEDS_FILE = Path(__file__).with_name("seeds.json")
SEED_VARIABLE = "ORCH_SEED_DEFAULT"
# OrchQueue v1 takes a seed of 63 bits.
SEED_MAX = (1 << 63) - 1


@dataclass(frozen=True, slots=True)
class Entry:
    """One stream to decode: `tokens` at most, fewer where the model ends before."""

    number: int
    seed: int
    prompt: str
    tokens: int
    sampling: Mapping[str, float]


def load_corpus(environment: Mapping[str, str]) -> tuple[Entry, ...]:
    """All entries in the order of the file.

    Raises:
        ValueError: ORCH_SEED_DEFAULT is no number, or leaves no room for 64 seeds.
    """
    document: dict[str, Any] = json.loads(SEEDS_FILE.read_text(encoding="utf-8"))
    seeds = document["seeds"]
    base = _base(environment.get(SEED_VARIABLE, ""), len(seeds))
    return tuple(
        Entry(
            number,
            line["seed"] if base is None else base + number,
            document["prompts"][line["prompt"]],
            line["tokens"],
            document["sampling"],
        )
        for number, line in enumerate(seeds)
    )


def _base(text: str, count: int) -> int | None:
    if not text:
        return None
    if not text.isascii() or not text.isdigit() or int(text) > SEED_MAX - count:
        raise ValueError(
            f"{SEED_VARIABLE}={text}: it must be a number from 0 to {SEED_MAX - count}"
        )
    return int(text)
