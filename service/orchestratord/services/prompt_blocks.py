"""A prompt as chain hashes of its blocks: how placement knows that two prompts begin alike.

On a task's path: once at admission and once at recovery, before the core sees the task; nothing is
hashed for a task that is decoded cold wherever it runs. Invariant: hash i is a function of the
first i+1 blocks and of nothing else, so that equal hashes mean equal beginnings. Tenants share
them, as they share the engine's own prefix cache. Requirements: ORCH-3205.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from hashlib import blake2b

from orchestrator_core.placement.prefix_tree import BLOCK_BYTES, MAX_BLOCKS
from orchestrator_core.task import Determinism, Workload
from orchestratord.services.replicas import PoolTraits

_MAX_BYTES = BLOCK_BYTES * MAX_BLOCKS
# UTF-8 takes at most four bytes a character: what is shorter has no whole block.
_MIN_CHARACTERS = BLOCK_BYTES // 4


def prompt_blocks(
    prompt: str,
    workload: Workload,
    determinism: Determinism,
    kv_hint: str | None,
    pools: Callable[[], Iterable[PoolTraits]],
) -> tuple[int, ...]:
    """Hashes of the prompt's whole blocks where some pool may give it a warm prefix, else none.

    Args:
        pools: those that may run the task; asked only where there is something to hash.
    """
    if len(prompt) < _MIN_CHARACTERS or kv_hint == "cold":
        return ()
    if not any(pool.spec.reuses_prefix(workload, determinism, kv_hint) for pool in pools()):
        return ()
    return chain(prompt[:_MAX_BYTES].encode()[:_MAX_BYTES])


def chain(text: bytes) -> tuple[int, ...]:
    """64-bit hashes, one per whole block, each over everything up to the block's end."""
    digest = blake2b(digest_size=8)
    hashes = []
    for end in range(BLOCK_BYTES, len(text) + 1, BLOCK_BYTES):
        digest.update(text[end - BLOCK_BYTES : end])
        hashes.append(int.from_bytes(digest.digest(), "big"))
    return tuple(hashes)
