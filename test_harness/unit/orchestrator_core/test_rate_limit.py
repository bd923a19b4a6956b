"""A bucket of tokens that fills with time."""

from __future__ import annotations

import pytest

from harness_kit.core_builders import T0_MS
from orchestrator_core.admission.rate_limit import RateLimiter

KEY = ("client", "p", "acme", "c1", "interactive")


def burst(limiter: RateLimiter, rps: float, now_ms: int) -> int:
    """How many requests pass at one instant."""
    passed = 0
    while limiter.wait_ms(KEY, rps, now_ms) == 0:
        limiter.take(KEY, rps, now_ms)
        passed += 1
    return passed


@pytest.mark.req("ORCH-3006", partial="its place before the queue is tested elsewhere")
@pytest.mark.parametrize(("rps", "expected"), [(0.5, 1), (1, 1), (5, 5), (20, 20)])
def test_a_burst_of_at_least_one_second_passes(rps: float, expected: int) -> None:
    assert burst(RateLimiter(), rps, T0_MS) == expected


def test_the_wait_is_the_time_until_the_next_token() -> None:
    limiter = RateLimiter()
    burst(limiter, 4, T0_MS)

    assert limiter.wait_ms(KEY, 4, T0_MS) == 250
    assert limiter.wait_ms(KEY, 4, T0_MS + 100) == 150
    assert limiter.wait_ms(KEY, 4, T0_MS + 250) == 0


def test_looking_costs_nothing() -> None:
    limiter = RateLimiter()

    waits = [limiter.wait_ms(KEY, 1, T0_MS) for _ in range(10)]

    assert waits == [0] * 10
    assert len(limiter) == 0


def test_a_clock_that_steps_back_neither_refills_nor_stops_the_refill() -> None:
    limiter = RateLimiter()
    limiter.take(KEY, 2, T0_MS)
    back_ms = T0_MS - 3_600_000

    assert limiter.wait_ms(KEY, 2, back_ms) == 0
    limiter.take(KEY, 2, back_ms)

    assert limiter.wait_ms(KEY, 2, back_ms) == 500
    assert limiter.wait_ms(KEY, 2, back_ms + 100) == 400
    assert limiter.wait_ms(KEY, 2, back_ms + 500) == 0


def test_a_rate_of_zero_lets_nobody_pass() -> None:
    assert burst(RateLimiter(), 0, T0_MS) == 0


def test_the_least_recently_used_bucket_goes_first() -> None:
    limiter = RateLimiter(max_buckets=2)
    for name in ("a", "b", "a", "c"):
        limiter.take((name,), 2, T0_MS)

    assert len(limiter) == 2
    assert limiter.wait_ms(("a",), 2, T0_MS) == 500
    assert limiter.wait_ms(("b",), 2, T0_MS) == 0
