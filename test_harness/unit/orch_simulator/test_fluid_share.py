"""The ideal shares that a simulated run is held against."""

from __future__ import annotations

import pytest

from orch_simulator.fluid_share import FluidShare

pytestmark = pytest.mark.req("ORCH-3075", partial="the queue")


def test_backlogged_members_are_entitled_by_weight_whoever_is_served() -> None:
    level = FluidShare()
    for key, weight in (("a", 3), ("b", 1)):
        level.enter(key, weight)
        level.enter(key, weight)

    level.serve("b", 40)

    assert level.totals() == {"a": (0, 30.0), "b": (40, 10.0)}


def test_who_does_not_wait_is_entitled_to_nothing() -> None:
    level = FluidShare()
    level.enter("a", 1)
    level.serve("a", 10)
    level.leave("a")
    level.enter("b", 1)

    level.serve("b", 50)
    level.leave("b")

    assert level.totals() == {"a": (10, 10.0), "b": (50, 50.0)}


def test_who_comes_late_is_entitled_from_then_on() -> None:
    level = FluidShare()
    level.enter("a", 1)
    level.enter("a", 1)
    level.serve("a", 100)
    level.leave("a")
    level.enter("b", 4)

    level.serve("b", 50)
    level.leave("b")
    level.serve("a", 7)

    # 100 alone; of 50 a fifth and b four fifths; 7 alone again.
    received, entitled = zip(*level.totals().values(), strict=True)
    assert received == (107, 50)
    assert entitled == pytest.approx((117.0, 40.0))
