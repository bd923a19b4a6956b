"""Pools, replicas and replica sets: where a task may run.

A pool is what the configuration names: one engine, one model, one device mask, one bounded queue
per priority. Its replicas are worker processes; replicas with equal `SetKey` form a replica set
(ORCH-3007) and only within one may a strict task move.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from orchestrator_core.task import Determinism, Priority, Workload


class FullPolicy(StrEnum):
    """What happens at a full queue (ORCH-3005)."""

    REJECT = "reject"
    DROP_LRU = "drop-lru"
    SHED_LOW_PRIORITY = "shed-low-priority"


@dataclass(frozen=True, slots=True)
class PriorityPolicy:
    """One priority class of a pool; `rate_limit_rps` is per client, None is unlimited."""

    name: Priority
    weight: int
    queue_capacity: int
    rate_limit_rps: float | None = None


@dataclass(frozen=True, slots=True)
class TenantPolicy:
    """Weight and quotas of one tenant within a pool; None is unlimited.

    `tokens_per_minute` bounds what is admitted (with a burst of one minute's worth), `kv_bytes` the
    KV of what runs, by each task's context (ORCH-3036).
    """

    id: str
    weight: int = 1
    max_concurrent: int | None = None
    rps: float | None = None
    tokens_per_minute: int | None = None
    kv_bytes: int | None = None


class PreemptionMode(StrEnum):
    """Who makes way for an urgent task that would be late (ORCH-3085, ORCH-3086)."""

    OFF = "off"
    SOFT = "soft"  # waiting tasks only
    HARD = "hard"  # running ones as well


@dataclass(frozen=True, slots=True)
class PreemptionPolicy:
    """`max_per_min` bounds hard preemptions of the pool in any minute; tasks of a `protected`
    priority are never interrupted."""

    mode: PreemptionMode = PreemptionMode.SOFT
    max_per_min: int = 6
    protected: frozenset[Priority] = frozenset({Priority.INTERACTIVE})


@dataclass(frozen=True, slots=True)
class CanaryShare:
    """Which tasks of the pool `of` go to its canary: those of `tenants`, and `percent` (0..100) of
    the others (ORCH-3033)."""

    of: str
    percent: int = 0
    tenants: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class PoolSpec:
    """What the configuration says of one pool, as far as scheduling needs it.

    `model_refs` are all names under which a task may ask for the model (configured name, digest).
    `queue_capacity` bounds waiting tasks over all priorities; each priority has its own bound too.
    `anti_affinity` names labels over whose values a tenant's running tasks are spread.
    `prefix_reuse` says whose tasks may be given a warm prefix, and so are placed where one is.
    `canary` is set for a pool that takes a share of another one's tasks.
    """

    id: str
    engine: str
    model_refs: frozenset[str]
    ctx: int
    quant: str = ""
    sampler_profile_version: str = ""
    devices: tuple[str, ...] = ()
    queue_capacity: int = 256
    full_policy: FullPolicy = FullPolicy.REJECT
    priorities: tuple[PriorityPolicy, ...] = (
        PriorityPolicy(Priority.INTERACTIVE, 8, 256),
        PriorityPolicy(Priority.BATCH, 1, 256),
    )
    tenants: tuple[TenantPolicy, ...] = ()
    same_engine_version: bool = True
    anti_affinity: tuple[str, ...] = ()
    prefix_reuse: frozenset[Determinism] = frozenset()
    preemption: PreemptionPolicy = PreemptionPolicy()
    canary: CanaryShare | None = None

    def reuses_prefix(
        self, workload: Workload, determinism: Determinism, kv_hint: str | None
    ) -> bool:
        """Whether a prefix that a replica has read saves such a task anything: one that is decoded
        cold (strict, or by the client's `kv_hint`) reads its whole prompt wherever it runs."""
        return (
            determinism in self.prefix_reuse
            and workload is Workload.COMPLETION
            and kv_hint != "cold"
        )


@dataclass(frozen=True, slots=True, order=True)
class SetKey:
    """Identity of a replica set: everything that may change an output byte (ORCH-3007, ORCH-3046).

    `settings` digests engine settings that change bytes (flash attention on or off is one).
    """

    engine: str
    model: str
    quant: str
    ctx: int
    engine_version: str
    sampler_profile_version: str
    model_digest: str
    settings: str = ""


@dataclass(frozen=True, slots=True)
class ReplicaSpec:
    """A replica as its engine reported it when it became Ready.

    `kv_bytes_max` is all the KV it can hold, `kv_bytes_per_token` what a token of context takes of
    it, scratch included; 0 where the engine does not tell. `interruptible`: its adapter proved that
    a decode can be broken off and its slot is free then.
    """

    id: str
    pool_id: str
    set_key: SetKey
    slots_total: int
    ctx_max: int
    labels: tuple[tuple[str, str], ...] = field(default=())
    kv_bytes_max: int = 0
    interruptible: bool = False
    kv_bytes_per_token: int = 0
