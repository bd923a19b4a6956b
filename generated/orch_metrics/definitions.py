"""Metrics of the contract, typed. Generated from contracts/metrics.yaml; do not edit.

Bind a child once (`metrics.queue_depth.labels(...)`) and keep it; looking it up costs more than
counting. A label value beyond its budget, or outside a closed list, is counted under `other`.
"""

from __future__ import annotations

import threading
from dataclasses import dataclass

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    disable_created_metrics,
)

OTHER = "other"


# How many values a label may have per metric.
LABEL_BUDGETS: dict[str, int] = {
    "engine": 4,
    "engine_version": 64,
    "pool_id": 256,
    "replica_id": 1024,
    "priority": 8,
    "reason": 16,
    "tenant": 256,
    "result": 4,
    "state": 8,
    "mode": 4,
    "model_id": 1024,
    "device": 64,
    "policy": 16,
    "outcome": 8,
    "code": 16,
    "operation": 48,
    "objective": 8,
    "status": 32,
    "version": 4,
}
# Labels whose values are all known.
CLOSED_LABELS: dict[str, frozenset[str]] = {
    "engine": frozenset(("llamacpp", "vllm", "tgi", "triton")),
    "priority": frozenset(("interactive", "batch")),
    "mode": frozenset(("soft", "hard")),
    "code": frozenset(
        (
            "ADMISSION_REJECT",
            "QUEUE_FULL_DROP_LRU",
            "INVALID_PARAMS",
            "POOL_UNREADY",
            "POOL_UNAVAILABLE",
            "REPLICA_EXHAUSTED",
            "DECODE_TIMEOUT",
            "WORKER_RESET",
            "INTERNAL",
            "DEADLINE_UNMET",
            "MODEL_DEPRECATED",
            "UNTRUSTED_ARTIFACT",
        )
    ),
    "objective": frozenset(
        ("first_token_p95_ms", "tokens_64_p95_ms", "error_ratio", "throughput_ratio")
    ),
}
BUCKETS: dict[str, tuple[float, ...]] = {
    "recovery_ms": (
        10.0,
        20.0,
        50.0,
        100.0,
        200.0,
        500.0,
        1000.0,
        2000.0,
        5000.0,
        10000.0,
        30000.0,
        60000.0,
    ),
    "latency_ms": (
        1.0,
        2.0,
        5.0,
        10.0,
        20.0,
        50.0,
        100.0,
        200.0,
        350.0,
        500.0,
        700.0,
        900.0,
        1200.0,
        1800.0,
        2500.0,
        5000.0,
        10000.0,
        30000.0,
        60000.0,
        300000.0,
    ),
    "commit_ms": (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 250.0, 1000.0, 5000.0),
}


@dataclass(frozen=True, slots=True)
class Definition:
    """One metric as the contract has it."""

    name: str
    type: str
    unit: str
    labels: tuple[str, ...]
    help: str
    req: tuple[str, ...]
    # Declared, and nothing sets it yet.
    planned: bool


class LabelBudget:
    """The label values that one metric has taken so far, and the one place that bounds them."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self._labels = [
            (CLOSED_LABELS.get(name), LABEL_BUDGETS[name], set[str]()) for name in names
        ]
        self._lock = threading.Lock()

    def fit(self, *values: str) -> tuple[str, ...]:
        """The values to use, each as given or `other`; in the order of the metric's labels."""
        return tuple(map(self._fit_one, self._labels, values))

    def _fit_one(self, label: tuple[frozenset[str] | None, int, set[str]], value: str) -> str:
        closed, budget, seen = label
        if closed is not None:
            return value if value in closed else OTHER
        if value in seen:
            return value
        with self._lock:
            # One of the budgeted values is `other` itself.
            if len(seen) >= budget - 1:
                return OTHER
            seen.add(value)
            return value


class TasksEnqueuedTotal:
    """Tasks that entered a queue. replica_id is empty where no replica is chosen yet."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(
            ("engine", "engine_version", "pool_id", "replica_id", "priority")
        )

    def labels(
        self, *, engine: str, engine_version: str, pool_id: str, replica_id: str, priority: str
    ) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(
            *self._budget.fit(engine, engine_version, pool_id, replica_id, priority)
        )


class TasksStartedTotal:
    """Decodes that began; a task that changed its replica counts again."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(
            ("engine", "engine_version", "pool_id", "replica_id", "priority")
        )

    def labels(
        self, *, engine: str, engine_version: str, pool_id: str, replica_id: str, priority: str
    ) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(
            *self._budget.fit(engine, engine_version, pool_id, replica_id, priority)
        )


class TasksCanceledTotal:
    """Tasks that a cancel ended, waiting or running."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "engine_version", "pool_id", "replica_id", "reason"))

    def labels(
        self, *, engine: str, engine_version: str, pool_id: str, replica_id: str, reason: str
    ) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(
            *self._budget.fit(engine, engine_version, pool_id, replica_id, reason)
        )


class TasksRejectedTotal:
    """Tasks refused at admission, or dropped or shed from a queue, by reason."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "reason"))

    def labels(self, *, engine: str, reason: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, reason))


