"""Metrics and log lines of a task's life, with their children bound once per replica.

On the token path only `TokenCounter`: one bound counter increment per read. Everything else is per
task. Names, labels and budgets are the metrics contract's; the fields of a task's log line are
those of ORCH-3027. Requirements: ORCH-3028, ORCH-3029, OC-CTRL-2050, OC-CTRL-2051, OC-CORE-1040.

Above 400 lines because it is the one place where metrics get their values: most of it is one short
method an event, which share the registry and what is known of each pool.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import structlog
from prometheus_client import CollectorRegistry, Gauge, generate_latest

from orch_metrics.definitions import OrchMetrics
from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.pool import PoolSpec
from orchestrator_core.queueing.share import Flow, ShareView
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Priority
from orchestratord.services.decisions import Decision, Ended
from orchestratord.services.jobs import Job
from orchestratord.services.tallies import Tallies
from orchestratord.services.task_lines import TaskLines, to_structlog
from worker_adapters.adapter_api.types import DecodeEnd

if TYPE_CHECKING:
    from orchestratord.services.replicas import Replica
    from orchestratord.services.slo import Measure

# A waiting task that had to go for another one counts as rejected too.
_EVICTIONS = frozenset({Reason.DROPPED_LRU, Reason.SHED, Reason.PREEMPTED})

# Counted from 0 on: to Prometheus a series that begins with its first event has not increased.
_FAILOVERS = ("resumed", "mismatch", "lost", "drained")
_OUT_OF_MEMORY = ("vram", "host-ram")
_DEVICE_ERRORS = ("cuda-error", "xid", "ecc", "gpu-lost", "reset")

_METERED_STATES = ("Preloading", "SelfTest", "Ready", "Draining", "Unready", "Backoff", "Broken")

log = structlog.get_logger("orchestratord.tasks")

TokenCounter = Callable[[int], None]


class _ReplicaMeters:
    """Bound children of one replica; bound when it becomes Ready, used by every task on it."""

    __slots__ = ("decode_ms", "first_token_ms", "started", "tokens_in", "tokens_out")

    def __init__(self, metrics: OrchMetrics, tallies: Tallies, replica: Replica) -> None:
        version, engine = replica.properties.engine_version, replica.set_key.engine
        where = {"engine": engine, "engine_version": version, "pool_id": replica.pool_id}
        whole = {**where, "replica_id": replica.id}
        count, sample = tallies.counter, tallies.histogram
        self.tokens_in = count(metrics.tokens_in_total.labels(**whole)).add
        self.tokens_out = count(metrics.tokens_out_total.labels(**whole)).add
        self.started = {
            p: count(metrics.tasks_started_total.labels(**whole, priority=p.value)).add
            for p in Priority
        }
        self.first_token_ms = {
            p: sample(metrics.latency_first_token_ms.labels(**where, priority=p.value)).observe
            for p in Priority
        }
        self.decode_ms = {
            p: sample(metrics.latency_decode_ms.labels(**where, priority=p.value)).observe
            for p in Priority
        }


class _PoolMeters:
    """Bound children of one pool, engine version and priority: what happens once per task."""

    __slots__ = ("completed", "enqueued", "queue_ms")

    def __init__(self, metrics: OrchMetrics, tallies: Tallies, job: Job, version: str) -> None:
        task = job.task
        engine, priority = task.engine, task.priority.value
        where = {"engine": engine, "engine_version": version, "pool_id": job.pool_id}
        self.enqueued = tallies.counter(
            metrics.tasks_enqueued_total.labels(**where, replica_id="", priority=priority)
        ).add
        self.queue_ms = tallies.histogram(
            metrics.latency_queue_ms.labels(**where, priority=priority)
        ).observe
        self.completed = tallies.counter(
            metrics.tasks_finished_total.labels(
                engine=engine, pool_id=job.pool_id, priority=priority, outcome="completed"
            )
        ).add


class Telemetry:
    def __init__(self, write_line: Callable[[bytes], None] = to_structlog) -> None:
        """`write_line` takes the lines of tasks' decisions, each a JSON object."""
        self._lines = TaskLines(write_line)
        self.registry = CollectorRegistry()
        self.metrics = OrchMetrics(self.registry)
        self._tallies = Tallies()
        self._meters: dict[tuple[str, str, str], _ReplicaMeters] = {}
        self._deadlines: dict[Priority, tuple[int, int]] = dict.fromkeys(Priority, (0, 0))
        self._pool_meters: dict[tuple[str, str, Priority], _PoolMeters] = {}
        self._tenant_weights: dict[str, dict[str, int]] = {}
        self._shares: dict[Flow, Gauge] = {}
        self._versions: dict[str, str] = {}  # of the engine that a pool had last
        self._judged: dict[tuple[str, Priority, str], tuple[TokenCounter, TokenCounter]] = {}
        self._http: dict[tuple[str, int], TokenCounter] = {}
        self.journal_bytes: Callable[[], int] = lambda: 0

    # --- a task's life -----------------------------------------------------------------------

    def decided(self, job: Job, decision: Decision) -> None:
        """One line a decision, with what it was taken from (ORCH-3027)."""
        self._lines.decided(job, decision)

    def enqueued(self, job: Job) -> None:
        """Its promise is on disk: what the journal refuses counts as refused alone."""
        self._of_pool(job).enqueued(1)

    def rejected(self, engine: str, refusal: Refusal, fields: Mapping[str, object]) -> None:
        """Refused at admission; `fields` say which task of whom."""
        self.metrics.tasks_rejected_total.labels(engine=engine, reason=refusal.reason.value).inc()
        self.metrics.errors_total.labels(code=refusal.code.value).inc()
        if refusal.policy_label is not None:
            self.metrics.admission_backpressure_events_total.labels(
                engine=engine, policy=refusal.policy_label
            ).inc()
        log.info(
            "task.rejected",
            **{**dict(refusal.figures), **fields},
            engine=engine,
            pool_id=refusal.pool_id,
            code=refusal.code.value,
            reason=refusal.reason.value,
            retry_after_ms=refusal.retry_after_ms,
            cause=refusal.message,
        )

    def started(self, job: Job, replica: Replica) -> None:
        """A decode begins; after a failover it counts again, its wait does not."""
        task = job.task
        self._of(replica).started[task.priority](1)
        if job.attempts > 1:
            return
        self._of_pool(job).queue_ms(max(0, job.first_dispatch_ms - task.arrived_ms))

    def first_token(self, job: Job, replica: Replica) -> None:
        waited_ms = max(0, job.first_token_ms - job.task.arrived_ms)
        self._of(replica).first_token_ms[job.task.priority](waited_ms)

    def token_counter(self, replica: Replica) -> TokenCounter:
        """`inc(n)` of this replica's `tokens_out_total`."""
        return self._of(replica).tokens_out

    def finished(self, job: Job, replica: Replica, end: DecodeEnd) -> None:
        meters = self._of(replica)
        meters.tokens_in(end.tokens_in)
        meters.decode_ms[job.task.priority](end.decode_ms)

    def canceled(self, job: Job, reason: Reason) -> None:
        self.metrics.tasks_canceled_total.labels(
            engine=job.task.engine,
            engine_version=self._version(job),
            pool_id=job.pool_id,
            replica_id=job.replica_id,
            reason=reason.value,
        ).inc()

    def failed(self, job: Job, refusal: Refusal) -> None:
        """A typed error ends its stream."""
        self.metrics.errors_total.labels(code=refusal.code.value).inc()
        if refusal.reason in _EVICTIONS:
            self.metrics.tasks_rejected_total.labels(
                engine=job.task.engine, reason=refusal.reason.value
            ).inc()
        if job.made_way:
            self.preempted(job, "soft")

    def preempted(self, job: Job, mode: str) -> None:
        """It made way for a more urgent task: `soft` while it waited, `hard` while it ran."""
        self.metrics.preemptions_total.labels(mode=mode, engine=job.task.engine).inc()

    def resumed(self, job: Job) -> None:
        """An interrupted task runs again."""
        self.metrics.resumptions_total.labels(engine=job.task.engine).inc()

    def ended(self, job: Job, decision: Ended) -> None:
        """Its terminal event was decided: the one line that tells its whole story (ORCH-3027)."""
        task, outcome = job.task, decision.outcome
        if outcome == "completed":
            self._of_pool(job).completed(1)
        else:
            self.metrics.tasks_finished_total.labels(
                engine=task.engine,
                pool_id=job.pool_id,
                priority=task.priority.value,
                outcome=outcome,
            ).inc()
        on_time = outcome == "completed" and job.ended_ms <= task.deadline_at_ms
        if outcome != "canceled":
            met, all_ended = self._deadlines[task.priority]
            self._deadlines[task.priority] = (met + on_time, all_ended + 1)
        self._lines.ended(job, decision, on_time)

    def failover(self, job: Job, outcome: str) -> None:
        """`resumed` elsewhere, `lost` with WORKER_RESET, or a `mismatch` of bytes."""
        self.metrics.failovers_total.labels(
            engine=job.task.engine, pool_id=job.pool_id, outcome=outcome
        ).inc()

    def recovered(self, job: Job, recovery_ms: float) -> None:
        """A stream goes on, so long after its worker was lost."""
        self.metrics.failover_recovery_ms.labels(
            engine=job.task.engine, pool_id=job.pool_id
        ).observe(recovery_ms)
        log.info(
            "task.failed_over",
            **self.log_fields(job),
            recovery_ms=round(recovery_ms, 1),
            tokens_out=job.log.tokens,
            failovers=job.failovers,
        )

    def log_fields(self, job: Job) -> dict[str, Any]:
        """The fields of ORCH-3027 and ORCH-3094 that hold at any time of a task's life."""
        return self._lines.fields(job)

    # --- replicas and pools ------------------------------------------------------------------

    def pool_added(self, spec: PoolSpec, fields: dict[str, Any]) -> None:
        """What every log line of the pool's tasks carries: quant, ctx, tensor_split, weight; in
        place of what was said of it before."""
        self._lines.pool_added(spec, fields)
        self._tenant_weights[spec.id] = {tenant.id: tenant.weight for tenant in spec.tenants}
        metrics, of = self.metrics, {"engine": spec.engine, "pool_id": spec.id}
        metrics.failover_recovery_ms.labels(**of)
        for outcome in _FAILOVERS:
            metrics.failovers_total.labels(**of, outcome=outcome)
        for reason in _OUT_OF_MEMORY:
            metrics.oom_events_total.labels(**of, reason=reason)
        for reason in _DEVICE_ERRORS:
            metrics.driver_reset_events_total.labels(**of, reason=reason)

    def weights(self, pool_id: str, priority: Priority, tenant: str) -> tuple[int | None, int]:
        """Of the class in the pool, where it has been told of it, and of the tenant (default 1)."""
        weight = self._lines.weight(pool_id, priority)
        return weight, self._tenant_weights.get(pool_id, {}).get(tenant, 1)

    def pool_like(self, spec: PoolSpec, other_id: str) -> None:
        """Another pool, with the fields of a known one."""
        self.pool_added(spec, self._lines.pool_fields(other_id))

    def pool_removed(self, pool_id: str) -> None:
        """Nothing said of the pool holds any more; what was counted stays."""
        self._lines.pool_removed(pool_id)
        self._tenant_weights.pop(pool_id, None)
        self._versions.pop(pool_id, None)

    def replica_ready(self, replica: Replica) -> None:
        self._of(replica)
        self._versions[replica.pool_id] = replica.properties.engine_version
        self.metrics.replica_ready.labels(
            engine=replica.set_key.engine,
            engine_version=replica.properties.engine_version,
            pool_id=replica.pool_id,
            replica_id=replica.id,
        ).set(1)

    def kv_usage(self, replica: Replica, usage_ratio: float) -> None:
        """How much of its KV a replica has in use, 0..1."""
        self.metrics.kv_cache_usage_ratio.labels(
            engine=replica.set_key.engine,
            engine_version=replica.properties.engine_version,
            pool_id=replica.pool_id,
            replica_id=replica.id,
        ).set(usage_ratio)

    def replica_lost(self, replica: Replica) -> None:
        self.metrics.replica_ready.labels(
            engine=replica.set_key.engine,
            engine_version=replica.properties.engine_version,
            pool_id=replica.pool_id,
            replica_id=replica.id,
        ).set(0)
        self.kv_usage(replica, 0.0)  # it is gone with the process

    def preload(self, spec: PoolSpec, ok: bool) -> None:
        self.metrics.preload_outcomes_total.labels(
            engine=spec.engine, pool_id=spec.id, outcome="ready" if ok else "failed"
        ).inc()

    def restarted(self, spec: PoolSpec, replica_id: str, times: int = 1) -> None:
        self.metrics.replica_restarts_total.labels(
            engine=spec.engine, pool_id=spec.id, replica_id=replica_id
        ).inc(times)

    def replica_state(self, spec: PoolSpec, replica_id: str, state: str) -> None:
        """1 for the state it is in; a replica whose engine nobody wants to run (Unloaded, Stopped)
        is in none of them: the label's budget holds seven states and `other`."""
        self.metrics.replica_restarts_total.labels(
            engine=spec.engine, pool_id=spec.id, replica_id=replica_id
        )
        for known in _METERED_STATES:
            self.metrics.replica_state.labels(
                engine=spec.engine, pool_id=spec.id, replica_id=replica_id, state=known
            ).set(known == state)

    def self_tested(self, spec: PoolSpec, ok: bool) -> None:
        self.metrics.self_tests_total.labels(
            engine=spec.engine, pool_id=spec.id, outcome="passed" if ok else "failed"
        ).inc()

    def out_of_memory(self, spec: PoolSpec, memory: str) -> None:
        self.metrics.oom_events_total.labels(
            engine=spec.engine, pool_id=spec.id, reason=memory
        ).inc()

    def drained(self, spec: PoolSpec, outcome: str) -> None:
        """A drain of a pool or a replica ended: idle, deadline or lifted."""
        self.metrics.drains_total.labels(engine=spec.engine, pool_id=spec.id, outcome=outcome).inc()

    def reloaded(self, spec: PoolSpec, outcome: str) -> None:
        """A reload of a pool went on: switched, canary, promoted, rolled-back or failed."""
        self.metrics.reloads_total.labels(
            engine=spec.engine, pool_id=spec.id, outcome=outcome
        ).inc()

    def device_error(self, spec: PoolSpec, fault: str) -> None:
        self.metrics.driver_reset_events_total.labels(
            engine=spec.engine, pool_id=spec.id, reason=fault
        ).inc()

    def pool_gauges(
        self,
        scheduler: Scheduler,
        pools: Iterable[tuple[PoolSpec, Sequence[Replica], Sequence[Job]]],
    ) -> None:
        """Depth, slots and running jobs of all pools there are, read when somebody scrapes; of
        pools and replicas that are gone nothing is exposed."""
        metrics = self.metrics
        metrics.queue_depth.clear()
        metrics.tasks_running.clear()
        metrics.slots.clear()
        metrics.slots_busy.clear()
        for spec, replicas, jobs in pools:
            self._pool_gauges(scheduler, spec, replicas, jobs)

    def _pool_gauges(
        self,
        scheduler: Scheduler,
        spec: PoolSpec,
        replicas: Sequence[Replica],
        jobs: Sequence[Job],
    ) -> None:
        version = replicas[0].properties.engine_version if replicas else ""
        where = {"engine": spec.engine, "engine_version": version, "pool_id": spec.id}
        for priority in Priority:
            self.metrics.queue_depth.labels(**where, priority=priority.value).set(
                scheduler.queue_depth(spec.id, priority)
            )
        running = dict.fromkeys(Priority, 0)
        for job in jobs:
            running[job.task.priority] += 1
        for priority, count in running.items():
            self.metrics.tasks_running.labels(
                engine=spec.engine, pool_id=spec.id, priority=priority.value
            ).set(count)
        for replica in replicas:
            of = {"engine": spec.engine, "pool_id": spec.id, "replica_id": replica.id}
            self.metrics.slots.labels(**of).set(replica.properties.slots_total)
            self.metrics.slots_busy.labels(**of).set(scheduler.leased(spec.id, replica.id))

    def slo_gauges(
        self, pools: Iterable[tuple[PoolSpec, Sequence[Measure], Collection[Priority]]]
    ) -> None:
        """Of each pool what was measured for its objectives, and which priorities it refuses; what
        is not known any more is not exposed."""
        self.metrics.slo_value.clear()
        self.metrics.slo_attainment_ratio.clear()
        self.metrics.admission_breaker_open.clear()
        for spec, measures, refused in pools:
            where = {"engine": spec.engine, "pool_id": spec.id}
            for measure in measures:
                of = {**where, "priority": measure.objective.priority.value}
                of["objective"] = measure.objective.name
                self.metrics.slo_value.labels(**of).set(measure.value)
                if measure.met_ratio is not None:
                    self.metrics.slo_attainment_ratio.labels(**of).set(measure.met_ratio)
            for priority in Priority:
                self.metrics.admission_breaker_open.labels(**where, priority=priority.value).set(
                    priority in refused
                )

    def slo_judged(self, job: Job, objective: str, met: bool) -> None:
        """A task was measured for an objective of its pool and priority."""
        priority = job.task.priority
        key = (job.pool_id, priority, objective)
        counters = self._judged.get(key)
        if counters is None:
            of = {"engine": job.task.engine, "pool_id": job.pool_id, "priority": priority.value}
            missed_child, met_child = (
                self.metrics.slo_tasks_total.labels(**of, objective=objective, result=result)
                for result in ("missed", "met")
            )
            count = self._tallies.counter
            counters = self._judged[key] = count(missed_child).add, count(met_child).add
        counters[met](1)

    def share_gauges(self, shares: Mapping[Flow, ShareView]) -> None:
        """What every flow got lately; the rest, beyond the budget of tenants, adds up in `other`.

        Tenants get their own label in the order of their shares, so that the large ones have one.
        """
        for gauge in self._shares.values():
            gauge.set(0.0)
        largest = sorted(shares.items(), key=lambda item: item[1].observed, reverse=True)
        bound: dict[Flow, Gauge] = {}
        for (tenant, priority), share in largest:
            if not share.observed:
                break  # neither it nor those after it have got anything
            gauge = self._shares.get((tenant, priority)) or self.metrics.admission_share.labels(
                tenant=tenant, priority=priority.value
            )
            gauge.inc(share.observed)
            bound[tenant, priority] = gauge
        self._shares = bound

    def _of(self, replica: Replica) -> _ReplicaMeters:
        key = (replica.pool_id, replica.id, replica.properties.engine_version)
        meters = self._meters.get(key)
        if meters is None:
            meters = self._meters[key] = _ReplicaMeters(self.metrics, self._tallies, replica)
        return meters

    def _of_pool(self, job: Job) -> _PoolMeters:
        key = (job.pool_id, version := self._version(job), job.task.priority)
        meters = self._pool_meters.get(key)
        if meters is None:
            meters = _PoolMeters(self.metrics, self._tallies, job, version)
            self._pool_meters[key] = meters
        return meters

    def _version(self, job: Job) -> str:
        """Of its engine; before it has one, of the engine that its pool had last."""
        return job.engine_version or self._versions.get(job.pool_id, "")

    def config_reloaded(self, outcome: str) -> None:
        """A hot reload: applied, unchanged, rejected or reverted."""
        self.metrics.config_reloads_total.labels(outcome=outcome).inc()

    # --- the process -------------------------------------------------------------------------

    def http_request(self, operation: str, status: int) -> None:
        key = (operation, status)
        inc = self._http.get(key)
        if inc is None:
            inc = self._http[key] = self._tallies.counter(
                self.metrics.http_requests_total.labels(operation=operation, status=str(status))
            ).add
        inc(1)

    def http_error(self, code: Code) -> None:
        self.metrics.errors_total.labels(code=code.value).inc()

    def deployment(self, version: str, cpu_carve_out: bool) -> None:
        self.metrics.build_info.labels(version=version).set(1)
        self.metrics.cpu_carve_out.set(cpu_carve_out)
        self.metrics.config_reloads_total.labels(outcome="rejected")

    def process_gauges(self, readers: int, retained_bytes: int, sessions: int) -> None:
        """What is read when somebody scrapes: streams, logs, sessions, memory of the host."""
        self.metrics.stream_readers.set(readers)
        self.metrics.log_bytes_retained.set(retained_bytes)
        self.metrics.sessions_open.set(sessions)
        for priority, (met, ended) in self._deadlines.items():
            if ended:
                self.metrics.deadlines_met_ratio.labels(priority=priority.value).set(met / ended)
        self.metrics.journal_bytes.set(self.journal_bytes())
        used_bytes = _host_ram_used_bytes()
        if used_bytes is not None:
            self.metrics.host_ram_used_bytes.set(used_bytes)

    def journal_commit(self, commit_ms: float) -> None:
        """A group of records became durable."""
        self.metrics.journal_commits_total.inc()
        self.metrics.journal_commit_ms.observe(commit_ms)

    def render(self) -> bytes:
        """The exposition text of every metric."""
        self._tallies.hand_over()
        text: bytes = generate_latest(self.registry)
        return text


def _host_ram_used_bytes() -> int | None:
    """Total less available memory; None where the kernel does not tell."""
    fields: dict[str, int] = {}
    try:
        with open("/proc/meminfo", encoding="ascii") as lines:
            for line in lines:
                name, _, rest = line.partition(":")
                if name in ("MemTotal", "MemAvailable"):
                    fields[name] = int(rest.split()[0]) * 1024
    except (OSError, ValueError):
        return None
    return fields.get("MemTotal", 0) - fields.get("MemAvailable", 0)
