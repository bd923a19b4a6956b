"""What a sliding window says of latencies and shares. The goal is 900 ms, the window 100 s in ten
sub-windows of 10 s; recent are 20 s in four sub-windows of 5 s, the one being filled among them.
"""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.services.slo_windows import ERROR_RATIO, SAMPLES_MIN, LatencyWindow, ShareWindow

GOAL_MS = 900
WINDOW_MS = 100_000
RECENT_MS = 20_000


def latencies(*samples: tuple[int, float]) -> LatencyWindow:
    """A window with samples of (second, milliseconds)."""
    window = LatencyWindow(GOAL_MS, WINDOW_MS, RECENT_MS)
    for second, latency_ms in samples:
        window.observe(latency_ms, second * 1000)
    return window


def errors(*samples: tuple[int, int], goal: float = 0.005) -> ShareWindow:
    """A window with samples of (second, 1 for a failure and 0 for none)."""
    window = ShareWindow(goal, WINDOW_MS, RECENT_MS, at_most=True)
    for second, failed in samples:
        window.observe(failed, 1, second * 1000)
    return window


def nearest_rank(values: list[int]) -> int:
    """The 95th percentile as the textbook has it."""
    return sorted(values)[-(-95 * len(values) // 100) - 1]


@pytest.mark.req("ORCH-3041", partial="measured; alerts are not built")
class TestLatencies:
    @given(st.lists(st.integers(1, 10_000_000), min_size=1, max_size=60))
    def test_the_percentile_is_at_most_5_percent_off_and_on_the_right_side_of_the_goal(
        self, values: list[int]
    ) -> None:
        window = latencies(*((0, value) for value in values))

        shown = LatencyWindow.p95_ms([window], 0)

        exact = nearest_rank(values)
        assert shown is not None
        assert abs(shown - exact) <= exact * (ERROR_RATIO + 1e-9)
        assert (shown > GOAL_MS) == (exact > GOAL_MS)

    @given(st.lists(st.integers(1, 2_000), min_size=SAMPLES_MIN, max_size=60))
    def test_whether_the_goal_is_missed_is_counted_exactly(self, values: list[int]) -> None:
        window = latencies(*((0, value) for value in values))

        verdict = LatencyWindow.judge([window], 0)

        assert verdict.violated == (nearest_rank(values) > GOAL_MS)
        assert verdict.met_ratio == sum(value <= GOAL_MS for value in values) / len(values)

    @given(st.lists(st.lists(st.integers(1, 5_000), max_size=30), min_size=1, max_size=4))
    def test_windows_of_several_pools_are_read_as_one(self, pools: list[list[int]]) -> None:
        apart = [latencies(*((0, value) for value in pool)) for pool in pools]
        together = latencies(*((0, value) for pool in pools for value in pool))

        verdict = LatencyWindow.judge(apart, 0)

        assert verdict == LatencyWindow.judge([together], 0)
        assert LatencyWindow.p95_ms(apart, 0) == LatencyWindow.p95_ms([together], 0)

    @pytest.mark.parametrize(("slow", "violated"), [(0, False), (5, False), (6, True)])
    def test_one_in_twenty_may_be_slow(self, slow: int, violated: bool) -> None:
        window = latencies(*[(0, 901)] * slow, *[(0, 900)] * (100 - slow))

        verdict = LatencyWindow.judge([window], 0)

        assert verdict == (100, (100 - slow) / 100, violated)

    def test_below_twenty_samples_nothing_is_judged_and_the_value_is_shown(self) -> None:
        window = latencies(*[(0, 5_000)] * 19)

        before = LatencyWindow.judge([window], 0)
        window.observe(5_000, 0)

        assert before == (19, None, False)
        assert LatencyWindow.judge([window], 0) == (20, 0.0, True)
        assert LatencyWindow.p95_ms([window], 0) == pytest.approx(5_000, rel=0.05)

    def test_an_empty_window_has_no_value(self) -> None:
        window = latencies()

        assert LatencyWindow.p95_ms([window], 0) is None
        assert LatencyWindow.judge([window], 0) == (0, None, False)

    def test_a_sub_window_is_forgotten_as_a_whole(self) -> None:
        window = latencies(*[(9, 500)] * 30, *[(10, 500)] * 40)

        counts = [LatencyWindow.judge([window], second * 1000)[0] for second in (99, 100, 109, 110)]

        assert counts == [70, 40, 40, 0]

    def test_what_goes_on_no_more_is_not_violated_any_more(self) -> None:
        window = latencies(*[(second, 5_000) for second in range(30)])

        verdicts = []
        for second in (30, 40, 45):
            window.observe(100, second * 1000)
            verdicts.append(LatencyWindow.judge([window], second * 1000))

        # Slow ones of 15..29, of 25..29 and none are among the latest.
        assert [verdict.violated for verdict in verdicts] == [True, True, False]
        assert [verdict.met_ratio for verdict in verdicts] == [1 / 31, 2 / 32, 3 / 33]

    def test_what_was_not_measured_lately_does_not_go_on(self) -> None:
        window = latencies(*[(second, 5_000) for second in range(30)])

        violated = [LatencyWindow.judge([window], at * 1000).violated for at in (29, 44, 45, 99)]

        assert violated == [True, True, False, False]

    def test_a_few_slow_ones_lately_do_not_violate_what_holds_over_the_window(self) -> None:
        window = latencies(*[(0, 100)] * 60, *[(99, 5_000)] * 3)

        assert not LatencyWindow.judge([window], 99_000).violated

    def test_a_long_silence_leaves_nothing_behind(self) -> None:
        window = latencies(*[(0, 5_000)] * 30)

        window.observe(100, 10**9)

        assert LatencyWindow.judge([window], 10**9).samples == 1
        assert LatencyWindow.p95_ms([window], 10**9) == pytest.approx(100, rel=0.05)

    def test_memory_does_not_grow_with_traffic(self) -> None:
        window = latencies(*((0, 1.02**i) for i in range(2_500)))

        (slot,) = window._long.slots(0)

        assert len(slot.buckets) < 300


@pytest.mark.req("ORCH-3041", partial="measured; alerts are not built")
class TestShares:
    @pytest.mark.parametrize(("failed", "violated"), [(0, False), (1, False), (2, True)])
    def test_errors_are_violated_above_their_goal(self, failed: int, violated: bool) -> None:
        window = errors(*[(0, 1)] * failed, *[(0, 0)] * (200 - failed))

        verdict = ShareWindow.judge([window], 0)

        assert (verdict.samples, verdict.violated) == (200, violated)
        assert verdict.met_ratio == pytest.approx(1 - failed / 200)
        assert ShareWindow.ratio([window], 0) == failed / 200

    @pytest.mark.parametrize(
        ("served", "met_ratio", "violated"), [(9, 1.0, False), (8, 1.0, False), (4, 0.5, True)]
    )
    def test_throughput_is_violated_below_its_goal(
        self, served: int, met_ratio: float, violated: bool
    ) -> None:
        window = ShareWindow(0.8, WINDOW_MS, RECENT_MS, at_most=False)
        for _ in range(SAMPLES_MIN):
            window.observe(served, 10, 0)

        verdict = ShareWindow.judge([window], 0)

        assert (verdict.samples, verdict.violated) == (SAMPLES_MIN, violated)
        assert verdict.met_ratio == pytest.approx(met_ratio)

    def test_nothing_is_more_than_all_of_it(self) -> None:
        window = ShareWindow(0.8, WINDOW_MS, RECENT_MS, at_most=False)
        window.observe(12, 10, 0)

        assert ShareWindow.ratio([window], 0) == 1.0

    def test_below_twenty_samples_nothing_is_judged_and_the_value_is_shown(self) -> None:
        window = errors(*[(0, 1)] * 19)

        assert ShareWindow.judge([window], 0) == (19, None, False)
        assert ShareWindow.ratio([window], 0) == 1.0

    def test_errors_that_have_stopped_are_not_violated_any_more(self) -> None:
        window = errors(*[(second, 1) for second in range(30)])

        verdicts = [ShareWindow.judge([window], 39_000)]
        for second in (44, 55):
            window.observe(0, 1, second * 1000)
            verdicts.append(ShareWindow.judge([window], second * 1000))

        assert [verdict.violated for verdict in verdicts] == [True, True, False]

    def test_a_goal_of_nothing_is_always_met(self) -> None:
        window = ShareWindow(0.0, WINDOW_MS, RECENT_MS, at_most=False)
        for _ in range(SAMPLES_MIN):
            window.observe(0, 10, 0)

        assert ShareWindow.judge([window], 0) == (SAMPLES_MIN, 1.0, False)
