"""One flow: the earliest deadline first."""

from __future__ import annotations

import pytest

from harness_kit.core_builders import T0_MS, make_task
from orchestrator_core.queueing.flow import Flow, sequence_of, turn_of


@pytest.mark.req("ORCH-3079", partial="refusals are tested at admission")
def test_the_earliest_deadline_is_at_the_head() -> None:
    flow = Flow()
    for sequence, (name, due_ms) in enumerate([("late", 900), ("soon", 100), ("mid", 500)]):
        task = make_task(name, deadline_at_ms=T0_MS + due_ms)
        flow.push(turn_of(task, sequence), task)

    assert flow.head.key == "acme/soon"


@pytest.mark.req("OC-CORE-1003")
def test_equal_deadlines_keep_arrival_order() -> None:
    flow = Flow()
    first, second = make_task("first"), make_task("second")

    flow.push(turn_of(second, 8), second)
    flow.push(turn_of(first, 7), first)

    assert flow.head.key == "acme/first"


def test_a_turn_gives_its_arrival_back_whatever_the_deadline() -> None:
    turns = [turn_of(make_task(deadline_at_ms=deadline), 5) for deadline in (T0_MS, T0_MS + 1)]

    assert [sequence_of(turn) for turn in turns] == [5, 5]


def test_tokens_ahead_are_estimated_from_the_average() -> None:
    flow = Flow()
    tasks = [make_task(str(i), cost_tokens=cost) for i, cost in enumerate((100, 200, 300))]
    for sequence, task in enumerate(tasks):
        flow.push(turn_of(task, sequence), task)

    ahead = flow.ahead(turn_of(tasks[2], 2))

    assert ahead == (2, 400)  # 2 tasks at (100 + 200 + 300) / 3 each


def test_a_removed_task_takes_its_cost_along() -> None:
    flow = Flow()
    task = make_task(cost_tokens=100)
    flow.push(turn_of(task, 0), task)

    flow.remove(turn_of(task, 0))

    assert (flow.size, flow.cost_tokens) == (0, 0)
