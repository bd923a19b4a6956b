"""Ratios pair figures of one repetition, and the verdict follows the median."""

from __future__ import annotations

import io
import json
from dataclasses import replace

import pytest
from rich.console import Console

from bench.admission import Admission, Admitted
from bench.core import CoreCost
from bench.goals import admission_goals, relay_goals, spread
from bench.load import Outcome, Quantiles
from bench.peers import ROUTER, SERVICE
from bench.relay import Measured, Relayed
from bench.report import Results, show

RANKS = Quantiles(1.0, 2.0, 3.0, 4.0)


def outcome(requests: int, tokens: int, errors: int = 0) -> Outcome:
    return Outcome(requests, tokens, 2.0, RANKS, RANKS, RANKS, RANKS, errors, ())


def measured(requests: int, tokens: int, cpu_s: float) -> Measured:
    return Measured(outcome(requests, tokens), cpu_s, 0.0, 0.0, 0.0)


def relayed(
    peer: str, task_ms: float, quickack_ms: float, paced_us: float, repetition: int = 0
) -> Relayed:
    # 100 requests are taken off at the price of the task phase: paced CPU is tokens + requests.
    paced_s = 10_000 * paced_us / 1e6 + 100 * task_ms / 1e3
    return Relayed(
        peer,
        repetition,
        measured(1000, 1000, task_ms),
        measured(1000, 1000, quickack_ms),
        measured(32, 32_000, 0.5),
        measured(100, 10_000, paced_s),
        64.0,
    )


def admitted(p99_ms: float) -> Admission:
    seen = replace(outcome(2000, 0), total_ms=replace(RANKS, p99=p99_ms))
    return Admission({1: Admitted(outcome(10, 0), 0.1, 0.0)}, Admitted(seen, 1.0, 0.0))


def test_the_requests_are_taken_off_the_price_of_a_token() -> None:
    one = relayed(SERVICE, task_ms=0.3, quickack_ms=0.2, paced_us=45.0)

    assert one.task_ms == pytest.approx(0.3)
    assert one.paced_us == pytest.approx(45.0)


def test_ratios_pair_the_repetitions_and_name_both_clients() -> None:
    repetitions = [
        relayed(SERVICE, 0.3, 0.25, 30.0),
        relayed(ROUTER, 0.3, 0.2, 30.0),
        relayed(ROUTER, 0.2, 0.4, 20.0, repetition=1),
        relayed(SERVICE, 0.22, 0.25, 26.0, repetition=1),
        relayed(SERVICE, 9.9, 9.9, 99.0, repetition=2),
    ]

    token, task, task_best = relay_goals(repetitions)

    assert (token.figure.low, token.figure.high) == pytest.approx((1.0, 1.3))
    assert (task.figure.low, task.figure.high) == pytest.approx((1.0, 1.1))
    assert (task_best.figure.low, task_best.figure.high) == pytest.approx((1.1, 1.5))
    assert (token.met, task.met, task_best.met) == (True, True, False)


def test_without_the_router_there_is_no_ratio() -> None:
    assert relay_goals([relayed(SERVICE, 0.3, 0.3, 30.0)]) == []


@pytest.mark.parametrize(("p99_ms", "met"), [(9.9, True), (10.1, False)])
def test_the_202_is_judged_by_its_p99(p99_ms: float, met: bool) -> None:
    (goal,) = admission_goals([admitted(p99_ms)])

    assert goal.met is met


def test_a_spread_is_median_and_extremes() -> None:
    assert str(spread([3.0, 1.0, 2.0])) == "2 (1-3)"


def test_tables_and_json_show_every_measure_with_its_verdict() -> None:
    results = Results(
        settings={"reps": "1"},
        core=[CoreCost(1000, 12_345.0, 6_000.0)],
        admission=[admitted(5.0)],
        relay=[relayed(SERVICE, 0.3, 0.25, 30.0), relayed(ROUTER, 0.2, 0.2, 40.0)],
        profile={"paced": [("write (uvloop)", 0.25)]},
        failures=["relay, direct: broken"],
    )
    console = Console(width=250, record=True, file=io.StringIO())

    show(results, console)
    text = console.export_text()
    document = json.loads(json.dumps(results.document()))

    for shown in (
        "1,000",
        "12.3",
        "sglang-router",
        "25.0 %",
        "met",
        "missed",
        "relay, direct: broken",
    ):
        assert shown in text
    assert [goal["met"] for goal in document["goals"]] == [True, False, False, True]
    assert document["relay"][0]["phases"]["paced"]["outcome"]["tokens"] == 10_000
