"""Grafana dashboards from `contracts/observability.yaml`: a JSON file each, as Grafana imports it.

Plain JSON of Grafana's dashboard schema (version 39, Grafana 11 and later) in a fixed order, so
that two runs give the same bytes. The reader chooses data source and pools. Requirement: ORCH-3028.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from orch_tools import observability

DIRECTORY = "generated/dashboards"

SCHEMA_VERSION = 39
# Grafana's grid has 24 columns.
PANEL_WIDTH, PANEL_HEIGHT, PANELS_A_ROW = 12, 8, 2

_DATA_SOURCE = {"type": "prometheus", "uid": "${datasource}"}
_VARIABLES = [
    {
        "name": "datasource",
        "label": "Data source",
        "type": "datasource",
        "query": "prometheus",
        "hide": 0,
        "refresh": 1,
    },
    {
        "name": "pool_id",
        "label": "Pool",
        "type": "query",
        "datasource": _DATA_SOURCE,
        "query": {"query": "label_values(queue_depth, pool_id)", "refId": "pools"},
        "definition": "label_values(queue_depth, pool_id)",
        "includeAll": True,
        "multi": True,
        "allValue": ".*",
        "current": {"text": "All", "value": "$__all"},
        "hide": 0,
        "refresh": 2,
        "sort": 1,
    },
]


def generate(root: Path) -> dict[str, str | bytes]:
    """Path -> content. Raises `ObservabilityError`."""
    declared = observability.read(root)
    return {
        f"{DIRECTORY}/{each['uid']}.json": json.dumps(dashboard(each), indent=1) + "\n"
        for each in declared["dashboards"]
    }


def dashboard(declared: dict[str, Any]) -> dict[str, Any]:
    """One dashboard; its panels stand in rows of two, in the order of the declaration."""
    return {
        "uid": declared["uid"],
        "title": f"llama-orch: {declared['title']}",
        "tags": ["llama-orch"],
        "description": f"Generated from {observability.SOURCE_PATH}.",
        "schemaVersion": SCHEMA_VERSION,
        "version": 1,
        "editable": True,
        "graphTooltip": 1,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "timezone": "browser",
        "templating": {"list": _VARIABLES},
        "annotations": {"list": []},
        "links": [],
        "panels": [_panel(index, each) for index, each in enumerate(declared["panels"])],
    }


def _panel(index: int, declared: dict[str, Any]) -> dict[str, Any]:
    row, column = divmod(index, PANELS_A_ROW)
    return {
        "id": index + 1,
        "title": declared["title"],
        "type": "timeseries",
        "datasource": _DATA_SOURCE,
        "gridPos": {
            "x": column * PANEL_WIDTH,
            "y": row * PANEL_HEIGHT,
            "w": PANEL_WIDTH,
            "h": PANEL_HEIGHT,
        },
        "fieldConfig": {
            "defaults": {
                "unit": declared["unit"],
                "min": 0,
                "custom": {"drawStyle": "line", "lineWidth": 1, "fillOpacity": 10},
            },
            "overrides": [],
        },
        "options": {
            "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
            "tooltip": {"mode": "multi", "sort": "desc"},
        },
        "targets": [
            {
                "refId": chr(ord("A") + number),
                "datasource": _DATA_SOURCE,
                "expr": expression,
                "legendFormat": legend,
                "range": True,
            }
            for number, (expression, legend) in enumerate(declared["queries"])
        ],
    }
