"""The configuration: types and schema. Generated from contracts/schemas/config.schema.json; do not edit."""

from __future__ import annotations

from importlib.resources import files

from orch_config.types import (
    Admission,
    ApiKey,
    Auth,
    BatchSlo,
    Catalog,
    CircuitBreaker,
    Cluster,
    Config,
    Fairness,
    HardPreemption,
    InteractiveSlo,
    Journal,
    Launch,
    Memory,
    ModelStore,
    Placement,
    Platform,
    Policy,
    Pool,
    Preemption,
    PriorityClass,
    Queue,
    Replica,
    Restarts,
    SamplerProfile,
    Server,
    SessionBudgets,
    Sessions,
    Slos,
    Streams,
    Tenant,
    Timeouts,
    TrustPolicy,
)

__all__ = [
    "Admission",
    "ApiKey",
    "Auth",
    "BatchSlo",
    "Catalog",
    "CircuitBreaker",
    "Cluster",
    "Config",
    "Fairness",
    "HardPreemption",
    "InteractiveSlo",
    "Journal",
    "Launch",
    "Memory",
    "ModelStore",
    "Placement",
    "Platform",
    "Policy",
    "Pool",
    "Preemption",
    "PriorityClass",
    "Queue",
    "Replica",
    "Restarts",
    "SamplerProfile",
    "Server",
    "SessionBudgets",
    "Sessions",
    "Slos",
    "Streams",
    "Tenant",
    "Timeouts",
    "TrustPolicy",
    "schema_text",
]


def schema_text() -> str:
    """The JSON Schema (2020-12) that these types were generated from."""
    return files(__name__).joinpath("config.schema.json").read_text(encoding="utf-8")
