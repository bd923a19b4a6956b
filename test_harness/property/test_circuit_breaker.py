"""The circuit breaker under any course of violations: order, pace, and that it always closes."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator_core.admission.circuit_breaker import BreakerPolicy, CircuitBreaker
from orchestrator_core.task import Priority

ORDER = (Priority.INTERACTIVE, Priority.BATCH)

policies = st.builds(BreakerPolicy, st.integers(1, 50), st.integers(1, 50))
violations = st.frozensets(st.sampled_from(ORDER))
# Runs of the same verdict, so that one lasts long enough to matter: (milliseconds, who).
courses = st.lists(
    st.tuples(st.integers(1, 5), st.integers(1, 60), violations), min_size=1, max_size=20
)


def play(
    breaker: CircuitBreaker, course: list[tuple[int, int, frozenset[Priority]]]
) -> list[tuple[int, frozenset[Priority], int]]:
    """(time, violated, how many are refused) after each look."""
    seen, now_ms = [], 0
    for step_ms, looks, violated in course:
        for _ in range(looks):
            now_ms += step_ms
            before = len(breaker.shed)
            changed = breaker.observe(violated, now_ms)
            assert changed == (len(breaker.shed) != before)
            seen.append((now_ms, violated, len(breaker.shed)))
    return seen


@pytest.mark.req("ORCH-3040")
@given(policies, courses)
def test_the_lowest_goes_first_and_comes_back_last_one_at_a_time(
    policy: BreakerPolicy, course: list[tuple[int, int, frozenset[Priority]]]
) -> None:
    breaker = CircuitBreaker(policy)

    levels = [0]
    for _, _, level in play(breaker, course):
        levels.append(level)
        assert breaker.shed == ORDER[len(ORDER) - len(breaker.shed) :]

    assert all(abs(after - before) <= 1 for before, after in pairwise(levels))


@pytest.mark.req("ORCH-3040")
@given(policies, courses)
def test_it_never_changes_faster_than_its_times(
    policy: BreakerPolicy, course: list[tuple[int, int, frozenset[Priority]]]
) -> None:
    seen = [(0, frozenset[Priority](), 0), *play(CircuitBreaker(policy), course)]

    changes = [
        (at_ms, level - before)
        for (_, _, before), (at_ms, _, level) in pairwise(seen)
        if level != before
    ]
    for (earlier_ms, _), (at_ms, step) in pairwise([(0, 0), *changes]):
        pause_ms = policy.open_after_ms if step > 0 else policy.close_after_ms
        assert at_ms - earlier_ms >= pause_ms


@pytest.mark.req("ORCH-3040")
@given(policies, courses)
def test_it_opens_only_on_a_violation_that_has_lasted(
    policy: BreakerPolicy, course: list[tuple[int, int, frozenset[Priority]]]
) -> None:
    seen = [(0, frozenset[Priority](), 0), *play(CircuitBreaker(policy), course)]

    for index, (at_ms, _, level) in enumerate(seen[1:], start=1):
        if level > seen[index - 1][2]:
            lasting = [v for t, v, _ in seen if at_ms - policy.open_after_ms <= t <= at_ms and t]
            assert lasting
            assert all(Priority.INTERACTIVE in violated for violated in lasting)


@pytest.mark.req("ORCH-3040")
@given(policies, courses, st.booleans())
def test_without_violations_everything_is_admitted_again(
    policy: BreakerPolicy, course: list[tuple[int, int, frozenset[Priority]]], batch: bool
) -> None:
    breaker = CircuitBreaker(policy)
    now_ms = play(breaker, course)[-1][0]
    calm = frozenset({Priority.BATCH}) if batch else frozenset[Priority]()

    for _ in range(2 * policy.close_after_ms + 2):
        now_ms += 1
        breaker.observe(calm, now_ms)

    assert breaker.shed == ()


@pytest.mark.req("ORCH-3040")
@given(policies, courses)
def test_everything_is_never_refused_for_longer_than_it_takes_to_close(
    policy: BreakerPolicy, course: list[tuple[int, int, frozenset[Priority]]]
) -> None:
    seen = play(CircuitBreaker(policy), course)

    since_ms = None
    for at_ms, _, level in seen:
        if level < len(ORDER):
            since_ms = None
        else:
            since_ms = at_ms if since_ms is None else since_ms
            assert at_ms - since_ms < policy.close_after_ms


@pytest.mark.req("ORCH-3040")
@given(policies, courses)
def test_nobody_is_admitted_before_the_time_that_was_named(
    policy: BreakerPolicy, course: list[tuple[int, int, frozenset[Priority]]]
) -> None:
    breaker = CircuitBreaker(policy)
    named_ms: dict[Priority, int] = {}

    now_ms = 0
    for step_ms, looks, violated in course:
        for _ in range(looks):
            now_ms += step_ms
            breaker.observe(violated, now_ms)
            for priority in ORDER:
                if priority in breaker.shed:
                    in_ms = breaker.admits_in_ms(priority, now_ms)
                    named_ms[priority] = max(named_ms.get(priority, 0), now_ms + in_ms)
                else:
                    assert breaker.admits_in_ms(priority, now_ms) == 0
                    assert now_ms >= named_ms.pop(priority, now_ms)