class QueueDepth:
    """Tasks that wait."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "engine_version", "pool_id", "priority"))

    def labels(self, *, engine: str, engine_version: str, pool_id: str, priority: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, engine_version, pool_id, priority))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class KvCacheUsageRatio:
    """Share of the KV cache in use, 0 to 1."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "engine_version", "pool_id", "replica_id"))

    def labels(self, *, engine: str, engine_version: str, pool_id: str, replica_id: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, engine_version, pool_id, replica_id))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class GpuUtilization:
    """Share of time in which the GPU worked, 0 to 100."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "engine_version", "pool_id", "replica_id", "device"))

    def labels(
        self, *, engine: str, engine_version: str, pool_id: str, replica_id: str, device: str
    ) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(
            *self._budget.fit(engine, engine_version, pool_id, replica_id, device)
        )

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class VramUsedBytes:
    """GPU memory in use."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "engine_version", "pool_id", "replica_id", "device"))

    def labels(
        self, *, engine: str, engine_version: str, pool_id: str, replica_id: str, device: str
    ) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(
            *self._budget.fit(engine, engine_version, pool_id, replica_id, device)
        )

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class LatencyFirstTokenMs:
    """From admission to the first token."""

    def __init__(self, metric: Histogram) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "engine_version", "pool_id", "priority"))

    def labels(self, *, engine: str, engine_version: str, pool_id: str, priority: str) -> Histogram:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, engine_version, pool_id, priority))


class LatencyDecodeMs:
    """From the start of decoding to its end."""

    def __init__(self, metric: Histogram) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "engine_version", "pool_id", "priority"))

    def labels(self, *, engine: str, engine_version: str, pool_id: str, priority: str) -> Histogram:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, engine_version, pool_id, priority))


class TokensInTotal:
    """Prompt tokens of finished decodes."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "engine_version", "pool_id", "replica_id"))

    def labels(self, *, engine: str, engine_version: str, pool_id: str, replica_id: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, engine_version, pool_id, replica_id))


class TokensOutTotal:
    """Tokens decoded and sent."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "engine_version", "pool_id", "replica_id"))

    def labels(self, *, engine: str, engine_version: str, pool_id: str, replica_id: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, engine_version, pool_id, replica_id))


class AdmissionBackpressureEventsTotal:
    """Answers with 429, by the policy that decided."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "policy"))

    def labels(self, *, engine: str, policy: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, policy))


class CatalogVerificationsTotal:
    """Verifications of models."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("result", "reason", "engine"))

    def labels(self, *, result: str, reason: str, engine: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(result, reason, engine))


class ModelState:
    """1 for the state that the model is in, 0 for the others."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("model_id", "state"))

    def labels(self, *, model_id: str, state: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(model_id, state))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class AdmissionShare:
    """Share of the decoded cost lately, as an EWMA, 0 to 1."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("tenant", "priority"))

    def labels(self, *, tenant: str, priority: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(tenant, priority))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class DeadlinesMetRatio:
    """Share of finished tasks that met their deadline, 0 to 1."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("priority",))

    def labels(self, *, priority: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(priority))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class PreemptionsTotal:
    """Waiting tasks removed (soft) or running ones interrupted (hard) for more urgent ones."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("mode", "engine"))

    def labels(self, *, mode: str, engine: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(mode, engine))


class ResumptionsTotal:
    """Interrupted tasks that run again."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine",))

    def labels(self, *, engine: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine))


class SloValue:
    """What was measured lately for an objective, in the unit that its name says."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "priority", "objective"))

    def labels(self, *, engine: str, pool_id: str, priority: str, objective: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, priority, objective))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class SloAttainmentRatio:
    """Share of the tasks lately that met the objective, 0 to 1; how much of it was reached, of a throughput. Absent below 20 samples."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "priority", "objective"))

    def labels(self, *, engine: str, pool_id: str, priority: str, objective: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, priority, objective))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class SloTasksTotal:
    """Tasks measured for an objective: met or missed. Throughput is no matter of single tasks: slo_attainment_ratio has it."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "priority", "objective", "result"))

    def labels(
        self, *, engine: str, pool_id: str, priority: str, objective: str, result: str
    ) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, priority, objective, result))


class AdmissionBreakerOpen:
    """1 while the circuit breaker refuses this priority because an objective stays violated."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "priority"))

    def labels(self, *, engine: str, pool_id: str, priority: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, priority))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class TasksRunning:
    """Tasks that decode."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "priority"))

    def labels(self, *, engine: str, pool_id: str, priority: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, priority))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class TasksFinishedTotal:
    """Tasks that reached their terminal event: completed, canceled, dropped, expired or failed."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "priority", "outcome"))

    def labels(self, *, engine: str, pool_id: str, priority: str, outcome: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, priority, outcome))


class LatencyQueueMs:
    """From admission to the start of decoding."""

    def __init__(self, metric: Histogram) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "engine_version", "pool_id", "priority"))

    def labels(self, *, engine: str, engine_version: str, pool_id: str, priority: str) -> Histogram:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, engine_version, pool_id, priority))


class FailoversTotal:
    """Workers lost under a running task: resumed, mismatch or lost; drained where a planned drain moved the task."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "outcome"))

    def labels(self, *, engine: str, pool_id: str, outcome: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, outcome))


class FailoverRecoveryMs:
    """From the loss of a task's worker to its first new token."""

    def __init__(self, metric: Histogram) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id"))

    def labels(self, *, engine: str, pool_id: str) -> Histogram:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id))


