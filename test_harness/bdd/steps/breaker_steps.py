"""Steps about objectives that are missed, and who is refused for it.

The scenarios promise a first token within a millisecond; tasks here are held until the last of a
few has begun, so that nearly all of them are late.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count

from pytest_bdd import parsers, then, when

from bdd.journey import Journey
from bdd.stage import PATIENCE_S
from harness_kit.waiting import wait_until

AT_ONCE = 5


def _until(
    journey: Journey, pool: str, late: Callable[[int], None], met: Callable[[], bool]
) -> None:
    rounds = count()

    def come_true() -> bool:
        late(next(rounds))
        return met()

    wait_until(come_true, PATIENCE_S, f"enough tasks of {pool} are late")


def _breaker_is_open(journey: Journey, pool: str) -> bool:
    open_for = journey.service.metric("admission_breaker_open", pool_id=pool, priority="batch")
    return open_for == 1


def _hold_and_let_go(journey: Journey, pool: str, number: int) -> None:
    """A few tasks start, wait for their first token, and end well."""
    engine = journey.engine(pool)
    engine.hold()
    names = [f"late {number}.{each}" for each in range(AT_ONCE)]
    for name in names:
        assert journey.submit("acme", pool, name, max_tokens=1).answer.status == 202
    engine.wait_busy(AT_ONCE)
    engine.allow()
    for name in names:
        assert journey.read(name)[-1].name == "end"


@when(parsers.parse('interactive tasks of "{pool}" are late until its circuit breaker opens'))
def late_until_open(journey: Journey, pool: str) -> None:
    _until(
        journey,
        pool,
        lambda number: _hold_and_let_go(journey, pool, number),
        lambda: _breaker_is_open(journey, pool),
    )


@when(parsers.parse('interactive tasks of "{pool}" are late until its objective is violated'))
def late_until_violated(journey: Journey, pool: str) -> None:
    def violated() -> bool:
        lines = journey.service.log_lines("slo.violated")
        return any(line["pool_id"] == pool for line in lines)

    _until(journey, pool, lambda number: _hold_and_let_go(journey, pool, number), violated)


@when(
    parsers.parse('waiting interactive tasks of "{pool}" are late until its circuit breaker opens')
)
def cancelled_until_open(journey: Journey, pool: str) -> None:
    """No slot is free for them; their clients give up after longer than was promised."""

    def give_up(number: int) -> None:
        name = f"impatient {number}"
        asked = journey.submit("acme", pool, name)
        assert asked.answer.status == 202, asked.answer
        depth = ("queue_depth", {"pool_id": pool, "priority": "interactive"})
        assert journey.service.metric(depth[0], **depth[1]) == 1
        assert journey.probe("acme").post(f"/v1/tasks/{asked.task_id}/cancel").status == 204

    _until(journey, pool, give_up, lambda: _breaker_is_open(journey, pool))


@when(parsers.parse('nobody is late any more and "{name}" is sent again until it is admitted'))
def sent_until_closed(journey: Journey, name: str) -> None:
    wait_until(lambda: journey.ask_again(name).status == 202, PATIENCE_S, f"{name} is admitted")


@then(parsers.parse('the message to "{name}" names {objective} and its goal {goal}'))
def message_names_the_objective(journey: Journey, name: str, objective: str, goal: str) -> None:
    message = journey.asked[name].answer.json()["message"]
    words = message.replace(",", "").split()
    assert objective in words, message
    assert words[-2:] == ["goal", goal], message
