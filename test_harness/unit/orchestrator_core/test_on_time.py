"""The probability of being on time, from what became of like promises."""

from __future__ import annotations

from math import e

import pytest

from orchestrator_core.on_time import OnTimeHistory, OnTimeTable
from orchestrator_core.task import Priority

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH

# The middle of a bin: no neighbour has a part in the answer.
Z = 0.0625


def table_of(met: int, missed: int, wider: OnTimeTable | None = None) -> OnTimeTable:
    table = OnTimeTable(wider)
    for number in range(met + missed):
        table.observe(Z, on_time=number % (met + missed) < met)
    return table


def test_without_outcomes_the_prior_answers() -> None:
    assert OnTimeTable().probability(Z, 0.7) == pytest.approx(0.7)


def test_few_outcomes_are_a_frequency_beside_one_believed_task() -> None:
    # Of four tasks three were on time, and one more is believed to be so with 0.5: 3.5 of 5. What
    # is forgotten of the first while the last comes is less than a hundredth of it.
    assert table_of(met=3, missed=1).probability(Z, 0.5) == pytest.approx(0.7, abs=0.01)


def test_what_happened_long_ago_is_forgotten() -> None:
    table = table_of(met=5_000, missed=0)

    for _ in range(3_000):
        table.observe(Z, on_time=False)

    assert table.probability(Z, 1.0) < 0.01


def test_outcomes_of_one_place_say_nothing_of_a_distant_one() -> None:
    table = table_of(met=0, missed=100)

    assert table.probability(2.0, 0.9) == pytest.approx(0.9)


@pytest.mark.parametrize("z", [-50.0, 50.0])
def test_beyond_the_last_bin_the_last_bin_answers(z: float) -> None:
    table = OnTimeTable()
    for _ in range(400):
        table.observe(z, on_time=False)

    assert table.probability(z, 1.0) < 0.01


def test_where_outcomes_are_few_those_of_more_tasks_are_believed() -> None:
    wider = table_of(met=0, missed=1_000)

    assert OnTimeTable(wider).probability(Z, 1.0) < 0.01
    assert table_of(met=80, missed=0, wider=wider).probability(Z, 1.0) > 0.85


def test_z_is_the_logarithm_of_time_left_over_time_expected() -> None:
    forecast = OnTimeHistory().waiting(BATCH, 60_000, expected_ms=1_000, slack_ms=1_000 * e)

    assert forecast is not None
    assert forecast.z == pytest.approx(1.0)


def test_time_that_is_over_has_no_forecast() -> None:
    history = OnTimeHistory()

    assert history.waiting(BATCH, 1_000, expected_ms=10, slack_ms=0) is None
    assert history.running(BATCH, expected_ms=10, within_ms=-1) is None


def test_likes_share_a_table_and_others_do_not() -> None:
    history = OnTimeHistory()

    def table(priority: Priority, deadline_ms: int) -> OnTimeTable:
        forecast = history.waiting(priority, deadline_ms, expected_ms=1, slack_ms=1)
        assert forecast is not None
        return forecast.table

    running = history.running(BATCH, expected_ms=1, within_ms=1)

    assert table(BATCH, 20_000) is table(BATCH, 25_000)
    assert len({id(table(*which)) for which in ((BATCH, 20_000), (BATCH, 2_000))}) == 2
    assert table(INTERACTIVE, 20_000) is not table(BATCH, 20_000)
    assert running is not None
    assert running.table is not table(BATCH, 20_000)


def test_however_long_a_deadline_is_the_number_of_tables_is_bounded() -> None:
    history = OnTimeHistory()

    forecasts = [history.waiting(BATCH, 10**power, 1.0, 1.0) for power in range(20)]

    assert len({id(forecast.table) for forecast in forecasts if forecast is not None}) <= 13
