"""A picture of a dashboard from a run's data: what its panels would show in Grafana.

Matplotlib draws each panel of the generated JSON, in its place, with the series that Prometheus
gave for its queries. Nothing here decides a test.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from harness_kit.prometheus_process import Series

COLUMNS = 2
PANEL_INCHES = (6.2, 2.1)
DPI = 72
# A legend says which lines there are; beyond these it would hide them.
LEGEND_LINES = 8


def draw(
    dashboard: Mapping[str, Any],
    graphs: Mapping[str, Sequence[tuple[str, Series]]],
    began_s: float,
    path: Path,
) -> None:
    """Write the picture of a dashboard; `graphs` has (legend, series) of each panel's title, times
    are seconds after `began_s`."""
    panels = dashboard["panels"]
    rows = -(-len(panels) // COLUMNS)
    figure = Figure(figsize=(PANEL_INCHES[0] * COLUMNS, PANEL_INCHES[1] * rows), dpi=DPI)
    FigureCanvasAgg(figure)
    figure.suptitle(dashboard["title"], fontsize=11)
    for place, panel in enumerate(panels, start=1):
        axes = figure.add_subplot(rows, COLUMNS, place)
        unit = panel["fieldConfig"]["defaults"]["unit"]
        axes.set_title(f"{panel['title']} [{unit}]", fontsize=8, loc="left")
        axes.tick_params(labelsize=6)
        axes.grid(visible=True, linewidth=0.3)
        lines = graphs[panel["title"]]
        for legend, series in lines:
            times = [at - began_s for at, _ in series.points]
            axes.plot(times, [value for _, value in series.points], linewidth=1, label=legend)
        axes.set_ylim(bottom=0)
        if 0 < len(lines) <= LEGEND_LINES:
            axes.legend(fontsize=6, loc="upper left", frameon=False)
    figure.tight_layout(rect=(0, 0, 1, 0.98))
    figure.savefig(path)


def legend_of(template: str, labels: Mapping[str, str]) -> str:
    """Grafana's `{{label}}` filled in."""
    return re.sub(r"\{\{(\w+)\}\}", lambda found: labels.get(found[1], ""), template)
