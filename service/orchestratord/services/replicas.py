"""The replicas that can take work right now, and how they come and go.

The pool host reports here; the core hears of it as events. Whoever notices a broken connection
(dispatch) says so here too, so that a dead replica takes no more work from that instant on. Any
other failure of one task costs its replica a probe, and nothing else before that one's verdict.
Requirements: ORCH-3007, ORCH-3010, ORCH-3032.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from orchestrator_core.admission.circuit_breaker import BreakerPolicy
from orchestrator_core.events import PoolAdded, ReplicaLost, ReplicaReady
from orchestrator_core.pool import PoolSpec, ReplicaSpec, SetKey
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.telemetry import Telemetry
from worker_adapters.adapter_api.types import UNKNOWN_DIGEST, EngineClient, EngineProperties

log = structlog.get_logger("orchestratord.replicas")

# The feature of an engine whose adapter proved that closing a decode frees its slot (ORCH-3086).
INTERRUPTIBLE = "interruptible_decode"


class LossCause(Protocol):
    """Why a replica is gone, as the pool host says it."""

    @property
    def code(self) -> str: ...

    @property
    def message(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Replica:
    """A Ready replica: how to talk to it and what it said of itself."""

    id: str
    pool_id: str
    client: EngineClient
    properties: EngineProperties
    set_key: SetKey


@dataclass(frozen=True, slots=True)
class PoolTraits:
    """What services need of a pool beside its `PoolSpec`; `breaker` is None where it is off."""

    spec: PoolSpec
    model: str
    wall_ms: int
    idle_ms: int
    deterministic_prefix_cache: bool
    breaker: BreakerPolicy | None = None


class ReplicaDirectory:
    def __init__(
        self,
        scheduling: SchedulingService,
        telemetry: Telemetry,
        pools: Mapping[str, PoolTraits],
    ) -> None:
        self._scheduling = scheduling
        self._telemetry = telemetry
        self.pools = dict(pools)
        self._by_model: dict[tuple[str, str], list[PoolTraits]] = {}
        self._index_models()
        self._replicas: dict[tuple[str, str], Replica] = {}
        self._known: set[str] = set()
        self.report_broken: Callable[[str, str], None]
        self.report_doubtful: Callable[[str, str], None]
        self.on_lost: Callable[[str, str], None]

    def start(self) -> None:
        """Tell the core of every pool; no replica is Ready yet."""
        for traits in self.pools.values():
            self._scheduling.step(PoolAdded(traits.spec))

    def get(self, pool_id: str, replica_id: str) -> Replica | None:
        return self._replicas.get((pool_id, replica_id))

    def ready(self, pool_id: str | None = None) -> Iterator[Replica]:
        return (r for r in self._replicas.values() if pool_id is None or r.pool_id == pool_id)

    def matching(self, engine: str, model_ref: str) -> list[PoolTraits]:
        """Pools that serve this model on this engine, Ready or not."""
        return self._by_model.get((engine, model_ref), [])

    def _index_models(self) -> None:
        self._by_model = {}
        for traits in self.pools.values():
            for model_ref in traits.spec.model_refs:
                self._by_model.setdefault((traits.spec.engine, model_ref), []).append(traits)

    def client_for(self, engine: str, model_ref: str) -> EngineClient | None:
        """Any Ready replica of the model: tokenizer and template are the same in all of them."""
        for traits in self.matching(engine, model_ref):
            for replica in self.ready(traits.spec.id):
                return replica.client
        return None

    def replica_ready(
        self,
        pool_id: str,
        replica_id: str,
        client: EngineClient,
        properties: EngineProperties,
        labels: tuple[tuple[str, str], ...],
    ) -> None:
        """A replica is healthy and proved what it is: it takes work from now on."""
        traits = self.pools[pool_id]
        spec = traits.spec
        digest = properties.model_digest
        if digest != UNKNOWN_DIGEST and digest not in spec.model_refs:
            spec = replace(spec, model_refs=spec.model_refs | {digest})
            self.pools[pool_id] = replace(traits, spec=spec)
            self._index_models()
            self._scheduling.step(PoolAdded(spec))
        set_key = SetKey(
            engine=spec.engine,
            model=traits.model,
            quant=spec.quant,
            ctx=spec.ctx,
            engine_version=properties.engine_version,
            sampler_profile_version=spec.sampler_profile_version,
            # An unknown digest is equal to itself only within its own pool.
            model_digest=digest if digest != UNKNOWN_DIGEST else f"{UNKNOWN_DIGEST}:{pool_id}",
            settings=properties.settings,
        )
        replica = Replica(replica_id, pool_id, client, properties, set_key)
        self._replicas[pool_id, replica_id] = replica
        self._telemetry.replica_ready(replica)
        log.info(
            "replica.ready",
            pool_id=pool_id,
            replica_id=replica_id,
            engine=spec.engine,
            engine_version=properties.engine_version,
            model_digest=digest,
            slots_total=properties.slots_total,
            ctx=properties.ctx_max,
        )
        self._scheduling.step(
            ReplicaReady(
                ReplicaSpec(
                    id=replica_id,
                    pool_id=pool_id,
                    set_key=set_key,
                    slots_total=properties.slots_total,
                    ctx_max=min(properties.ctx_max, spec.ctx),
                    labels=labels,
                    kv_bytes_max=properties.kv_bytes_per_token
                    * properties.slots_total
                    * properties.ctx_max,
                    interruptible=INTERRUPTIBLE in properties.features,
                    kv_bytes_per_token=properties.kv_bytes_per_token,
                )
            )
        )

    def replica_lost(self, pool_id: str, replica_id: str, cause: LossCause) -> None:
        """The pool host gave it up; what runs on it goes elsewhere."""
        self._lose(pool_id, replica_id, cause.code, cause.message)

    def connection_lost(self, pool_id: str, replica_id: str, message: str) -> None:
        """Dispatch saw the connection break: no more work until the pool host has probed it."""
        self._lose(pool_id, replica_id, "connection", message)
        self.report_broken(pool_id, replica_id)

    def _lose(self, pool_id: str, replica_id: str, code: str, message: str) -> None:
        replica = self._replicas.pop((pool_id, replica_id), None)
        if replica is None:
            return
        log.warning(
            "replica.lost", pool_id=pool_id, replica_id=replica_id, code=code, cause=message
        )
        self._telemetry.replica_lost(replica)
        self._scheduling.step(ReplicaLost(pool_id, replica_id))
        self.on_lost(pool_id, replica_id)

    def preload_outcome(
        self, pool_id: str, replica_id: str, ok: bool, cause: LossCause | None
    ) -> None:
        self._telemetry.preload(self.pools[pool_id].spec, ok)
        if not ok and cause is not None:
            log.warning(
                "replica.preload_failed",
                pool_id=pool_id,
                replica_id=replica_id,
                code=cause.code,
                cause=cause.message,
            )

    def restarted(self, pool_id: str, replica_id: str) -> None:
        self._telemetry.restarted(self.pools[pool_id].spec, replica_id)

    def replica_state(self, pool_id: str, replica_id: str, state: str) -> None:
        """Every transition of the pool host's state machine."""
        self._telemetry.replica_state(self.pools[pool_id].spec, replica_id, state)

    def self_tested(self, pool_id: str, replica_id: str, ok: bool) -> None:
        self._telemetry.self_tested(self.pools[pool_id].spec, ok)

    def out_of_memory(self, pool_id: str, replica_id: str, memory: str) -> None:
        """An engine failed for want of `vram` or `host-ram`; the pool host's line says more."""
        self._telemetry.out_of_memory(self.pools[pool_id].spec, memory)

    def device_error(self, pool_id: str, replica_id: str, fault: str) -> None:
        """Driver or GPU failed: cuda-error, xid, ecc, gpu-lost or reset."""
        self._telemetry.device_error(self.pools[pool_id].spec, fault)
