"""Two charts of a run as one SVG file: what waited and ran over time, and how long tasks waited.

After a simulated task's path. The invariant: the same outcome gives the same bytes; text is escaped
and nothing is loaded from elsewhere. Requirements: ORCH-3075.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

from orch_simulator.outcome import Outcome
from orchestrator_core.task import Priority

_WIDTH, _PANEL_HEIGHT = 860, 300
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 150, 36, 44
_TICKS = 5
# Readable for people with the common colour deficiencies (Okabe and Ito).
_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")


@dataclass(frozen=True, slots=True)
class Line:
    """One named line; points ascend in x."""

    name: str
    points: Sequence[tuple[float, float]]


def outcome_svg(outcome: Outcome) -> str:
    """The whole file as text."""
    moments = [(moment.at_ms / 1000, moment) for moment in outcome.timeline]
    fleet = [
        Line(f"{priority} waiting", [(at_s, moment.waiting[i]) for at_s, moment in moments])
        for i, priority in enumerate(Priority)
    ]
    fleet.append(Line("running", [(at_s, moment.running) for at_s, moment in moments]))
    waits = [
        Line(name, [(wait_ms / 1000, percent) for percent, wait_ms in enumerate(cdf)])
        for name, cdf in sorted(outcome.wait_cdf.items(), reverse=True)
    ]
    height = 2 * _PANEL_HEIGHT
    panels = [
        _panel(0, "Tasks over time", "seconds since the start", fleet),
        _panel(_PANEL_HEIGHT, "Share of tasks that waited at most so long (%)", "seconds", waits),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" '
        f'width="{_WIDTH}" height="{height}" font-family="sans-serif" font-size="12">\n'
        f'<rect width="{_WIDTH}" height="{height}" fill="white"/>\n{"".join(panels)}</svg>\n'
    )


def _panel(top: int, title: str, x_label: str, lines: Sequence[Line]) -> str:
    x_most = max((x for line in lines for x, _ in line.points), default=0.0) or 1.0
    y_most = max((y for line in lines for _, y in line.points), default=0.0) or 1.0
    left, right = _LEFT, _WIDTH - _RIGHT
    upper, lower = top + _TOP, top + _PANEL_HEIGHT - _BOTTOM

    def x_of(value: float) -> float:
        return left + (right - left) * value / x_most

    def y_of(value: float) -> float:
        return lower - (lower - upper) * value / y_most

    parts = [f'<text x="{left}" y="{top + 20}" font-weight="bold">{escape(title)}</text>\n']
    for tick in range(_TICKS + 1):
        x_value, y_value = x_most * tick / _TICKS, y_most * tick / _TICKS
        x, y = x_of(x_value), y_of(y_value)
        parts.append(
            f'<line x1="{left}" y1="{y:.1f}" x2="{right}" y2="{y:.1f}" stroke="#ddd"/>\n'
            f'<text x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{_number(y_value)}</text>\n'
            f'<text x="{x:.1f}" y="{lower + 16}" text-anchor="middle">{_number(x_value)}</text>\n'
        )
    parts.append(
        f'<text x="{(left + right) / 2:.0f}" y="{lower + 34}" text-anchor="middle">'
        f"{escape(x_label)}</text>\n"
    )
    for number, line in enumerate(lines):
        colour = _COLOURS[number % len(_COLOURS)]
        points = " ".join(f"{x_of(x):.1f},{y_of(y):.1f}" for x, y in line.points)
        y = upper + 18 * number + 8
        parts.append(
            f'<polyline fill="none" stroke="{colour}" stroke-width="1.5" points="{points}"/>\n'
            f'<rect x="{right + 12}" y="{y - 8}" width="10" height="10" fill="{colour}"/>\n'
            f'<text x="{right + 28}" y="{y + 1}">{escape(line.name)}</text>\n'
        )
    return "".join(parts)


def _number(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"
