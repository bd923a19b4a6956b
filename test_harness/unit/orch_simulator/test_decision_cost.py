"""How the cost of decisions is grouped."""

from __future__ import annotations

from itertools import accumulate

from harness_kit.core_builders import T0_MS, ready_scheduler
from orch_simulator.decision_cost import CostRow, DecisionMeter
from orchestrator_core.events import Tick


def test_steps_are_grouped_by_event_and_power_of_ten_of_what_waits() -> None:
    # The clock is read before and after each step: steps take 1000, 3000, 5000 and 7000 ns.
    times_ns = accumulate([0, 1000, 0, 3000, 0, 5000, 0, 7000])
    meter = DecisionMeter(lambda: next(times_ns))
    scheduler = ready_scheduler()

    for waiting in (0, 10, 99, 100):
        meter.step(scheduler, Tick(), T0_MS, waiting)

    assert meter.rows() == (
        CostRow("Tick", 0, 1, 1.0, 1.0, 1.0),
        CostRow("Tick", 10, 2, 4.0, 5.0, 5.0),
        CostRow("Tick", 100, 1, 7.0, 7.0, 7.0),
    )
