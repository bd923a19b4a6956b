"""The tables and bars of a simulated run."""

from __future__ import annotations

from random import Random
from xml.etree import ElementTree

import pytest

from harness_kit.core_builders import make_pool
from orch_simulator.outcome import Outcome
from orch_simulator.report import bar, duration, headline, tables
from orch_simulator.simulation import FleetPool, Simulation
from orch_simulator.svg_chart import outcome_svg
from orch_simulator.workload import PoissonWorkload

SVG = "{http://www.w3.org/2000/svg}"


@pytest.fixture(scope="module")
def outcome() -> Outcome:
    workload = PoissonWorkload(120, 4.0, ("a", "<b>"))
    pool = FleetPool(make_pool(capacity=5), 1, 2)
    return Simulation([pool], workload.arrivals(Random(1)), random=Random(2)).run()


def test_tables_have_a_cell_for_every_column(outcome: Outcome) -> None:
    built = tables(outcome, most_flows=20)

    assert [len(row) for table in built for row in table.rows] == [
        len(table.columns) for table in built for _ in table.rows
    ]
    assert [row[:2] for row in built[0].rows] == [
        ("all", "interactive"),
        ("all", "batch"),
        ("all", "all"),
    ]
    assert any("queue-full" in row for table in built for row in table.rows)


def test_only_the_most_served_tenants_are_listed_and_the_title_says_so(outcome: Outcome) -> None:
    table = tables(outcome, most_flows=1)[1]

    assert table.title == "By tenant and priority (the 1 most served of 4)"
    assert table.rows[0][0] == outcome.flows[0].tenant


def test_the_headline_counts_every_task(outcome: Outcome) -> None:
    total = outcome.total

    assert headline(outcome).startswith("120 tasks in ")
    assert f"{total.finished} finished, {sum(total.refused.values())} refused" in headline(outcome)


@pytest.mark.parametrize(
    ("ratio", "drawn"),
    [(0.0, ""), (1.0, "█" * 32), (0.5, "█" * 16), (1 / 64, "▌"), (7.0, "█" * 32)],
)
def test_bars_are_as_long_as_their_ratio(ratio: float, drawn: str) -> None:
    assert bar(ratio) == drawn


@pytest.mark.parametrize(
    ("span_ms", "said"),
    [(250, "250 ms"), (1_500, "1.5 s"), (200_000, "3 min 20 s"), (7_500_000, "2 h 5 min")],
)
def test_durations_read_as_people_say_them(span_ms: int, said: str) -> None:
    assert duration(span_ms) == said


def test_the_plot_is_a_drawing_with_a_line_for_each_class(outcome: Outcome) -> None:
    text = outcome_svg(outcome)
    root = ElementTree.fromstring(text)

    assert root.tag == f"{SVG}svg"
    names = {element.text for element in root.iter(f"{SVG}text")}
    assert {"interactive waiting", "batch waiting", "running", "interactive", "batch"} <= names
    lines = list(root.iter(f"{SVG}polyline"))
    assert len(lines) == 5
    for line in lines:
        pairs = [tuple(map(float, pair.split(","))) for pair in line.attrib["points"].split()]
        assert pairs
        assert all(80 <= x <= 710 and 0 <= y <= 600 for x, y in pairs)
    assert outcome_svg(outcome) == text
