"""Anti-affinity: a tenant's running tasks are spread over nodes, zones or whatever labels say.

On a task's path: after the filter, before the score. The invariant: a task goes to a label value
under which no more tasks of its tenant run than under any other value that has a free slot. It
narrows and never empties the choice: no slot idles so that tasks may lie apart. Requirements:
ORCH-3008.

This is Kubernetes' topology spread with `whenUnsatisfiable: ScheduleAnyway` and the tenant as the
selector: who loses a node or a zone loses as few of its running tasks as possible. It goes before
session affinity and prefix reuse, since whoever configures it gives up warm KV for that.
"""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator_core.replicas import Replica


class TenantSpread:
    """How many tasks of each tenant run under each value of `labels`."""

    __slots__ = ("_running", "labels")

    def __init__(self, labels: Sequence[str]) -> None:
        self.labels = tuple(labels)
        self._running: dict[tuple[str, str, str], int] = {}

    def count(self, tenant: str, replica: Replica, change: int) -> None:
        """A task of `tenant` began on the replica (+1) or left it (-1)."""
        for label in self.labels:
            key = (tenant, label, replica.label(label))
            running = self._running.get(key, 0) + change
            if running:
                self._running[key] = running
            else:
                del self._running[key]

    def running(self, tenant: str, label: str, value: str) -> int:
        return self._running.get((tenant, label, value), 0)

    def least_crowded(self, tenant: str, replicas: list[Replica]) -> list[Replica]:
        """Those of `replicas` where the fewest tasks of `tenant` run, by each label in turn.

        Replicas without a label share one value of it. O(labels * replicas); order is kept.
        """
        for label in self.labels:
            crowd = [self.running(tenant, label, replica.label(label)) for replica in replicas]
            fewest = min(crowd, default=0)
            replicas = [r for r, count in zip(replicas, crowd, strict=True) if count == fewest]
        return replicas
