"""What an enqueue costs, in steps of the interpreter: the same on every machine."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest

from harness_kit.core_builders import T0_MS, make_pool, make_task
from orchestrator_core.queueing.pool_queue import PoolQueue
from orchestrator_core.queueing.ranked_list import BLOCK_ITEMS
from orchestrator_core.task import Task

SMALL, LARGE = 1_000, 16_000
# Full blocks split meanwhile, so that what they cost is in the mean.
SAMPLE = BLOCK_ITEMS


def waiting(number: int, deadline_of: Callable[[int], int]) -> tuple[PoolQueue, list[Task]]:
    """A queue of so many tasks, and those that come next."""
    queue = PoolQueue(make_pool(capacity=2 * LARGE, interactive=2 * LARGE))
    task = make_task()
    tasks = [
        make_task(str(i), session_key=task.session_key, deadline_at_ms=deadline_of(i))
        for i in range(number + SAMPLE)
    ]
    for sequence, each in enumerate(tasks[:number]):
        queue.push(each, sequence)
    return queue, tasks[number:]


def steps_per_push(number: int, deadline_of: Callable[[int], int]) -> float:
    """Lines that one push into a queue of `number` executes, on average."""
    queue, newcomers = waiting(number, deadline_of)
    lines = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal lines
        del frame, argument
        lines += event == "line"
        return trace

    outer = sys.gettrace()
    sys.settrace(trace)
    try:
        for sequence, task in enumerate(newcomers, number):
            queue.push(task, sequence)
    finally:
        sys.settrace(outer)
    return lines / SAMPLE


@pytest.mark.req("OC-CORE-1003")
@pytest.mark.parametrize(
    "deadline_of",
    [lambda i: T0_MS, lambda i: T0_MS + i * 7919 % 15_991],
    ids=["equal deadlines", "deadlines in any order"],
)
def test_sixteen_times_the_queue_costs_a_few_steps_more(deadline_of: Callable[[int], int]) -> None:
    small = steps_per_push(SMALL, deadline_of)

    large = steps_per_push(LARGE, deadline_of)

    # log2(16) is 4: so many levels more in the tree of counts, of two lines each.
    assert small > 0
    assert large - small <= 8
