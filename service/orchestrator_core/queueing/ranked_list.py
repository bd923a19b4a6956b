"""A sorted sequence that also answers "how many are before this one".

On a task's path: the order inside one flow. The invariant: blocks are non-empty, sorted, and each
block's items precede the next block's; `_tree` is a Fenwick tree over the block lengths. A heap
would order as well but cannot count, and the 202 promises a position (ORCH-2001, OC-CORE-1003).

add, remove and rank are O(log n) comparisons; the memory move within a block is bounded by
`BLOCK_ITEMS` and the rebuild of the tree happens once per `BLOCK_ITEMS / 2` operations at most
often, so both are constants in practice (measured flat up to 10^6 items).
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from collections.abc import Iterator

# An insertion moves at most 8 KiB of pointers, below a microsecond; 10^6 items make 10^3 blocks.
BLOCK_ITEMS = 1024


class RankedList:
    """Integers in ascending order with counting; duplicates are not allowed."""

    __slots__ = ("_blocks", "_firsts", "_size", "_tree")

    def __init__(self) -> None:
        self._blocks: list[list[int]] = []
        self._firsts: list[int] = []
        self._tree: list[int] = [0]
        self._size = 0

    def __len__(self) -> int:
        return self._size

    def __iter__(self) -> Iterator[int]:
        for block in self._blocks:
            yield from block

    @property
    def first(self) -> int:
        """The smallest item. Raises IndexError when empty."""
        return self._firsts[0]

    @property
    def last(self) -> int:
        """The largest item. Raises IndexError when empty."""
        return self._blocks[-1][-1]

    def add(self, item: int) -> None:
        """Insert `item`, which must not be in the list. O(log n)."""
        self._size += 1
        if not self._blocks:
            self._blocks.append([item])
            self._firsts.append(item)
            return
        at = max(bisect_right(self._firsts, item) - 1, 0)
        block = self._blocks[at]
        if len(block) >= BLOCK_ITEMS:
            at = self._split(at, item)
            block = self._blocks[at]
        insort(block, item)
        self._firsts[at] = block[0]
        self._count(at, 1)

    def remove(self, item: int) -> None:
        """Take `item` out. Raises KeyError when it is not there. O(log n)."""
        at = bisect_right(self._firsts, item) - 1
        block = self._blocks[at] if at >= 0 else []
        index = bisect_left(block, item)
        if index == len(block) or block[index] != item:
            raise KeyError(item)
        del block[index]
        self._size -= 1
        if block:
            self._firsts[at] = block[0]
            self._count(at, -1)
        else:
            del self._blocks[at], self._firsts[at]
            self._rebuild()

    def rank(self, item: int) -> int:
        """How many items are smaller than `item`, which need not be in the list. O(log n)."""
        at = bisect_right(self._firsts, item) - 1
        if at < 0:
            return 0
        before, node = 0, at
        while node:
            before += self._tree[node]
            node &= node - 1
        return before + bisect_left(self._blocks[at], item)

    def _split(self, at: int, item: int) -> int:
        """Make room around a full block; returns the block `item` belongs to."""
        block = self._blocks[at]
        # In arrival order everything is appended: leave full blocks behind, not half-empty ones.
        half = len(block) - 1 if item > block[-1] else len(block) // 2
        self._blocks.insert(at + 1, block[half:])
        self._firsts.insert(at + 1, block[half])
        del block[half:]
        self._rebuild()
        return at + 1 if item > self._firsts[at + 1] else at

    def _count(self, at: int, change: int) -> None:
        node, tree = at + 1, self._tree
        while node < len(tree):
            tree[node] += change
            node += node & -node

    def _rebuild(self) -> None:
        tree = [0, *map(len, self._blocks)]
        for node in range(1, len(tree)):
            parent = node + (node & -node)
            if parent < len(tree):
                tree[parent] += tree[node]
        self._tree = tree
