"""The configuration: types and schema. Generated from contracts/schemas/config.schema.json; do not edit."""

from __future__ import annotations

from importlib.resources import files

from orch_config.types import (
    Admission,
    ApiKey,
    Auth,
    Catalog,
    Cluster,
    Config,
    Fairness,
    HardPreemption,
    Journal,
    Launch,
    ModelStore,
    Placement,
    Platform,
    Policy,
    Pool,
    Preemption,
    PriorityClass,
    Queue,
    Replica,
    SamplerProfile,
    Server,
    SessionBudgets,
    Sessions,
    Streams,
    Tenant,
    Timeouts,
    TrustPolicy,
)

__all__ = [
    "Admission",
    "ApiKey",
    "Auth",
    "Catalog",
    "Cluster",
    "Config",
    "Fairness",
    "HardPreemption",
    "Journal",
    "Launch",
    "ModelStore",
    "Placement",
    "Platform",
    "Policy",
    "Pool",
    "Preemption",
    "PriorityClass",
    "Queue",
    "Replica",
    "SamplerProfile",
    "Server",
    "SessionBudgets",
    "Sessions",
    "Streams",
    "Tenant",
    "Timeouts",
    "TrustPolicy",
    "schema_text",
]


def schema_text() -> str:
    """The JSON Schema (2020-12) that these types were generated from."""
    return files(__name__).joinpath("config.schema.json").read_text(encoding="utf-8")
