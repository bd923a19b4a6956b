"""What a configuration grants: rows per pool and class, and per pool and tenant (OC-CLI-8003).

Admission takes its classes from here as well (`granted_classes`), so that what is shown is what
will hold: a class that the configuration leaves out has its default weight and is bounded by the
pool alone, an unlisted tenant has weight 1 and no quota (ORCH-3075).
"""

from __future__ import annotations

from dataclasses import dataclass

import orch_config
from orchestrator_core.pool import PriorityPolicy
from orchestrator_core.task import Priority

# ORCH-3075: the weights where the configuration gives none.
DEFAULT_WEIGHTS = {Priority.INTERACTIVE: 8, Priority.BATCH: 1}


@dataclass(frozen=True, slots=True)
class PriorityQuota:
    """One class of one pool; `share_ratio` is its part of the pool while both classes wait."""

    pool_id: str
    priority: str
    weight: int
    share_ratio: float
    queue_capacity: int
    rate_limit_rps: float | None


@dataclass(frozen=True, slots=True)
class TenantQuota:
    """One tenant in one pool; None is unlimited. `share_ratio` holds while all listed ones wait."""

    pool_id: str
    tenant: str
    weight: int
    share_ratio: float
    max_concurrent: int | None
    rps: float | None
    tokens_per_minute: int | None
    kv_bytes: int | None


def effective_quotas(
    config: orch_config.Config,
) -> tuple[tuple[PriorityQuota, ...], tuple[TenantQuota, ...]]:
    """Return what every class and every tenant that has a key is granted, pool by pool."""
    priorities: list[PriorityQuota] = []
    tenants: list[TenantQuota] = []
    keys = config.auth.keys if config.auth.enabled else []
    with_key = {key.tenant for key in keys if "data" in key.roles}
    for pool in config.pools:
        priorities.extend(_priorities(pool))
        listed = {tenant.id: tenant for tenant in pool.admission.fairness.tenants}
        names = sorted({*with_key, *listed}) or ["default"]
        weights = {name: listed[name].weight if name in listed else 1 for name in names}
        total = sum(weights.values())
        for name in names:
            own = listed.get(name)
            tenants.append(
                TenantQuota(
                    pool_id=pool.id,
                    tenant=name,
                    weight=weights[name],
                    share_ratio=weights[name] / total,
                    max_concurrent=own.max_concurrent if own else None,
                    rps=own.rps if own else None,
                    tokens_per_minute=own.tokens_per_minute if own else None,
                    kv_bytes=own.kv_bytes if own else None,
                )
            )
    return tuple(priorities), tuple(tenants)


def granted_classes(pool: orch_config.Pool) -> tuple[PriorityPolicy, ...]:
    """Both classes of a pool as the scheduler holds them, in the order of `Priority`."""
    given = {Priority(entry.name): entry for entry in pool.admission.priorities}
    policies = []
    for priority in Priority:
        entry = given.get(priority)
        weight = entry.weight if entry is not None else None
        policies.append(
            PriorityPolicy(
                name=priority,
                weight=DEFAULT_WEIGHTS[priority] if weight is None else weight,
                queue_capacity=pool.queue.capacity if entry is None else entry.queue_capacity,
                rate_limit_rps=None if entry is None else entry.rate_limit_rps,
            )
        )
    return tuple(policies)


def _priorities(pool: orch_config.Pool) -> list[PriorityQuota]:
    classes = granted_classes(pool)
    total = sum(policy.weight for policy in classes)
    return [
        PriorityQuota(
            pool_id=pool.id,
            priority=policy.name.value,
            weight=policy.weight,
            share_ratio=policy.weight / total,
            # The pool's own bound comes first where it is the smaller one.
            queue_capacity=min(policy.queue_capacity, pool.queue.capacity),
            rate_limit_rps=policy.rate_limit_rps,
        )
        for policy in classes
    ]