class Slots:
    """Tasks that a replica can decode at once, as its engine says."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "replica_id"))

    def labels(self, *, engine: str, pool_id: str, replica_id: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, replica_id))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class SlotsBusy:
    """Slots with a task of ours."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "replica_id"))

    def labels(self, *, engine: str, pool_id: str, replica_id: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, replica_id))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class ReplicaReady:
    """1 while the replica takes work."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "engine_version", "pool_id", "replica_id"))

    def labels(self, *, engine: str, engine_version: str, pool_id: str, replica_id: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, engine_version, pool_id, replica_id))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class ReplicaState:
    """1 for the state that the replica is in, 0 for the others; all are 0 while it is Unloaded or Stopped."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "replica_id", "state"))

    def labels(self, *, engine: str, pool_id: str, replica_id: str, state: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, replica_id, state))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class ReplicaRestartsTotal:
    """Starts of a worker process after its first."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "replica_id"))

    def labels(self, *, engine: str, pool_id: str, replica_id: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, replica_id))


class PreloadOutcomesTotal:
    """Preloads by how they ended: ready, failed or timeout."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "outcome"))

    def labels(self, *, engine: str, pool_id: str, outcome: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, outcome))


class SelfTestsTotal:
    """Self-tests of replicas before they became Ready: passed or failed."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "outcome"))

    def labels(self, *, engine: str, pool_id: str, outcome: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, outcome))


class OomEventsTotal:
    """Engines that ended for want of memory: vram or host-ram."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "reason"))

    def labels(self, *, engine: str, pool_id: str, reason: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, reason))


class DriverResetEventsTotal:
    """Errors of driver and GPU: cuda-error, xid, ecc, gpu-lost or reset."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "reason"))

    def labels(self, *, engine: str, pool_id: str, reason: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, reason))


class ReloadsTotal:
    """Reloads of pools by how they ended: switched, canary, promoted, rolled-back or failed."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "outcome"))

    def labels(self, *, engine: str, pool_id: str, outcome: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, outcome))


class DrainsTotal:
    """Drains of pools and replicas by how they ended: idle, deadline or lifted."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("engine", "pool_id", "outcome"))

    def labels(self, *, engine: str, pool_id: str, outcome: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(engine, pool_id, outcome))


class ConfigReloadsTotal:
    """Hot reloads of the configuration: applied, unchanged, rejected or reverted."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("outcome",))

    def labels(self, *, outcome: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(outcome))


