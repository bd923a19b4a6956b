"""One flow: the waiting tasks of one tenant at one priority, earliest deadline first.

On a task's path: entered at admission, left at dispatch, cancel, eviction or deadline. The
invariant: order is (deadline, arrival), so ties keep arrival order, and `cost_tokens` is the sum
over what waits. Requirements: ORCH-3004, ORCH-3079, OC-CORE-1003.
"""

from __future__ import annotations

from orchestrator_core.queueing.ranked_list import Item, RankedList
from orchestrator_core.task import Task


class Flow:
    """EDF queue of one (priority, tenant) pair."""

    __slots__ = ("cost_tokens", "items", "tenant")

    def __init__(self, tenant: str) -> None:
        self.tenant = tenant
        self.items = RankedList()
        self.cost_tokens = 0

    def __len__(self) -> int:
        return len(self.items)

    @property
    def head(self) -> Task:
        """The task with the earliest deadline. Raises IndexError when empty."""
        return self.items.first[2]

    def push(self, item: Item) -> None:
        """Add a waiting task. O(log n)."""
        self.items.add(item)
        self.cost_tokens += item[2].cost_tokens

    def remove(self, item: Item) -> None:
        """Take one task out wherever it stands. Raises KeyError when it is not there. O(log n)."""
        self.items.remove(item)
        self.cost_tokens -= item[2].cost_tokens

    def ahead(self, item: Item) -> tuple[int, int]:
        """How many tasks go before `item` in this flow, and their tokens (by the average)."""
        rank = self.items.rank(item)
        return rank, self.cost_tokens * rank // len(self.items) if rank else 0
