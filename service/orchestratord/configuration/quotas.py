"""What a configuration grants: rows per pool and class, and per pool and tenant (OC-CLI-8003).

Defaults are filled in exactly as admission fills them, so that what is shown is what will hold:
an unlisted class keeps its defaults, an unlisted tenant has weight 1 and no quota (ORCH-3075).
"""

from __future__ import annotations

from dataclasses import dataclass

import orch_config

# contracts/schemas/config.schema.json, PriorityClass: weight null, and queue_capacity's default.
DEFAULT_WEIGHTS = {"interactive": 8, "batch": 1}
_DEFAULT_QUEUE_CAPACITY = 256


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
                )
            )
    return tuple(priorities), tuple(tenants)


def _priorities(pool: orch_config.Pool) -> list[PriorityQuota]:
    listed = {entry.name: entry for entry in pool.admission.priorities}
    weights = {
        name: (listed[name].weight if name in listed else None) or default
        for name, default in DEFAULT_WEIGHTS.items()
    }
    total = sum(weights.values())
    rows = []
    for name in DEFAULT_WEIGHTS:
        own = listed.get(name)  # type: ignore[call-overload]
        capacity = own.queue_capacity if own else _DEFAULT_QUEUE_CAPACITY
        rows.append(
            PriorityQuota(
                pool_id=pool.id,
                priority=name,
                weight=weights[name],
                share_ratio=weights[name] / total,
                # The pool's own bound comes first where it is the smaller one.
                queue_capacity=min(capacity, pool.queue.capacity),
                rate_limit_rps=own.rate_limit_rps if own else None,
            )
        )
    return rows
