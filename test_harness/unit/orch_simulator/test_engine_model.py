"""How long an engine of the simulator takes."""

from __future__ import annotations

from random import Random
from statistics import fmean, pstdev

import pytest

from orch_simulator.engine_model import EngineModel, ServiceTime


def test_without_jitter_a_task_takes_its_tokens_at_the_pace() -> None:
    drawn = EngineModel(0.5, 20.0, jitter_ratio=0.0).draw(Random(1), 100, 30)

    assert drawn == ServiceTime(prefill_ms=50, decode_ms=600)
    assert drawn.total_ms == 650


def test_jitter_keeps_the_mean_and_has_the_spread_asked_for() -> None:
    random, model = Random(1), EngineModel(0.0, 10.0, jitter_ratio=0.2)

    times = [model.draw(random, 0, 100).decode_ms for _ in range(4000)]

    assert fmean(times) == pytest.approx(1000, rel=0.02)
    assert pstdev(times) / fmean(times) == pytest.approx(0.2, rel=0.05)


def test_tokens_come_evenly_after_the_prefill() -> None:
    service = ServiceTime(prefill_ms=50, decode_ms=600)

    assert [service.tokens_after(ms, 30) for ms in (0, 50, 350, 650, 900)] == [0, 0, 15, 30, 30]
