"""Metrics of the contract. Generated from contracts/metrics.yaml; do not edit."""

from __future__ import annotations

from orch_metrics.definitions import (
    CLOSED_LABELS,
    DEFINITIONS,
    LABEL_BUDGETS,
    OTHER,
    Definition,
    OrchMetrics,
)

__all__ = [
    "CLOSED_LABELS",
    "DEFINITIONS",
    "Definition",
    "LABEL_BUDGETS",
    "OTHER",
    "OrchMetrics",
]
