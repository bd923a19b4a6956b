"""Generated arrivals: their rate, their mix, and their seed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from random import Random

import pytest

from orch_simulator.workload import Arrival, DeadlineRange, Lengths, PoissonWorkload
from orchestrator_core.task import Priority

TENANTS = ("a", "b", "c")


def drawn(seed: int = 1, **changes: object) -> list[Arrival]:
    options: dict[str, object] = {"tasks": 2000, "rate_per_s": 50.0, "tenants": TENANTS}
    workload = PoissonWorkload(**(options | changes))  # type: ignore[arg-type]
    return list(workload.arrivals(Random(seed)))


def test_equal_seeds_draw_equal_arrivals_and_others_do_not() -> None:
    assert drawn(seed=5) == drawn(seed=5)
    assert drawn(seed=5) != drawn(seed=6)


def test_arrivals_come_in_order_at_the_rate_asked_for() -> None:
    times = [arrival.at_ms for arrival in drawn()]

    assert times == sorted(times)
    # 2000 arrivals at 50/s take 40 s; the standard deviation of the sum is 40 / sqrt(2000) = 0.9 s.
    assert times[-1] == pytest.approx(40_000, abs=3 * 900)


def test_gaps_are_exponential() -> None:
    times = [arrival.at_ms for arrival in drawn(rate_per_s=1.0)]
    gaps = [after - before for before, after in pairwise(times)]

    longer_than_mean = sum(gap > 1000 for gap in gaps) / len(gaps)

    assert longer_than_mean == pytest.approx(0.368, abs=0.04)  # 1/e


def test_the_mix_of_priorities_and_tenants_is_the_one_asked_for() -> None:
    mix = {Priority.INTERACTIVE: 3.0, Priority.BATCH: 1.0}

    arrivals = drawn(priority_mix=mix, tenant_skew=1.0)
    priorities = Counter(arrival.priority for arrival in arrivals)
    tenants = Counter(arrival.tenant for arrival in arrivals)

    assert priorities[Priority.INTERACTIVE] == pytest.approx(1500, abs=80)
    # Zipf with exponent 1 over three: 6/11, 3/11, 2/11.
    assert [tenants[name] / 2000 for name in TENANTS] == pytest.approx(
        [0.545, 0.273, 0.182], abs=0.04
    )


def test_every_task_fits_the_context_and_gets_no_more_than_it_asked_for() -> None:
    arrivals = drawn(ctx_tokens=300, prompt=Lengths(200, 1.0, 4000), output=Lengths(100, 1.0, 4000))

    assert max(a.prompt_tokens + a.max_tokens for a in arrivals) == 300
    assert all(1 <= a.tokens_out <= a.max_tokens for a in arrivals)
    assert all(a.prompt_tokens >= 1 for a in arrivals)


def test_lengths_have_the_median_asked_for_and_their_bound() -> None:
    random = Random(3)
    lengths = sorted(Lengths(100, 1.0, 500).draw(random) for _ in range(2001))

    assert lengths[1000] == pytest.approx(100, rel=0.1)
    assert lengths[-1] == 500
    assert Lengths(7, 0.0, 500).draw(random) == 7


def test_deadlines_stay_within_their_range_and_reach_both_ends() -> None:
    random = Random(3)
    deadlines = [DeadlineRange(1_000, 100_000).draw(random) for _ in range(1000)]

    assert all(1_000 <= deadline <= 100_000 for deadline in deadlines)
    # Even over the orders of magnitude: half of them are below the geometric middle.
    assert sum(deadline < 10_000 for deadline in deadlines) == pytest.approx(500, abs=60)
