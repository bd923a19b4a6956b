"""What one replica has read: a bounded tree of prompt prefixes.

On a task's path: placement asks how much of a prompt a replica holds, a finished task is added. A
prompt comes as chain hashes of its fixed-size blocks; each hash covers everything before its block,
so a node's name is its whole path and no edges are stored. The invariants: at most `nodes_max`
nodes; a node is there only while its parent is (the tree is closed under prefixes). Requirements:
ORCH-3205.

Prior art: the radix tree of SGLang's router (arXiv 2312.07104) and the block hashes of vLLM's
prefix cache. A tree per replica, not one tree over all, makes forgetting a lost replica one
assignment.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Sequence

# Small enough that a system prompt is several blocks, large enough that hashing costs nothing.
BLOCK_BYTES = 256

# English text in BPE vocabularies has about four bytes a token.
BLOCK_TOKENS = BLOCK_BYTES // 4

# Of a longer prompt only the first 128 KiB are compared: where they agree, the rest rarely decides.
MAX_BLOCKS = 512

# About a megabyte of memory per replica, half a million tokens of distinct text.
MAX_NODES = 8192


def nodes_for(kv_tokens: int) -> int:
    """How many nodes describe an engine's KV of that many tokens; never more than `MAX_NODES`."""
    return max(1, min(kv_tokens // BLOCK_TOKENS, MAX_NODES))


class PrefixTree:
    """Prefixes that one replica has read, the least recently used forgotten first."""

    __slots__ = ("_nodes", "nodes_max")

    def __init__(self, nodes_max: int) -> None:
        self.nodes_max = nodes_max
        # In order of use. A parent is always used after its children, so the first is a leaf.
        self._nodes: OrderedDict[int, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._nodes)

    def held(self, blocks: Sequence[int]) -> int:
        """How many leading blocks are known, 0..len(blocks). O(log blocks)."""
        nodes = self._nodes
        if not blocks or blocks[0] not in nodes:
            return 0
        return bisect_left(blocks, True, key=lambda block: block not in nodes)

    def remember(self, blocks: Sequence[int]) -> None:
        """The replica has read this prompt. O(blocks)."""
        nodes = self._nodes
        for block in reversed(blocks[: self.nodes_max]):
            nodes[block] = None
            nodes.move_to_end(block)
        while len(nodes) > self.nodes_max:
            nodes.popitem(last=False)
