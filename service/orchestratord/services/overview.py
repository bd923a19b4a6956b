"""What operators and clients may know of pools, replica sets and capabilities.

Requirements: ORCH-2103, ORCH-2104, ORCH-3007, ORCH-3032, OC-CTRL-2060, OC-CTRL-2061.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from orchestrator_core.task import Priority
from orchestratord.services.replicas import ReplicaDirectory
from orchestratord.services.scheduling import SchedulingService
from worker_adapters.adapter_api.types import UNKNOWN_DIGEST

# Every engine that decodes can complete; the others are features that an engine reports.
_WORKLOAD_FEATURES = {"embeddings": "embedding", "rerank": "rerank"}


def shown_digest(model_digest: str) -> str:
    """A set key's digest without the pool that tells unknown ones apart."""
    return UNKNOWN_DIGEST if model_digest.startswith(UNKNOWN_DIGEST) else model_digest


class PoolHealthSource(Protocol):
    """The pool host's view of one pool."""

    def pool_health(self, pool_id: str) -> dict[str, Any]:
        """`live`, `ready`, `draining`, `state`, `replicas`, and a `last_error`."""
        ...

    def replica_state(self, pool_id: str, replica_id: str) -> str: ...


class OverviewService:
    def __init__(
        self,
        scheduling: SchedulingService,
        replicas: ReplicaDirectory,
        health: PoolHealthSource,
        snapshot: Callable[[str], dict[str, float]],
        slo_snapshot: Callable[[Sequence[str]], dict[str, float]],
        api_version: str,
        cpu_carve_out: bool,
    ) -> None:
        """`snapshot(pool_id)` gives the pool's figures under the names of the metrics contract,
        `slo_snapshot(pool_ids)` what was measured in these pools by name of the objective."""
        self._scheduling = scheduling
        self._replicas = replicas
        self._health = health
        self._snapshot = snapshot
        self._slo_snapshot = slo_snapshot
        self._api_version = api_version
        self._cpu_carve_out = cpu_carve_out

    def pool_health(self, pool_id: str) -> dict[str, Any] | None:
        """`PoolHealth` of the contract; None for an unknown pool."""
        if pool_id not in self._replicas.pools:
            return None
        return {**self._health.pool_health(pool_id), "metrics": self._snapshot(pool_id)}

    def replica_sets(self) -> list[dict[str, Any]]:
        """All replica sets, ordered by id."""
        scheduler = self._scheduling.scheduler
        return [
            {
                "id": view.id,
                "engine": view.engine,
                "load": view.load,
                "slots_total": view.slots_total,
                "slots_free": view.slots_free,
                "slo": self._slo_snapshot(sorted({each.pool_id for each in view.replicas})),
                "engine_version": view.key.engine_version,
                "model_digest": shown_digest(view.key.model_digest),
                "replicas": [
                    {
                        "id": replica.id,
                        "pool_id": replica.pool_id,
                        "state": self._health.replica_state(replica.pool_id, replica.id),
                        "slots_total": replica.slots_total,
                        "slots_free": replica.slots_free,
                        "labels": dict(replica.labels),
                    }
                    for replica in view.replicas
                ],
            }
            for view in scheduler.replica_sets()
        ]

    def capabilities(self) -> dict[str, Any]:
        """`Capabilities` of the contract: every engine with a pool."""
        by_engine: dict[str, dict[str, Any]] = {}
        for traits in self._replicas.pools.values():
            spec = traits.spec
            entry = by_engine.setdefault(
                spec.engine,
                {
                    "engine": spec.engine,
                    "ctx_max": 0,
                    "supported_workloads": {"completion"},
                    "rate_limits": {},
                    "features": set(),
                    "model_refs": set(),
                },
            )
            entry["model_refs"] |= spec.model_refs
            entry["ctx_max"] = max(entry["ctx_max"], spec.ctx)
            for policy in spec.priorities:
                if policy.rate_limit_rps is not None:
                    entry["rate_limits"][f"{policy.name}_rps"] = policy.rate_limit_rps
            for replica in self._replicas.ready(spec.id):
                entry["features"] |= replica.properties.features
        for entry in by_engine.values():
            for feature, workload in _WORKLOAD_FEATURES.items():
                if feature in entry["features"]:
                    entry["supported_workloads"].add(workload)
            for name in ("supported_workloads", "features", "model_refs"):
                entry[name] = sorted(entry[name])
        return {
            "api_version": self._api_version,
            "engines": [by_engine[engine] for engine in sorted(by_engine)],
            "cpu_carve_out": self._cpu_carve_out,
        }

    def pool_snapshot(self, pool_id: str) -> dict[str, float]:
        """Queue and slot figures of a pool."""
        scheduler = self._scheduling.scheduler
        figures = {
            f"queue_depth_{priority.value}": float(scheduler.queue_depth(pool_id, priority))
            for priority in Priority
        }
        ready = list(self._replicas.ready(pool_id))
        figures["replicas_ready"] = float(len(ready))
        figures["slots_total"] = float(sum(r.properties.slots_total for r in ready))
        figures["slots_free"] = float(scheduler.slots_free(pool_id))
        figures["tasks_running"] = float(len(scheduler.running(pool_id)))
        figures |= {f"slo.{name}": value for name, value in self._slo_snapshot([pool_id]).items()}
        return figures