class GpuMemoryTotalBytes:
    """Memory of the GPU."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("device",))

    def labels(self, *, device: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(device))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class GpuMemoryUsedBytes:
    """Memory of the GPU in use by anybody."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("device",))

    def labels(self, *, device: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(device))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class GpuTemperatureCelsius:
    """Temperature of the GPU."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("device",))

    def labels(self, *, device: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(device))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class GpuPowerWatts:
    """Power that the GPU draws."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("device",))

    def labels(self, *, device: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(device))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class GpuSmClockMhz:
    """Clock of the GPU's multiprocessors."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("device",))

    def labels(self, *, device: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(device))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class GpuThrottled:
    """1 while the GPU is slowed down for heat or power."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("device",))

    def labels(self, *, device: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(device))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class GpuEccErrors:
    """Uncorrected memory errors since the driver was loaded."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("device",))

    def labels(self, *, device: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(device))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class GpuLost:
    """1 while the GPU does not answer."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("device",))

    def labels(self, *, device: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(device))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class HttpRequestsTotal:
    """Answers by operation of the contract and status; other paths count as operation "none"."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("operation", "status"))

    def labels(self, *, operation: str, status: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(operation, status))


class ErrorsTotal:
    """Error envelopes and error events by code."""

    def __init__(self, metric: Counter) -> None:
        self._metric = metric
        self._budget = LabelBudget(("code",))

    def labels(self, *, code: str) -> Counter:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(code))


class BuildInfo:
    """Always 1; the version is in the label."""

    def __init__(self, metric: Gauge) -> None:
        self._metric = metric
        self._budget = LabelBudget(("version",))

    def labels(self, *, version: str) -> Gauge:
        """The child to count in; bind it once."""
        return self._metric.labels(*self._budget.fit(version))

    def clear(self) -> None:
        """Forget all children: what is not set again is not exposed."""
        self._metric.clear()


class OrchMetrics:
    """Every metric of the contract, registered in `registry`; one per process."""

    def __init__(self, registry: CollectorRegistry) -> None:
        # The contract knows no `_created` series; the library's switch is process-wide.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self.tasks_enqueued_total = TasksEnqueuedTotal(
            Counter(
                "tasks_enqueued_total",
                "Tasks that entered a queue. replica_id is empty where no replica is chosen yet.",
                ("engine", "engine_version", "pool_id", "replica_id", "priority"),
                registry=registry,
            )
        )
        self.tasks_started_total = TasksStartedTotal(
            Counter(
                "tasks_started_total",
                "Decodes that began; a task that changed its replica counts again.",
                ("engine", "engine_version", "pool_id", "replica_id", "priority"),
                registry=registry,
            )
        )
        self.tasks_canceled_total = TasksCanceledTotal(
            Counter(
                "tasks_canceled_total",
                "Tasks that a cancel ended, waiting or running.",
                ("engine", "engine_version", "pool_id", "replica_id", "reason"),
                registry=registry,
            )
        )
        self.tasks_rejected_total = TasksRejectedTotal(
            Counter(
                "tasks_rejected_total",
                "Tasks refused at admission, or dropped or shed from a queue, by reason.",
                ("engine", "reason"),
                registry=registry,
            )
        )
        self.queue_depth = QueueDepth(
            Gauge(
                "queue_depth",
                "Tasks that wait.",
                ("engine", "engine_version", "pool_id", "priority"),
                registry=registry,
            )
        )
        self.kv_cache_usage_ratio = KvCacheUsageRatio(
            Gauge(
                "kv_cache_usage_ratio",
                "Share of the KV cache in use, 0 to 1.",
                ("engine", "engine_version", "pool_id", "replica_id"),
                registry=registry,
            )
        )
        self.gpu_utilization = GpuUtilization(
            Gauge(
                "gpu_utilization",
                "Share of time in which the GPU worked, 0 to 100.",
                ("engine", "engine_version", "pool_id", "replica_id", "device"),
                registry=registry,
            )
        )
        self.vram_used_bytes = VramUsedBytes(
            Gauge(
                "vram_used_bytes",
                "GPU memory in use.",
                ("engine", "engine_version", "pool_id", "replica_id", "device"),
                registry=registry,
            )
        )
        self.latency_first_token_ms = LatencyFirstTokenMs(
            Histogram(
                "latency_first_token_ms",
                "From admission to the first token.",
                ("engine", "engine_version", "pool_id", "priority"),
                registry=registry,
                buckets=BUCKETS["latency_ms"],
            )
        )
        self.latency_decode_ms = LatencyDecodeMs(
            Histogram(
                "latency_decode_ms",
                "From the start of decoding to its end.",
                ("engine", "engine_version", "pool_id", "priority"),
                registry=registry,
                buckets=BUCKETS["latency_ms"],
            )
        )
        self.tokens_in_total = TokensInTotal(
            Counter(
                "tokens_in_total",
                "Prompt tokens of finished decodes.",
                ("engine", "engine_version", "pool_id", "replica_id"),
                registry=registry,
            )
        )
        self.tokens_out_total = TokensOutTotal(
            Counter(
                "tokens_out_total",
                "Tokens decoded and sent.",
                ("engine", "engine_version", "pool_id", "replica_id"),
                registry=registry,
            )
        )
        self.admission_backpressure_events_total = AdmissionBackpressureEventsTotal(
            Counter(
                "admission_backpressure_events_total",
                "Answers with 429, by the policy that decided.",
                ("engine", "policy"),
                registry=registry,
            )
        )
        self.catalog_verifications_total = CatalogVerificationsTotal(
            Counter(
                "catalog_verifications_total",
                "Verifications of models.",
                ("result", "reason", "engine"),
                registry=registry,
            )
        )
        self.model_state = ModelState(
            Gauge(
                "model_state",
                "1 for the state that the model is in, 0 for the others.",
                ("model_id", "state"),
                registry=registry,
            )
        )
        self.admission_share = AdmissionShare(
            Gauge(
                "admission_share",
                "Share of the decoded cost lately, as an EWMA, 0 to 1.",
                ("tenant", "priority"),
                registry=registry,
            )
        )
        self.deadlines_met_ratio = DeadlinesMetRatio(
            Gauge(
                "deadlines_met_ratio",
                "Share of finished tasks that met their deadline, 0 to 1.",
                ("priority",),
                registry=registry,
            )
        )
        self.preemptions_total = PreemptionsTotal(
            Counter(
                "preemptions_total",
                "Waiting tasks removed (soft) or running ones interrupted (hard) for more urgent ones.",
                ("mode", "engine"),
                registry=registry,
            )
        )
        self.resumptions_total = ResumptionsTotal(
            Counter(
                "resumptions_total",
                "Interrupted tasks that run again.",
                ("engine",),
                registry=registry,
            )
        )
        self.slo_value = SloValue(
            Gauge(
                "slo_value",
                "What was measured lately for an objective, in the unit that its name says.",
                ("engine", "pool_id", "priority", "objective"),
                registry=registry,
            )
        )
        self.slo_attainment_ratio = SloAttainmentRatio(
            Gauge(
                "slo_attainment_ratio",
                "Share of the tasks lately that met the objective, 0 to 1; how much of it was reached, of a throughput. Absent below 20 samples.",
                ("engine", "pool_id", "priority", "objective"),
                registry=registry,
            )
        )
        self.slo_tasks_total = SloTasksTotal(
            Counter(
                "slo_tasks_total",
                "Tasks measured for an objective: met or missed. Throughput is no matter of single tasks: slo_attainment_ratio has it.",
                ("engine", "pool_id", "priority", "objective", "result"),
                registry=registry,
            )
        )
        self.admission_breaker_open = AdmissionBreakerOpen(
            Gauge(
                "admission_breaker_open",
                "1 while the circuit breaker refuses this priority because an objective stays violated.",
                ("engine", "pool_id", "priority"),
                registry=registry,
            )
        )
        self.tasks_running = TasksRunning(
            Gauge(
                "tasks_running",
                "Tasks that decode.",
                ("engine", "pool_id", "priority"),
                registry=registry,
            )
        )
        self.tasks_finished_total = TasksFinishedTotal(
            Counter(
                "tasks_finished_total",
                "Tasks that reached their terminal event: completed, canceled, dropped, expired or failed.",
                ("engine", "pool_id", "priority", "outcome"),
                registry=registry,
            )
        )
        self.latency_queue_ms = LatencyQueueMs(
            Histogram(
                "latency_queue_ms",
                "From admission to the start of decoding.",
                ("engine", "engine_version", "pool_id", "priority"),
                registry=registry,
                buckets=BUCKETS["latency_ms"],
            )
        )
        self.failovers_total = FailoversTotal(
            Counter(
                "failovers_total",
                "Workers lost under a running task: resumed, mismatch or lost; drained where a planned drain moved the task.",
                ("engine", "pool_id", "outcome"),
                registry=registry,
            )
        )
        self.failover_recovery_ms = FailoverRecoveryMs(
            Histogram(
                "failover_recovery_ms",
                "From the loss of a task's worker to its first new token.",
                ("engine", "pool_id"),
                registry=registry,
                buckets=BUCKETS["recovery_ms"],
            )
        )
        self.stream_readers = Gauge("stream_readers", "Open event streams.", registry=registry)
        self.log_bytes_retained = Gauge(
            "log_bytes_retained", "Size of the event logs that can be read.", registry=registry
        )
        self.sessions_open = Gauge(
            "sessions_open", "Sessions that have not ended.", registry=registry
        )
        self.slots = Slots(
            Gauge(
                "slots",
                "Tasks that a replica can decode at once, as its engine says.",
                ("engine", "pool_id", "replica_id"),
                registry=registry,
            )
        )
        self.slots_busy = SlotsBusy(
            Gauge(
                "slots_busy",
                "Slots with a task of ours.",
                ("engine", "pool_id", "replica_id"),
                registry=registry,
            )
        )
        self.replica_ready = ReplicaReady(
            Gauge(
                "replica_ready",
                "1 while the replica takes work.",
                ("engine", "engine_version", "pool_id", "replica_id"),
                registry=registry,
            )
        )
        self.replica_state = ReplicaState(
            Gauge(
                "replica_state",
                "1 for the state that the replica is in, 0 for the others; all are 0 while it is Unloaded or Stopped.",
                ("engine", "pool_id", "replica_id", "state"),
                registry=registry,
            )
        )
        self.replica_restarts_total = ReplicaRestartsTotal(
            Counter(
                "replica_restarts_total",
                "Starts of a worker process after its first.",
                ("engine", "pool_id", "replica_id"),
                registry=registry,
            )
        )
        self.preload_outcomes_total = PreloadOutcomesTotal(
            Counter(
                "preload_outcomes_total",
                "Preloads by how they ended: ready, failed or timeout.",
                ("engine", "pool_id", "outcome"),
                registry=registry,
            )
        )
        self.self_tests_total = SelfTestsTotal(
            Counter(
                "self_tests_total",
                "Self-tests of replicas before they became Ready: passed or failed.",
                ("engine", "pool_id", "outcome"),
                registry=registry,
            )
        )
        self.oom_events_total = OomEventsTotal(
            Counter(
                "oom_events_total",
                "Engines that ended for want of memory: vram or host-ram.",
                ("engine", "pool_id", "reason"),
                registry=registry,
            )
        )
        self.driver_reset_events_total = DriverResetEventsTotal(
            Counter(
                "driver_reset_events_total",
                "Errors of driver and GPU: cuda-error, xid, ecc, gpu-lost or reset.",
                ("engine", "pool_id", "reason"),
                registry=registry,
            )
        )
        self.reloads_total = ReloadsTotal(
            Counter(
                "reloads_total",
                "Reloads of pools by how they ended: switched, canary, promoted, rolled-back or failed.",
                ("engine", "pool_id", "outcome"),
                registry=registry,
            )
        )
        self.drains_total = DrainsTotal(
            Counter(
                "drains_total",
                "Drains of pools and replicas by how they ended: idle, deadline or lifted.",
                ("engine", "pool_id", "outcome"),
                registry=registry,
            )
        )
        self.config_reloads_total = ConfigReloadsTotal(
            Counter(
                "config_reloads_total",
                "Hot reloads of the configuration: applied, unchanged, rejected or reverted.",
                ("outcome",),
                registry=registry,
            )
        )
        self.gpu_memory_total_bytes = GpuMemoryTotalBytes(
            Gauge("gpu_memory_total_bytes", "Memory of the GPU.", ("device",), registry=registry)
        )
        self.gpu_memory_used_bytes = GpuMemoryUsedBytes(
            Gauge(
                "gpu_memory_used_bytes",
                "Memory of the GPU in use by anybody.",
                ("device",),
                registry=registry,
            )
        )
        self.gpu_temperature_celsius = GpuTemperatureCelsius(
            Gauge(
                "gpu_temperature_celsius", "Temperature of the GPU.", ("device",), registry=registry
            )
        )
        self.gpu_power_watts = GpuPowerWatts(
            Gauge("gpu_power_watts", "Power that the GPU draws.", ("device",), registry=registry)
        )
        self.gpu_sm_clock_mhz = GpuSmClockMhz(
            Gauge(
                "gpu_sm_clock_mhz",
                "Clock of the GPU's multiprocessors.",
                ("device",),
                registry=registry,
            )
        )
        self.gpu_throttled = GpuThrottled(
            Gauge(
                "gpu_throttled",
                "1 while the GPU is slowed down for heat or power.",
                ("device",),
                registry=registry,
            )
        )
        self.gpu_ecc_errors = GpuEccErrors(
            Gauge(
                "gpu_ecc_errors",
                "Uncorrected memory errors since the driver was loaded.",
                ("device",),
                registry=registry,
            )
        )
        self.gpu_lost = GpuLost(
            Gauge("gpu_lost", "1 while the GPU does not answer.", ("device",), registry=registry)
        )
        self.pool_managers_registered = Gauge(
            "pool_managers_registered", "Pool managers with a living lease.", registry=registry
        )
        self.model_store_bytes = Gauge(
            "model_store_bytes", "Size of the model files in the store.", registry=registry
        )
        self.host_ram_used_bytes = Gauge(
            "host_ram_used_bytes", "Memory of the host in use.", registry=registry
        )
        self.cpu_carve_out = Gauge(
            "cpu_carve_out",
            "1 where workers may run without a GPU, which is for demos and CI only.",
            registry=registry,
        )
        self.journal_commits_total = Counter(
            "journal_commits_total", "Group commits of the journal.", registry=registry
        )
        self.journal_commit_ms = Histogram(
            "journal_commit_ms",
            "From the first append of a group to its being durable.",
            registry=registry,
            buckets=BUCKETS["commit_ms"],
        )
        self.journal_failing = Gauge(
            "journal_failing",
            "1 while the journal cannot commit; then no task is admitted.",
            registry=registry,
        )
        self.journal_bytes = Gauge(
            "journal_bytes", "Size of the journal on disk.", registry=registry
        )
        self.http_requests_total = HttpRequestsTotal(
            Counter(
                "http_requests_total",
                'Answers by operation of the contract and status; other paths count as operation "none".',
                ("operation", "status"),
                registry=registry,
            )
        )
        self.errors_total = ErrorsTotal(
            Counter(
                "errors_total",
                "Error envelopes and error events by code.",
                ("code",),
                registry=registry,
            )
        )
        self.build_info = BuildInfo(
            Gauge(
                "build_info",
                "Always 1; the version is in the label.",
                ("version",),
                registry=registry,
            )
        )


DEFINITIONS: tuple[Definition, ...] = (
    Definition(
        "tasks_enqueued_total",
        "counter",
        "tasks",
        ("engine", "engine_version", "pool_id", "replica_id", "priority"),
        "Tasks that entered a queue. replica_id is empty where no replica is chosen yet.",
        ("ORCH-3028", "OC-CTRL-2051"),
        False,
    ),
    Definition(
        "tasks_started_total",
        "counter",
        "tasks",
        ("engine", "engine_version", "pool_id", "replica_id", "priority"),
        "Decodes that began; a task that changed its replica counts again.",
        ("ORCH-3028",),
        False,
    ),
    Definition(
        "tasks_canceled_total",
        "counter",
        "tasks",
        ("engine", "engine_version", "pool_id", "replica_id", "reason"),
        "Tasks that a cancel ended, waiting or running.",
        ("ORCH-3017", "ORCH-3028"),
        False,
    ),
    Definition(
        "tasks_rejected_total",
        "counter",
        "tasks",
        ("engine", "reason"),
        "Tasks refused at admission, or dropped or shed from a queue, by reason.",
        ("ORCH-3028", "OC-CORE-1041", "OC-CTRL-2051"),
        False,
    ),
    Definition(
        "queue_depth",
        "gauge",
        "tasks",
        ("engine", "engine_version", "pool_id", "priority"),
        "Tasks that wait.",
        ("ORCH-3028", "OC-CORE-1041", "OC-CTRL-2051"),
        False,
    ),
    Definition(
        "kv_cache_usage_ratio",
        "gauge",
        "ratio",
        ("engine", "engine_version", "pool_id", "replica_id"),
        "Share of the KV cache in use, 0 to 1.",
        ("ORCH-3022", "ORCH-3028"),
        False,
    ),
    Definition(
        "gpu_utilization",
        "gauge",
        "percent",
        ("engine", "engine_version", "pool_id", "replica_id", "device"),
        "Share of time in which the GPU worked, 0 to 100.",
        ("ORCH-3028",),
        False,
    ),
    Definition(
        "vram_used_bytes",
        "gauge",
        "bytes",
        ("engine", "engine_version", "pool_id", "replica_id", "device"),
        "GPU memory in use.",
        ("ORCH-3028", "OC-POOL-3030"),
        False,
    ),
    Definition(
        "latency_first_token_ms",
        "histogram",
        "ms",
        ("engine", "engine_version", "pool_id", "priority"),
        "From admission to the first token.",
        ("ORCH-3028", "ORCH-3041"),
        False,
    ),
    Definition(
        "latency_decode_ms",
        "histogram",
        "ms",
        ("engine", "engine_version", "pool_id", "priority"),
        "From the start of decoding to its end.",
        ("ORCH-3028", "ORCH-3041"),
        False,
    ),
    Definition(
        "tokens_in_total",
        "counter",
        "tokens",
        ("engine", "engine_version", "pool_id", "replica_id"),
        "Prompt tokens of finished decodes.",
        ("ORCH-3028",),
        False,
    ),
    Definition(
        "tokens_out_total",
        "counter",
        "tokens",
        ("engine", "engine_version", "pool_id", "replica_id"),
        "Tokens decoded and sent.",
        ("ORCH-3028", "OC-E2E-9002"),
        False,
    ),
    Definition(
        "admission_backpressure_events_total",
        "counter",
        "events",
        ("engine", "policy"),
        "Answers with 429, by the policy that decided.",
        ("ORCH-2007", "ORCH-3028"),
        False,
    ),
    Definition(
        "catalog_verifications_total",
        "counter",
        "verifications",
        ("result", "reason", "engine"),
        "Verifications of models.",
        ("ORCH-3064",),
        True,
    ),
    Definition(
        "model_state",
        "gauge",
        "bool",
        ("model_id", "state"),
        "1 for the state that the model is in, 0 for the others.",
        ("ORCH-3073",),
        True,
    ),
    Definition(
        "admission_share",
        "gauge",
        "ratio",
        ("tenant", "priority"),
        "Share of the decoded cost lately, as an EWMA, 0 to 1.",
        ("ORCH-3076",),
        False,
    ),
    Definition(
        "deadlines_met_ratio",
        "gauge",
        "ratio",
        ("priority",),
        "Share of finished tasks that met their deadline, 0 to 1.",
        ("ORCH-3081",),
        False,
    ),
    Definition(
        "preemptions_total",
        "counter",
        "preemptions",
        ("mode", "engine"),
        "Waiting tasks removed (soft) or running ones interrupted (hard) for more urgent ones.",
        ("ORCH-3087",),
        False,
    ),
    Definition(
        "resumptions_total",
        "counter",
        "resumptions",
        ("engine",),
        "Interrupted tasks that run again.",
        ("ORCH-3087",),
        False,
    ),
    Definition(
        "slo_value",
        "gauge",
        "value",
        ("engine", "pool_id", "priority", "objective"),
        "What was measured lately for an objective, in the unit that its name says.",
        ("ORCH-3041", "ORCH-2104"),
        False,
    ),
    Definition(
        "slo_attainment_ratio",
        "gauge",
        "ratio",
        ("engine", "pool_id", "priority", "objective"),
        "Share of the tasks lately that met the objective, 0 to 1; how much of it was reached, of a throughput. Absent below 20 samples.",
        ("ORCH-3028", "ORCH-3041"),
        False,
    ),
    Definition(
        "slo_tasks_total",
        "counter",
        "tasks",
        ("engine", "pool_id", "priority", "objective", "result"),
        "Tasks measured for an objective: met or missed. Throughput is no matter of single tasks: slo_attainment_ratio has it.",
        ("ORCH-3041",),
        False,
    ),
    Definition(
        "admission_breaker_open",
        "gauge",
        "bool",
        ("engine", "pool_id", "priority"),
        "1 while the circuit breaker refuses this priority because an objective stays violated.",
        ("ORCH-3040",),
        False,
    ),
    Definition(
        "tasks_running",
        "gauge",
        "tasks",
        ("engine", "pool_id", "priority"),
        "Tasks that decode.",
        ("ORCH-3028",),
        False,
    ),
    Definition(
        "tasks_finished_total",
        "counter",
        "tasks",
        ("engine", "pool_id", "priority", "outcome"),
        "Tasks that reached their terminal event: completed, canceled, dropped, expired or failed.",
        ("ORCH-3028", "ORCH-3041"),
        False,
    ),
    Definition(
        "latency_queue_ms",
        "histogram",
        "ms",
        ("engine", "engine_version", "pool_id", "priority"),
        "From admission to the start of decoding.",
        ("ORCH-3028",),
        False,
    ),
    Definition(
        "failovers_total",
        "counter",
        "failovers",
        ("engine", "pool_id", "outcome"),
        "Workers lost under a running task: resumed, mismatch or lost; drained where a planned drain moved the task.",
        ("ORCH-3201",),
        False,
    ),
    Definition(
        "failover_recovery_ms",
        "histogram",
        "ms",
        ("engine", "pool_id"),
        "From the loss of a task's worker to its first new token.",
        ("ORCH-3201",),
        False,
    ),
    Definition(
        "stream_readers", "gauge", "connections", (), "Open event streams.", ("ORCH-3202",), False
    ),
    Definition(
        "log_bytes_retained",
        "gauge",
        "bytes",
        (),
        "Size of the event logs that can be read.",
        ("ORCH-3202",),
        False,
    ),
    Definition(
        "sessions_open",
        "gauge",
        "sessions",
        (),
        "Sessions that have not ended.",
        ("ORCH-3021",),
        False,
    ),
    Definition(
        "slots",
        "gauge",
        "slots",
        ("engine", "pool_id", "replica_id"),
        "Tasks that a replica can decode at once, as its engine says.",
        ("ORCH-3019",),
        False,
    ),
    Definition(
        "slots_busy",
        "gauge",
        "slots",
        ("engine", "pool_id", "replica_id"),
        "Slots with a task of ours.",
        ("ORCH-3019",),
        False,
    ),
    Definition(
        "replica_ready",
        "gauge",
        "bool",
        ("engine", "engine_version", "pool_id", "replica_id"),
        "1 while the replica takes work.",
        ("ORCH-3010", "ORCH-3032"),
        False,
    ),
    Definition(
        "replica_state",
        "gauge",
        "bool",
        ("engine", "pool_id", "replica_id", "state"),
        "1 for the state that the replica is in, 0 for the others; all are 0 while it is Unloaded or Stopped.",
        ("OC-POOL-3003",),
        False,
    ),
    Definition(
        "replica_restarts_total",
        "counter",
        "restarts",
        ("engine", "pool_id", "replica_id"),
        "Starts of a worker process after its first.",
        ("OC-POOL-3011", "OC-POOL-3030"),
        False,
    ),
    Definition(
        "preload_outcomes_total",
        "counter",
        "preloads",
        ("engine", "pool_id", "outcome"),
        "Preloads by how they ended: ready, failed or timeout.",
        ("ORCH-3002", "ORCH-3028", "OC-POOL-3030"),
        False,
    ),
    Definition(
        "self_tests_total",
        "counter",
        "self-tests",
        ("engine", "pool_id", "outcome"),
        "Self-tests of replicas before they became Ready: passed or failed.",
        ("ORCH-3049",),
        False,
    ),
    Definition(
        "oom_events_total",
        "counter",
        "events",
        ("engine", "pool_id", "reason"),
        "Engines that ended for want of memory: vram or host-ram.",
        ("ORCH-3039", "OC-POOL-3030"),
        False,
    ),
    Definition(
        "driver_reset_events_total",
        "counter",
        "events",
        ("engine", "pool_id", "reason"),
        "Errors of driver and GPU: cuda-error, xid, ecc, gpu-lost or reset.",
        ("ORCH-3038", "ORCH-3053", "OC-POOL-3030"),
        False,
    ),
    Definition(
        "reloads_total",
        "counter",
        "reloads",
        ("engine", "pool_id", "outcome"),
        "Reloads of pools by how they ended: switched, canary, promoted, rolled-back or failed.",
        ("ORCH-2102", "ORCH-3033"),
        False,
    ),
    Definition(
        "drains_total",
        "counter",
        "drains",
        ("engine", "pool_id", "outcome"),
        "Drains of pools and replicas by how they ended: idle, deadline or lifted.",
        ("ORCH-2101",),
        False,
    ),
    Definition(
        "config_reloads_total",
        "counter",
        "reloads",
        ("outcome",),
        "Hot reloads of the configuration: applied, unchanged, rejected or reverted.",
        ("ORCH-3031",),
        False,
    ),
    Definition(
        "gpu_memory_total_bytes",
        "gauge",
        "bytes",
        ("device",),
        "Memory of the GPU.",
        ("ORCH-3028",),
        False,
    ),
    Definition(
        "gpu_memory_used_bytes",
        "gauge",
        "bytes",
        ("device",),
        "Memory of the GPU in use by anybody.",
        ("ORCH-3028",),
        False,
    ),
    Definition(
        "gpu_temperature_celsius",
        "gauge",
        "celsius",
        ("device",),
        "Temperature of the GPU.",
        ("ORCH-3028",),
        False,
    ),
    Definition(
        "gpu_power_watts",
        "gauge",
        "watts",
        ("device",),
        "Power that the GPU draws.",
        ("ORCH-3028",),
        False,
    ),
    Definition(
        "gpu_sm_clock_mhz",
        "gauge",
        "mhz",
        ("device",),
        "Clock of the GPU's multiprocessors.",
        ("ORCH-3028",),
        False,
    ),
    Definition(
        "gpu_throttled",
        "gauge",
        "bool",
        ("device",),
        "1 while the GPU is slowed down for heat or power.",
        ("ORCH-3028",),
        False,
    ),
    Definition(
        "gpu_ecc_errors",
        "gauge",
        "errors",
        ("device",),
        "Uncorrected memory errors since the driver was loaded.",
        ("ORCH-3053",),
        False,
    ),
    Definition(
        "gpu_lost",
        "gauge",
        "bool",
        ("device",),
        "1 while the GPU does not answer.",
        ("ORCH-3053",),
        False,
    ),
    Definition(
        "pool_managers_registered",
        "gauge",
        "managers",
        (),
        "Pool managers with a living lease.",
        ("OC-POOL-3003",),
        False,
    ),
    Definition(
        "model_store_bytes",
        "gauge",
        "bytes",
        (),
        "Size of the model files in the store.",
        ("ORCH-3042",),
        False,
    ),
    Definition(
        "host_ram_used_bytes",
        "gauge",
        "bytes",
        (),
        "Memory of the host in use.",
        ("ORCH-3028", "OC-POOL-3030"),
        False,
    ),
    Definition(
        "cpu_carve_out",
        "gauge",
        "bool",
        (),
        "1 where workers may run without a GPU, which is for demos and CI only.",
        ("ORCH-1101",),
        False,
    ),
    Definition(
        "journal_commits_total",
        "counter",
        "commits",
        (),
        "Group commits of the journal.",
        ("ORCH-3203",),
        False,
    ),
    Definition(
        "journal_commit_ms",
        "histogram",
        "ms",
        (),
        "From the first append of a group to its being durable.",
        ("ORCH-3203",),
        False,
    ),
    Definition(
        "journal_failing",
        "gauge",
        "bool",
        (),
        "1 while the journal cannot commit; then no task is admitted.",
        ("ORCH-3203",),
        False,
    ),
    Definition(
        "journal_bytes", "gauge", "bytes", (), "Size of the journal on disk.", ("ORCH-3203",), False
    ),
    Definition(
        "http_requests_total",
        "counter",
        "requests",
        ("operation", "status"),
        'Answers by operation of the contract and status; other paths count as operation "none".',
        ("OC-CTRL-2051",),
        False,
    ),
    Definition(
        "errors_total",
        "counter",
        "errors",
        ("code",),
        "Error envelopes and error events by code.",
        ("ORCH-2006", "OC-CTRL-2051"),
        False,
    ),
    Definition(
        "build_info",
        "gauge",
        "info",
        ("version",),
        "Always 1; the version is in the label.",
        ("ORCH-3044",),
        False,
    ),
)
