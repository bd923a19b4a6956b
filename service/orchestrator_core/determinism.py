"""What fixes a stream: the seed a task gets without one, and the key that names "the same decode".

On a task's path: at admission (seed) and in the determinism record. The invariant: both are pure
functions of their arguments, on any machine and in any process. Requirements: ORCH-3045,
OC-CORE-1030.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from hashlib import blake2b
from typing import Never

import msgspec

Param = None | bool | int | float | str | bytes | Sequence["Param"] | Mapping[str, "Param"]


def derive_seed(task_id: str) -> int:
    """The seed of a task that brings none: 0 ≤ seed < 2^63, from the task id alone (ORCH-3045)."""
    digest = blake2b(task_id.encode(), digest_size=8, person=b"llorch-seed").digest()
    return int.from_bytes(digest, "big") & (2**63 - 1)


def determinism_key(
    *,
    prompt: Param,
    params: Mapping[str, Param],
    seed: int,
    sampler_profile: str,
    engine_version: str,
    model_digest: str,
) -> str:
    """64 hex digits that are equal exactly for decodes that must give equal bytes (OC-CORE-1030).

    Args:
        prompt: text, chat messages or inputs, as the client sent them.
        params: everything else that changes an output byte; the order of names does not matter.

    Raises TypeError for a value that has no canonical form (an object).
    """
    parts = (prompt, params, seed, sampler_profile, engine_version, model_digest)
    return blake2b(_encoder.encode(parts), digest_size=32, person=b"llorch-det-v1").hexdigest()


def _no_canonical_form(value: object) -> Never:
    raise TypeError(f"no canonical form for {type(value).__name__}")


# Every value carries its type and length, and names are sorted: no two values share an encoding.
_encoder = msgspec.msgpack.Encoder(order="sorted", enc_hook=_no_canonical_form)
