"""The restart circuit, worked by hand: closed, open, half open."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.restart_breaker import RestartBreaker

pytestmark = pytest.mark.req("ORCH-3053", "OC-POOL-3011")


def breaker() -> RestartBreaker:
    """Three failures within 100 s open it for 10 s; a trial is proven after 60 s."""
    return RestartBreaker(3, 100, 10, 60)


def test_it_opens_with_the_last_failure_that_the_window_allows() -> None:
    circuit = breaker()

    assert [circuit.after_failure(at_s, 0) for at_s in (0, 50, 100)] == [None, None, 10]


def test_failures_that_left_the_window_do_not_count() -> None:
    circuit = breaker()

    assert [circuit.after_failure(at_s, 0) for at_s in (0, 50, 101, 151, 202)] == [None] * 5


def test_a_trial_that_fails_doubles_the_rest_up_to_eight_times() -> None:
    circuit = breaker()

    rests = [circuit.after_failure(1000 * number, 0) for number in range(3)]
    assert rests == [None] * 3
    rests = [circuit.after_failure(at_s, 0) for at_s in (2001, 2002)]
    assert rests == [None, 10]
    rests = [circuit.after_failure(3000 + 1000 * number, 0) for number in range(5)]
    assert rests == [20, 40, 80, 80, 80]


def test_a_trial_that_crashes_before_it_is_proven_has_failed() -> None:
    circuit = breaker()
    for at_s in (0, 1, 2):
        circuit.after_failure(at_s, 0)

    assert circuit.after_failure(80, 59.9) == 20


def test_a_proven_trial_closes_it_and_the_failures_are_forgotten() -> None:
    circuit = breaker()
    for at_s in (0, 1, 2):
        circuit.after_failure(at_s, 0)

    after = [circuit.after_failure(at_s, healthy_s) for at_s, healthy_s in ((80, 60), (81, 0))]

    assert after == [None, None]
    assert circuit.after_failure(82, 0) == 10


def test_one_failure_is_enough_where_one_is_configured() -> None:
    circuit = RestartBreaker(1, 5, 10, 60)

    assert [circuit.after_failure(at_s, 0) for at_s in (0, 20)] == [10, 20]


@given(
    st.integers(1, 5),
    st.lists(st.tuples(st.floats(0, 50), st.sampled_from([0.0, 1.0, 60.0])), max_size=60),
)
def test_however_it_fails_the_starts_stay_bounded(
    max_failures: int, lives: list[tuple[float, float]]
) -> None:
    """The engine is started at once whenever it may be: the worst storm there can be."""
    circuit = RestartBreaker(max_failures, 100, 10, 60)
    now_s, failures_s, rest_s = 0.0, [], None
    for life_s, healthy_s in lives:
        now_s += max(life_s, healthy_s) + (rest_s or 0.0)
        rest_s = circuit.after_failure(now_s, healthy_s)
        failures_s.append(now_s)
        if rest_s is None:
            recent = [at_s for at_s in failures_s if now_s - at_s <= 100]
            assert len(recent) < max_failures or healthy_s >= 60
        else:
            assert rest_s in (10, 20, 40, 80)
            failures_s.clear()
