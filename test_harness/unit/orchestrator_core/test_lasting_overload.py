"""From when on a queue counts as overloaded for good, and what ends that."""

from __future__ import annotations

import pytest

from harness_kit.core_builders import T0_MS, make_pool, make_task
from orchestrator_core.pool import FullPolicy
from orchestrator_core.queueing.pool_queue import LASTING_MS, PoolQueue
from orchestrator_core.task import Priority


def full_queue(capacity: int) -> PoolQueue:
    queue = PoolQueue(make_pool(capacity=capacity, policy=FullPolicy.DROP_LRU))
    refill(queue, capacity)
    return queue


def refill(queue: PoolQueue, capacity: int) -> None:
    for number in range(len(queue), capacity):
        queue.push(make_task(f"t{number}"), number)


def take(queue: PoolQueue, number: int) -> None:
    for _ in range(number):
        queue.pop()


def lasts(queue: PoolQueue) -> bool:
    room = queue.find_room(Priority.INTERACTIVE)
    assert room is not None
    return room.lasting


def test_a_queue_that_has_just_become_full_is_not_overloaded_for_good() -> None:
    queue = full_queue(1)

    unobserved = lasts(queue)
    queue.observe(T0_MS)

    assert (unobserved, lasts(queue)) == (False, False)


def test_it_lasts_when_it_was_full_for_ten_seconds() -> None:
    queue = full_queue(10)
    seen = []

    for passed_ms in (0, LASTING_MS - 1, LASTING_MS):
        queue.observe(T0_MS + passed_ms)
        seen.append(lasts(queue))

    assert seen == [False, False, True]


@pytest.mark.parametrize(
    ("capacity", "taken", "still"), [(10, 1, True), (10, 2, False), (2, 1, True), (1, 1, False)]
)
def test_it_is_over_when_less_than_nine_tenths_wait(capacity: int, taken: int, still: bool) -> None:
    queue = full_queue(capacity)
    queue.observe(T0_MS)

    take(queue, taken)
    queue.observe(T0_MS + 1)
    refill(queue, capacity)
    queue.observe(T0_MS + LASTING_MS)

    assert lasts(queue) is still


def test_a_clock_that_steps_back_makes_nothing_older() -> None:
    queue = full_queue(1)
    queue.observe(T0_MS)

    queue.observe(T0_MS - 5_000)
    queue.observe(T0_MS - 5_000 + LASTING_MS)

    assert lasts(queue)
