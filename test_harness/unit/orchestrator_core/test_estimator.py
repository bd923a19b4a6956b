"""How long a task will take and wait, from what tasks before it took."""

from __future__ import annotations

import heapq

import pytest

from harness_kit.core_builders import make_task
from orchestrator_core.estimator import (
    ServiceTimes,
    generated_tokens,
    remaining_ms,
    start_delay_ms,
)
from orchestrator_core.limits import Limits
from orchestrator_core.task import Workload


def simulated(ahead: int, slots_ms: list[float], task_ms: float) -> float:
    """List scheduling played out one task at a time."""
    free = list(slots_ms)
    heapq.heapify(free)
    for _ in range(ahead):
        heapq.heapreplace(free, free[0] + task_ms)
    return free[0]


class TestServiceTimes:
    def test_the_first_observation_replaces_the_prior(self) -> None:
        times = ServiceTimes(Limits())

        times.observe(tokens_in=10, tokens_out=90, prefill_ms=100, decode_ms=900)

        assert times.task_ms(make_task()) == 10 * 10 + 90 * 10

    def test_later_ones_move_the_average_by_their_weight(self) -> None:
        times = ServiceTimes(Limits(ewma_weight_ratio=0.25))
        times.observe(10, 10, 100, 100)

        times.observe(10, 10, 500, 100)

        assert times.prefill_ms_per_token == 20.0
        assert times.decode_ms_per_token == 10.0

    def test_before_any_observation_the_prior_speaks(self) -> None:
        limits = Limits(prior_prefill_ms_per_token=2.0, prior_decode_ms_per_token=30.0)

        assert ServiceTimes(limits).service_ms(10, 5) == 170.0

    def test_what_did_not_happen_teaches_nothing(self) -> None:
        times = ServiceTimes(Limits())
        times.observe(10, 10, 100, 100)

        times.observe(tokens_in=0, tokens_out=0, prefill_ms=50, decode_ms=50)

        assert times.service_ms(10, 10) == 200.0

    def test_speed_is_known_after_three_tasks(self) -> None:
        times = ServiceTimes(Limits())

        known = []
        for _ in range(3):
            known.append(times.known)
            times.observe(10, 10, 100, 100)

        assert known == [False, False, False]
        assert times.known

    def test_embeddings_decode_nothing(self) -> None:
        assert generated_tokens(make_task()) == 90
        assert generated_tokens(make_task(workload=Workload.EMBEDDING)) == 0


@pytest.mark.req("ORCH-3081", partial="the metric and the event are the service's")
class TestOnTime:
    def times(self, finished: int = 3) -> ServiceTimes:
        times = ServiceTimes(Limits())
        for _ in range(finished):
            times.observe(10, 10, 100, 100)
        return times

    def test_it_is_even_when_the_expectation_is_the_deadline(self) -> None:
        assert self.times().on_time_ratio(1000, 1000) == 0.5

    def test_it_rises_with_slack(self) -> None:
        ratios = [self.times().on_time_ratio(1000, slack) for slack in (1, 500, 1000, 1500, 9000)]

        assert ratios == sorted(ratios)
        assert ratios[0] < 0.01
        assert ratios[-1] > 0.99

    def test_wrong_predictions_make_it_less_sure(self) -> None:
        steady, erratic = self.times(), self.times()
        for prefill_ms in (900, 10, 900, 10):
            erratic.observe(10, 10, prefill_ms, 100)

        assert erratic.on_time_ratio(1000, 1300) < steady.on_time_ratio(1000, 1300)

    def test_it_is_one_while_nothing_is_known_and_zero_after_the_deadline(self) -> None:
        assert self.times(finished=2).on_time_ratio(1000, 1) == 1.0
        assert self.times(finished=2).on_time_ratio(1000, 0) == 0.0


@pytest.mark.parametrize(("expected_end_ms", "left_ms"), [(1500, 500), (1000, 1), (600, 200)])
def test_a_task_that_overruns_is_expected_to_overrun_by_half_again(
    expected_end_ms: float, left_ms: float
) -> None:
    assert remaining_ms(expected_end_ms, now_ms=1000) == left_ms


class TestStartDelay:
    @pytest.mark.parametrize(
        ("ahead", "slots_ms", "expected_ms"),
        [
            (0, [300.0], 300),
            (2, [300.0], 500),  # two tasks of 100 after the running one
            (0, [0.0, 500.0], 0),
            (1, [0.0, 500.0], 100),
            (5, [0.0, 500.0], 500),  # five tasks of 100 on the first slot
            (6, [0.0, 500.0], 500),
            (7, [0.0, 500.0], 600),
            (3, [], 300),
        ],
    )
    def test_it_is_when_a_slot_comes_round(
        self, ahead: int, slots_ms: list[float], expected_ms: float
    ) -> None:
        assert start_delay_ms(ahead, slots_ms, 100.0) == pytest.approx(expected_ms, abs=1.0)

    @pytest.mark.parametrize("slots_ms", [[70.0], [0.0, 0.0, 0.0], [10.0, 35.0, 990.0, 991.0]])
    def test_it_agrees_with_a_simulation(self, slots_ms: list[float]) -> None:
        for ahead in range(60):
            expected = simulated(ahead, slots_ms, 40.0)
            assert start_delay_ms(ahead, slots_ms, 40.0) == pytest.approx(expected, abs=1.0)
