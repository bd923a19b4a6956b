"""The core measure drives a scheduler whose queue really has the stated length."""

from __future__ import annotations

import pytest

from bench.core import SLOTS, QueueDriver, WrongDecision, queue_cost


def test_the_queue_holds_what_has_no_slot() -> None:
    driver = QueueDriver(capacity=200)

    for submission in driver.tasks(SLOTS + 10):
        driver.submit(submission)

    assert driver.waiting == 10


def test_every_finished_task_starts_a_waiting_one() -> None:
    driver = QueueDriver(capacity=200)
    for submission in driver.tasks(SLOTS + 10):
        driver.submit(submission)

    for _ in range(10):
        driver.finish_oldest()

    assert driver.waiting == 0
    with pytest.raises(WrongDecision):
        driver.finish_oldest()


def test_a_refused_task_ends_the_measure() -> None:
    driver = QueueDriver(capacity=10)
    *fitting, one_more = driver.tasks(SLOTS + 10 + 1)
    for submission in fitting:
        driver.submit(submission)

    with pytest.raises(WrongDecision):
        driver.submit(one_more)


def test_the_cost_is_per_cycle_at_the_asked_length() -> None:
    cost = queue_cost(100, cycles=50)

    assert cost.waiting == 100
    assert 100 < cost.cycle_ns < 10_000_000
    assert cost.fill_ns_per_task > 0
