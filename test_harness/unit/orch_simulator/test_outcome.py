"""What is measured of a simulated run."""

from __future__ import annotations

import pytest

from orch_simulator.ledger import Ledger
from orch_simulator.outcome import Calibration, Quantiles, quantiles, worst_calibration_error
from orchestrator_core.task import Priority

pytestmark = pytest.mark.req("ORCH-3081", partial="all but how the simulator measures it")


def told(probability: float, *, on_time: int, late: int, into: Calibration) -> None:
    for index in range(on_time + late):
        into.add(probability, index < on_time)


def test_a_probability_that_comes_true_is_off_by_nothing() -> None:
    calibration = Calibration()
    told(0.75, on_time=300, late=100, into=calibration)
    told(1.0, on_time=200, late=0, into=calibration)

    rows = calibration.rows()

    assert [(row.from_ratio, row.tasks) for row in rows] == [(0.7, 400), (0.9, 200)]
    assert worst_calibration_error(rows) == pytest.approx(0.0)


def test_the_worst_decile_with_enough_tasks_counts() -> None:
    calibration = Calibration()
    told(0.25, on_time=100, late=100, into=calibration)
    told(0.55, on_time=199, late=0, into=calibration)

    assert worst_calibration_error(calibration.rows()) == pytest.approx(0.25)
    assert worst_calibration_error(calibration.rows()[1:]) is None


def test_quantiles_are_values_that_were_measured() -> None:
    assert quantiles([]) == Quantiles(0, 0.0, 0, 0, 0, 0)
    assert quantiles([5]) == Quantiles(1, 5.0, 5, 5, 5, 5)
    assert quantiles(list(range(101))) == Quantiles(101, 50.0, 50, 90, 99, 100)


def test_a_long_run_keeps_a_bounded_timeline_that_reaches_its_end() -> None:
    ledger = Ledger()

    for at_ms in range(0, 10_000_000, 250):
        ledger.running = at_ms
        ledger.sample(at_ms)
    moments = ledger.outcome(simulated_ms=10_000_000, steps=0, slots=1, costs=()).timeline

    assert 200 < len(moments) <= 513
    assert moments[0].at_ms == 0
    assert moments[-1].at_ms > 9_900_000
    assert all(moment.running == moment.at_ms for moment in moments)
    assert moments[0].waiting == (0,) * len(Priority)
