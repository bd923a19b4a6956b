"""One flow: the waiting tasks of one tenant at one priority, earliest deadline first.

On a task's path: entered at admission, left at dispatch, cancel, eviction or deadline. The
invariant: order is (deadline, arrival), so ties keep arrival order, and `cost_tokens` is the sum
over what waits. Requirements: ORCH-3004, ORCH-3079, OC-CORE-1003.
"""

from __future__ import annotations

from orchestrator_core.queueing.ranked_list import RankedList
from orchestrator_core.task import Task

# Bits of a turn that hold the arrival sequence: 35 years at a thousand tasks a second.
_SEQUENCE_BITS = 40


def turn_of(task: Task, sequence: int) -> int:
    """The place of a task in its flow: deadline first, then arrival; unique as `sequence` is.

    One integer, because comparing integers is what a deep queue spends its time on.
    """
    return task.deadline_at_ms << _SEQUENCE_BITS | sequence


def sequence_of(turn: int) -> int:
    """The arrival that `turn_of` was given."""
    return turn & ((1 << _SEQUENCE_BITS) - 1)


class Flow:
    """EDF queue of one (priority, tenant) pair, by turn."""

    __slots__ = ("_tasks", "_turns", "cost_tokens", "size")

    def __init__(self) -> None:
        self._turns = RankedList()
        self._tasks: dict[int, Task] = {}
        self.cost_tokens = 0
        self.size = 0

    @property
    def head(self) -> Task:
        """The task with the earliest deadline. Raises IndexError when empty."""
        return self._tasks[self._turns.first]

    def ends(self) -> tuple[tuple[Task, int], ...]:
        """The first and the last task with their arrivals; one if there is but one."""
        turns = dict.fromkeys((self._turns.first, self._turns.last))
        return tuple((self._tasks[turn], sequence_of(turn)) for turn in turns)

    def push(self, turn: int, task: Task) -> None:
        """Add a waiting task. O(log n)."""
        self._turns.add(turn)
        self._tasks[turn] = task
        self.size += 1
        self.cost_tokens += task.cost_tokens

    def remove(self, turn: int) -> None:
        """Take one task out wherever it stands. Raises KeyError when it is not there. O(log n)."""
        task = self._tasks.pop(turn)
        self._turns.remove(turn)
        self.size -= 1
        self.cost_tokens -= task.cost_tokens

    def ahead(self, turn: int) -> tuple[int, int]:
        """How many tasks go before `turn` in this flow, and their tokens (by the average)."""
        rank = self._turns.rank(turn)
        return rank, self.cost_tokens * rank // self.size if rank else 0
