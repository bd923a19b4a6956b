"""The delays between restarts, worked by hand."""

from __future__ import annotations

import pytest

from pool_managerd.backoff import Backoff

pytestmark = pytest.mark.req("OC-POOL-3011", partial="the circuit breaker")


def test_delays_double_from_half_a_second_to_thirty() -> None:
    backoff = Backoff(lambda: 1.0)

    delays = [backoff.after_failure(0.0) for _ in range(9)]

    assert delays == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0, 30.0]


def test_jitter_takes_away_half_at_most() -> None:
    backoff = Backoff(lambda: 0.0)

    delays = [backoff.after_failure(0.0) for _ in range(8)]

    assert delays == [0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]


def test_a_minute_in_good_health_makes_it_begin_anew_and_less_does_not() -> None:
    backoff = Backoff(lambda: 1.0)
    backoff.after_failure(0.0)
    backoff.after_failure(0.0)

    assert backoff.after_failure(59.9) == 2.0
    assert backoff.after_failure(60.0) == 0.5


def test_any_number_of_failures_has_a_delay() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(3000):
        delay = backoff.after_failure(0.0)

    assert delay == 30.0
