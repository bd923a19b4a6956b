"""Who of the waiting tenants may start: what each runs here, against its quotas of running tasks.

On a task's path: told when a task starts and ends; it holds flows of the queue and frees them. The
invariants: a tenant with `max_concurrent` running (or resuming) tasks is held, and so is a flow
whose next task would take more KV than the tenant's `kv_bytes` leave beside those. Within a tenant
nobody overtakes: what does not fit yet holds its own flow and the less urgent one. A tenant that
runs nothing is never held for its KV, so each task gets its turn. Requirements: ORCH-3036,
ORCH-3077.

KV is counted in tokens of context, which an engine sets aside for a task whatever it uses, and
compared in bytes: what a token takes is known only once a replica is Ready, and what ran before a
restart counts all the same.
"""

from __future__ import annotations

from collections.abc import Iterable

from orchestrator_core.pool import TenantPolicy
from orchestrator_core.queueing.pool_queue import PoolQueue
from orchestrator_core.task import Priority, Task


class TenantHolds:
    """Active (running or resuming) tasks of one pool by tenant."""

    def __init__(self, queue: PoolQueue, tenants: Iterable[TenantPolicy]) -> None:
        self._queue = queue
        self._count: dict[str, int] = {}
        self._ctx_tokens: dict[str, int] = {}
        self._kv_bytes_per_token = 0
        self.reconfigure(tenants)

    def reconfigure(self, tenants: Iterable[TenantPolicy]) -> None:
        """Quotas are others now, as the queue knows. O(tenants)."""
        self._bounded = [tenant.id for tenant in tenants if tenant.kv_bytes is not None]
        # Where KV is bounded, whether a tenant is held depends on its next tasks.
        self._queue.on_new_head = self._review if self._bounded else None
        for tenant in sorted(set(self._count) | self._queue.tenants()):
            self._review(tenant)

    def measure(self, kv_bytes_per_token: int) -> None:
        """What a token of context takes here from now on; 0 where nobody knows."""
        if kv_bytes_per_token != self._kv_bytes_per_token:
            self._kv_bytes_per_token = kv_bytes_per_token
            for tenant in self._bounded:
                self._review(tenant)

    def count(self, task: Task, change: int) -> None:
        """A task started (+1) or ended (-1). O(log flows)."""
        tenant = task.tenant
        count = self._count.get(tenant, 0) + change
        if count:
            self._count[tenant] = count
            self._ctx_tokens[tenant] = self._ctx_tokens.get(tenant, 0) + change * task.ctx
        else:
            del self._count[tenant], self._ctx_tokens[tenant]
        policy = self._queue.tenant(tenant)
        if policy.max_concurrent is not None or policy.kv_bytes is not None:
            self._review(tenant)  # nobody else is held, since `reconfigure`

    def kv_bytes(self, ctx_tokens: int) -> int:
        """KV that a context of so many tokens takes here; 0 while that is not known."""
        return ctx_tokens * self._kv_bytes_per_token

    def may_start(self, task: Task) -> bool:
        """Whether its tenant's quotas let a task go, were it the next of its flow. O(1)."""
        return not self._queue.is_held(task.tenant, task.priority) and self._fits(task)

    def _fits(self, task: Task) -> bool:
        limit_bytes = self._queue.tenant(task.tenant).kv_bytes
        if limit_bytes is None or not (active := self._ctx_tokens.get(task.tenant, 0)):
            return True
        return self.kv_bytes(active + task.ctx) <= limit_bytes

    def _review(self, tenant: str) -> None:
        policy = self._queue.tenant(tenant)
        limit = policy.max_concurrent
        full = limit is not None and self._count.get(tenant, 0) >= limit
        if policy.kv_bytes is None:
            self._queue.hold(tenant, full)
            return
        for priority in Priority:  # most urgent first
            head = self._queue.head(tenant, priority)
            full = full or (head is not None and not self._fits(head))
            self._queue.hold(tenant, full, priority)
