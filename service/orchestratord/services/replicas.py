"""The replicas that can take work right now, and how they come and go.

The pool host reports here; the core hears of it as events. Whoever notices a broken connection
(dispatch) says so here too, so that a dead replica takes no more work from that instant on. Any
other failure of one task costs its replica a probe, and nothing else before that one's verdict.

Drains and rollouts change here what the core sees of the pool host's replicas: one may be hidden
(it is up, and not in service yet), cordoned, withdrawn, or at home in its pool's canary, which is a
pool of the core's and not of the host's. Above 400 lines because each of these changes the same few
tables, and what the core hears follows from all of them. Requirements: ORCH-2101, ORCH-2102,
ORCH-3007, ORCH-3010, ORCH-3032, ORCH-3033.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import structlog

from orchestrator_core.admission.circuit_breaker import BreakerPolicy
from orchestrator_core.events import (
    PoolAdded,
    PoolMerged,
    PoolRemoved,
    ReplicaCordoned,
    ReplicaLost,
    ReplicaReady,
)
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
    """What services need of a pool beside its `PoolSpec`; `model` is what its replicas serve,
    `breaker` is None where it is off; of a `managed` one pool managers bring replicas."""

    spec: PoolSpec
    model: str
    wall_ms: int
    idle_ms: int
    deterministic_prefix_cache: bool
    breaker: BreakerPolicy | None = None
    managed: bool = False


Key = tuple[str, str]  # pool, replica


@dataclass(slots=True)
class _Hidden:
    """A replica that is not in service yet. `lost` is why it cannot be, where it cannot."""

    model: str
    ready: tuple[EngineClient, EngineProperties, tuple[tuple[str, str], ...]] | None = None
    lost: LossCause | None = None


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
        self._token_bounded: dict[tuple[str, str], set[str]] = {}
        self._index_models()
        self._replicas: dict[Key, Replica] = {}
        # Of the pool host's replicas, by its keys: what they serve, where that is not what their
        # pool serves; those at home in the pool's canary; those that are not in service yet.
        self._models: dict[Key, str] = {}
        self._homes: dict[Key, str] = {}
        self._hidden: dict[Key, _Hidden] = {}
        self._cordoned: set[Key] = set()
        self.report_broken: Callable[[str, str], None]
        self.report_doubtful: Callable[[str, str], None]
        self.on_lost: Callable[[str, str], None]
        self.on_withdrawn: Callable[[str, Sequence[str]], None]
        self.on_hidden: Callable[[str], None] = lambda pool_id: None

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

    def counts_tokens(self, engine: str, model_ref: str, tenant: str) -> bool:
        """Whether some pool of the model bounds the tenant's tokens, so that they are to be counted
        before the task is admitted: an estimate would let too much pass, or never enough."""
        return tenant in self._token_bounded.get((engine, model_ref), ())

    def _index_models(self) -> None:
        self._token_bounded = {}
        self._by_model = {}
        for traits in self.pools.values():
            for model_ref in traits.spec.model_refs:
                self._by_model.setdefault((traits.spec.engine, model_ref), []).append(traits)
                self._token_bounded.setdefault((traits.spec.engine, model_ref), set()).update(
                    tenant.id
                    for tenant in traits.spec.tenants
                    if tenant.tokens_per_minute is not None
                )

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
        host_key = (pool_id, replica_id)
        if (hidden := self._hidden.get(host_key)) is not None:
            hidden.ready, hidden.lost = (client, properties, labels), None
            self.on_hidden(pool_id)
            return
        host_id, pool_id = pool_id, self._homes.get(host_key, pool_id)
        traits = self.pools[pool_id]
        spec = traits.spec
        model = self._models.get(host_key, traits.model)
        digest = properties.model_digest
        if model == traits.model and digest != UNKNOWN_DIGEST and digest not in spec.model_refs:
            spec = replace(spec, model_refs=spec.model_refs | {digest})
            self.pools[pool_id] = replace(traits, spec=spec)
            self._index_models()
            self._scheduling.step(PoolAdded(spec))
        set_key = SetKey(
            engine=spec.engine,
            model=model,
            quant=spec.quant,
            ctx=spec.ctx,
            engine_version=properties.engine_version,
            sampler_profile_version=spec.sampler_profile_version,
            # An unknown digest is equal to itself only within its own pool.
            model_digest=digest if digest != UNKNOWN_DIGEST else f"{UNKNOWN_DIGEST}:{host_id}",
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
        if (hidden := self._hidden.get((pool_id, replica_id))) is not None:
            hidden.ready, hidden.lost = None, cause
            self.on_hidden(pool_id)
            return
        home = self.home(pool_id, replica_id)
        self._lose(home, replica_id, cause.code, cause.message)

    def connection_lost(self, pool_id: str, replica_id: str, message: str) -> None:
        """Dispatch saw the connection break: no more work until the pool host has probed it."""
        self._lose(pool_id, replica_id, "connection", message)
        self.report_broken(self.host_of(pool_id), replica_id)

    def doubt(self, pool_id: str, replica_id: str) -> None:
        """Dispatch saw a task fail there in a way that may be the engine's: probe it now."""
        self.report_doubtful(self.host_of(pool_id), replica_id)

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
        if not ok and (hidden := self._hidden.get((pool_id, replica_id))) is not None:
            hidden.lost = cause
            self.on_hidden(pool_id)
        if not ok and cause is not None:
            log.warning(
                "replica.preload_failed",
                pool_id=pool_id,
                replica_id=replica_id,
                code=cause.code,
                cause=cause.message,
            )

    def restarted(self, pool_id: str, replica_id: str, times: int = 1) -> None:
        self._telemetry.restarted(self.pools[pool_id].spec, replica_id, times)

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

    # --- what drains and rollouts change ------------------------------------------------------

    def host_of(self, pool_id: str) -> str:
        """The pool host's pool behind this one: of a canary, the pool it is the canary of."""
        traits = self.pools.get(pool_id)
        canary = traits.spec.canary if traits is not None else None
        return pool_id if canary is None else canary.of

    def home(self, host_id: str, replica_id: str) -> str:
        """The pool in which a replica of the pool host works: its own, or that one's canary."""
        return self._homes.get((host_id, replica_id), host_id)

    def is_hidden(self, host_id: str, replica_id: str) -> bool:
        """Whether it is not in service yet."""
        return (host_id, replica_id) in self._hidden

    def is_cordoned(self, pool_id: str, replica_id: str) -> bool:
        return (pool_id, replica_id) in self._cordoned

    def model_of(self, host_id: str, replica_id: str) -> str:
        """The reference of the model that a replica of the pool host was started with."""
        key = (host_id, replica_id)
        if (hidden := self._hidden.get(key)) is not None:
            return hidden.model
        return self._models.get(key, self.pools[self.home(*key)].model)

    def cordon(self, pool_id: str, replica_id: str, cordoned: bool) -> None:
        """Give it no new work, or lift that; idempotent."""
        key = (pool_id, replica_id)
        if (key in self._cordoned) is cordoned:
            return
        (self._cordoned.add if cordoned else self._cordoned.discard)(key)
        log.info("replica.cordoned" if cordoned else "replica.uncordoned",
                 pool_id=pool_id, replica_id=replica_id)  # fmt: skip
        self._scheduling.step(ReplicaCordoned(pool_id, replica_id, cordoned))

    def withdraw(self, pool_id: str, replica_ids: Sequence[str]) -> None:
        """They take no more work, all at once; only then is each of their tasks told, so that none
        goes on at one of them."""
        gone = [r for name in replica_ids if (r := self._replicas.pop((pool_id, name), None))]
        for replica in gone:
            log.info("replica.withdrawn", pool_id=pool_id, replica_id=replica.id)
            self._telemetry.replica_lost(replica)
            self._scheduling.step(ReplicaLost(pool_id, replica.id))
        self.on_withdrawn(pool_id, [replica.id for replica in gone])

    def hide(self, host_id: str, replica_ids: Sequence[str], model: str) -> None:
        """Replicas to come, with this model, are not in service before `reveal`; `on_hidden` tells
        when something happens to them."""
        for name in replica_ids:
            self._hidden[host_id, name] = _Hidden(model)

    def hidden_ready(self, host_id: str, replica_id: str) -> EngineProperties | None:
        """What a hidden replica says of itself; None while it is not Ready."""
        ready = self._hidden[host_id, replica_id].ready
        return None if ready is None else ready[1]

    def hidden_lost(self, host_id: str, replica_id: str) -> LossCause | None:
        """Why a hidden replica is not Ready and will not be; None where nothing is wrong."""
        return self._hidden[host_id, replica_id].lost

    def reveal(self, host_id: str, replica_ids: Sequence[str], home: str) -> None:
        """Hidden replicas are in service now, in the pool `home` (their own, or its canary)."""
        for name in replica_ids:
            hidden = self._hidden.pop((host_id, name))
            self._models[host_id, name] = hidden.model
            if home != host_id:
                self._homes[host_id, name] = home
            if hidden.ready is not None:
                self.replica_ready(host_id, name, *hidden.ready)

    def forget(self, host_id: str, replica_id: str) -> None:
        """The pool host has removed it: nothing of what was said of it holds for another one."""
        key = (host_id, replica_id)
        home = self.home(*key)
        self._hidden.pop(key, None)
        self._models.pop(key, None)
        if home in self.pools:
            self.cordon(home, replica_id, False)
        self._homes.pop(key, None)

    def serve(
        self, pool_id: str, model: str, model_refs: frozenset[str], others: Sequence[str]
    ) -> None:
        """From now on the pool serves `model`, which tasks ask for by `model_refs`; its replicas
        `others` keep what they were started with."""
        traits = self.pools[pool_id]
        for name in others:
            self._models.setdefault((self.host_of(pool_id), name), traits.model)
        spec = replace(traits.spec, model_refs=model_refs)
        self.pools[pool_id] = replace(traits, spec=spec, model=model)
        self._index_models()
        self._scheduling.step(PoolAdded(spec))

    def reconfigure(self, traits: PoolTraits) -> None:
        """Other settings of a pool from now on; what it serves, and by which names, stays."""
        known = self.pools[traits.spec.id]
        refs = known.spec.model_refs
        spec = replace(traits.spec, model_refs=refs)
        self.pools[spec.id] = replace(traits, spec=spec, model=known.model)
        self._index_models()
        self._scheduling.step(PoolAdded(spec))

    def replace_pool(self, traits: PoolTraits) -> None:
        """The pool is another one from now on; replicas that come are judged by it."""
        self.pools[traits.spec.id] = traits
        self._index_models()
        self._scheduling.step(PoolAdded(traits.spec))

    def add_pool(self, traits: PoolTraits) -> None:
        """Another pool for the core; its replicas come later."""
        self.pools[traits.spec.id] = traits
        self._index_models()
        self._telemetry.pool_like(traits.spec, self.host_of(traits.spec.id))
        self._scheduling.step(PoolAdded(traits.spec))

    def remove_pool(self, pool_id: str) -> None:
        """A pool without tasks and replicas is gone."""
        self._scheduling.step(PoolRemoved(pool_id))
        self._forget_pool(pool_id)

    def merge(self, pool_id: str, source: str) -> None:
        """`pool_id` takes over the replicas of its canary `source` with all that they do."""
        for key in [key for key in self._replicas if key[0] == source]:
            replica = replace(self._replicas.pop(key), pool_id=pool_id)
            self._telemetry.replica_lost(replace(replica, pool_id=source))
            self._telemetry.replica_ready(replica)
            self._replicas[pool_id, replica.id] = replica
        self._cordoned = {
            (pool_id if key[0] == source else key[0], key[1]) for key in self._cordoned
        }
        self._homes = {key: home for key, home in self._homes.items() if home != source}
        # What it starts at once finds its replica already.
        self._scheduling.step(PoolMerged(pool_id, source))
        self._forget_pool(source)

    def _forget_pool(self, pool_id: str) -> None:
        del self.pools[pool_id]
        self._index_models()
        self._cordoned = {key for key in self._cordoned if key[0] != pool_id}
        self._telemetry.pool_removed(pool_id)
