"""The loop: SimPy's time, the product's scheduler, a model of the engines.

The whole of a simulated task's path: an arrival becomes `Submit`, a `Dispatch` becomes a time-out
of its service time, which becomes `Finished`; a `Tick` comes as often as the service's watchdog
sends one. The invariants: every decision is one of `orchestrator_core.Scheduler` and nothing else
decides anything; every arrival ends exactly once (refused, evicted, finished or aborted); the same
arrivals, seed and pools give the same outcome. Requirements: ORCH-3075, ORCH-3079, ORCH-3081.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from random import Random
from typing import assert_never, cast

from simpy import Environment, Event, Timeout

from orch_simulator.decision_cost import DecisionMeter
from orch_simulator.engine_model import EngineModel, ServiceTime
from orch_simulator.ledger import Ledger, Tally
from orch_simulator.outcome import Outcome
from orch_simulator.workload import Arrival
from orchestrator_core import events
from orchestrator_core.effects import (
    Admitted,
    Dispatch,
    Effect,
    Ended,
    Moved,
    Preempt,
    Rejected,
    SessionExpired,
    Stop,
)
from orchestrator_core.errors import InvariantViolation
from orchestrator_core.limits import Limits
from orchestrator_core.pool import PoolSpec, ReplicaSpec, SetKey
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Determinism, Task, Workload

# Any wall-clock instant: the core's integers shall be as large as they are in a real service.
START_MS = 1_800_000_000_000

# The period of the service's watchdog.
TICK_MS = 250

# Simulated tasks between two calls of `progress`.
_PROGRESS_TASKS = 1_000


@dataclass(frozen=True, slots=True)
class FleetPool:
    """One pool with its replicas, all Ready from the start.

    `wall_ms` is the pool's time-out of a running task; None is none.
    """

    spec: PoolSpec
    replicas: int
    slots_per_replica: int
    wall_ms: int | None = None


class _SimulatedTask:
    """An arrival until its end. `runs` counts its starts, so that the end of one that was stopped
    means nothing."""

    __slots__ = (
        "arrival", "at_admission", "at_start", "key", "pool_id", "predicted_ms", "resuming",
        "running", "runs", "service", "started_ms", "tally", "waiting",
    )  # fmt: skip

    def __init__(self, key: str, arrival: Arrival, service: ServiceTime, tally: Tally) -> None:
        self.key = key
        self.arrival = arrival
        self.service = service
        self.tally = tally
        self.pool_id = ""
        self.waiting = self.resuming = self.running = False
        self.runs = 0
        self.started_ms = 0
        self.predicted_ms = 0
        self.at_admission: float | None = None
        self.at_start: float | None = None


class Simulation:
    """One run over `arrivals`, which are drawn one by one and need not fit into memory.

    Args:
        random: draws service times, one pair an arrival.
        probe_every: of how many tasks one is asked for its `on_time_probability` (the answer's cost
            grows with the number of tenants); 0 asks none.
        meter: times decisions; None does not.
        progress: called with the number of tasks that have ended, now and then.
    """

    def __init__(
        self,
        pools: Sequence[FleetPool],
        arrivals: Iterable[Arrival],
        *,
        random: Random,
        engine: EngineModel | None = None,
        limits: Limits | None = None,
        probe_every: int = 1,
        meter: DecisionMeter | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> None:
        self.scheduler = Scheduler(limits)
        self._pools = {pool.spec.id: pool for pool in pools}
        self._first = pools[0].spec
        self._engines = {ref: p.spec.engine for p in pools for ref in sorted(p.spec.model_refs)}
        self._arrivals = arrivals
        self._random = random
        self._engine = engine or EngineModel()
        self._probe_every = probe_every
        self._meter = meter
        self._progress = progress
        self._environment = Environment()
        self._ledger = Ledger()
        self._tasks: dict[str, _SimulatedTask] = {}
        self._tenant_weights = {
            (pool.spec.id, tenant.id): tenant.weight
            for pool in pools
            for tenant in pool.spec.tenants
        }
        self._priority_weights = {
            (pool.spec.id, policy.name): policy.weight
            for pool in pools
            for policy in pool.spec.priorities
        }
        self._arrived = 0
        self._ended = 0
        self._steps = 0
        self._last_end_ms = 0
        self._all_arrived = False

    def run(self) -> Outcome:
        """Simulate until the last task has ended. A simulation runs once.

        Raises whatever reading the arrivals raises.
        """
        for pool in self._pools.values():
            self._step(events.PoolAdded(pool.spec))
            for replica in _replicas(pool):
                self._step(events.ReplicaReady(replica))
        self._environment.process(self._submit_all())
        self._environment.process(self._tick_until_done())
        try:
            self._environment.run()
        except OSError as copy:  # SimPy raises a copy, and only the original names the file
            raise copy.__cause__ or copy from None
        if self._tasks:
            raise InvariantViolation(f"{len(self._tasks)} tasks never ended")
        return self._ledger.outcome(
            simulated_ms=self._last_end_ms,
            steps=self._steps,
            slots=sum(pool.replicas * pool.slots_per_replica for pool in self._pools.values()),
            costs=() if self._meter is None else self._meter.rows(),
        )

    @property
    def _now_ms(self) -> int:
        return int(self._environment.now)  # only ever advanced by integers

    def _submit_all(self) -> Generator[Event, None, None]:
        environment = self._environment
        for arrival in self._arrivals:
            if (wait_ms := arrival.at_ms - self._now_ms) > 0:
                yield environment.timeout(wait_ms)
            self._submit(arrival)
        self._all_arrived = True

    def _tick_until_done(self) -> Generator[Event, None, None]:
        while self._tasks or not self._all_arrived:
            yield self._environment.timeout(TICK_MS)
            self._step(events.Tick())
            self._ledger.sample(self._now_ms)

    def _submit(self, arrival: Arrival) -> None:
        self._arrived += 1
        key = f"{arrival.tenant}/{self._arrived}"
        tokens_out = arrival.tokens_out
        service = self._engine.draw(self._random, arrival.prompt_tokens, tokens_out)
        tally = self._ledger.tally(arrival.tenant, arrival.priority)
        tally.arrived += 1
        task = self._tasks[key] = _SimulatedTask(key, arrival, service, tally)
        self._step(events.Submit(self._domain_task(key, arrival)))
        if self._probe_every and self._arrived % self._probe_every == 0 and key in self._tasks:
            now_ms = START_MS + self._now_ms
            task.at_admission = self.scheduler.on_time_probability(key, now_ms)
            if task.running:
                task.at_start = task.at_admission

    def _domain_task(self, key: str, arrival: Arrival) -> Task:
        arrived_ms = START_MS + self._now_ms
        model_ref = arrival.model_ref
        if model_ref is None:
            model_ref = min(self._first.model_refs)
        tokens = arrival.expected_tokens or arrival.max_tokens
        session = key if arrival.session is None else f"{arrival.tenant}/session/{arrival.session}"
        return Task(
            key=key,
            tenant=arrival.tenant,
            session_key=session,
            engine=self._engines.get(model_ref, self._first.engine),
            model_ref=model_ref,
            priority=arrival.priority,
            workload=Workload.COMPLETION,
            determinism=Determinism.STRICT,
            ctx=arrival.prompt_tokens + arrival.max_tokens,
            max_tokens=arrival.max_tokens,
            prompt_tokens=arrival.prompt_tokens,
            cost_tokens=arrival.prompt_tokens + tokens,
            arrived_ms=arrived_ms,
            deadline_at_ms=arrived_ms + arrival.deadline_ms,
            client_id=arrival.tenant,
        )

    def _step(self, event: events.Event) -> None:
        self._steps += 1
        now_ms = START_MS + self._now_ms
        if self._meter is None:
            effects = self.scheduler.step(event, now_ms)
        else:
            effects = self._meter.step(self.scheduler, event, now_ms, self._ledger.waiting)
        for effect in effects:
            self._apply(effect)

    def _apply(self, effect: Effect) -> None:
        match effect:
            case Dispatch():
                self._start(self._tasks[effect.task_key], effect)
            case Admitted():
                self._admit(self._tasks[effect.task_key], effect)
            case Rejected(task_key, refusal):
                self._tasks[task_key].tally.refused[refusal.reason.value] += 1
                self._forget(task_key)
            case Ended(task_key, refusal, _):
                task = self._tasks[task_key]
                task.tally.evicted["cancel" if refusal is None else refusal.reason.value] += 1
                self._judge(task, on_time=False)
                self._forget(task_key)
            case Stop(task_key):
                self._stop(self._tasks[task_key])
                self._forget(task_key)
            case Preempt(task_key):
                self._interrupt(self._tasks[task_key])
            case SessionExpired() | Moved():
                pass
            case _:
                assert_never(effect)

    def _admit(self, task: _SimulatedTask, promise: Admitted) -> None:
        arrival = task.arrival
        task.tally.admitted += 1
        task.pool_id = promise.pool_id
        task.predicted_ms = promise.predicted_start_ms
        task.waiting = True
        weights = (
            self._tenant_weights.get((promise.pool_id, arrival.tenant), 1),
            self._priority_weights.get((promise.pool_id, arrival.priority), 1),
        )
        self._ledger.wait(promise.pool_id, arrival.tenant, arrival.priority, weights)

    def _start(self, task: _SimulatedTask, dispatch: Dispatch) -> None:
        arrival, ledger, now_ms = task.arrival, self._ledger, self._now_ms
        if task.waiting:
            task.waiting = False
            tokens = arrival.prompt_tokens + (arrival.expected_tokens or arrival.max_tokens)
            ledger.serve(task.pool_id, arrival.tenant, arrival.priority, tokens)
            waited_ms = now_ms - arrival.at_ms
            task.tally.waits_ms.append(waited_ms)
            task.tally.start_errors_ms.append(abs(waited_ms - task.predicted_ms))
        else:
            task.resuming = False
            task.tally.resumptions += 1
            ledger.count_resuming(arrival.priority, -1)
        if task.at_admission is not None:  # one of those that are asked
            task.at_start = self.scheduler.on_time_probability(task.key, START_MS + now_ms)
        task.running = True
        task.runs += 1
        task.started_ms = now_ms
        ledger.running += 1
        lasts_ms, wall_ms = task.service.total_ms, self._pools[dispatch.pool_id].wall_ms
        if wall_ms is not None:
            lasts_ms = min(lasts_ms, wall_ms)
        over = Timeout(self._environment, lasts_ms, (task, task.runs))
        over.callbacks.append(self._end_run)  # a third of what a process costs

    def _end_run(self, over: Event) -> None:
        task, run = cast("tuple[_SimulatedTask, int]", over.value)
        if not task.running or task.runs != run:
            return  # it was stopped before
        ran_ms = self._now_ms - task.started_ms
        self._stop(task)
        arrival, service, tally = task.arrival, task.service, task.tally
        del self._tasks[task.key]
        self._count_end()
        on_time = self._now_ms <= arrival.at_ms + arrival.deadline_ms
        if ran_ms < service.total_ms:
            tokens_out = service.tokens_after(ran_ms, arrival.tokens_out)
            tally.aborted += 1
            self._judge(task, on_time=False)
            self._step(events.Aborted(task.key, tokens_out))
            return
        tally.finished += 1
        tally.on_time += on_time
        tally.tokens_in += arrival.prompt_tokens
        tally.tokens_out += arrival.tokens_out
        self._judge(task, on_time=on_time)
        self._step(
            events.Finished(
                task.key,
                tokens_in=arrival.prompt_tokens,
                tokens_out=arrival.tokens_out,
                prefill_ms=service.prefill_ms,
                decode_ms=service.decode_ms,
            )
        )

    def _stop(self, task: _SimulatedTask) -> None:
        task.running = False
        self._ledger.running -= 1
        self._ledger.busy_ms += self._now_ms - task.started_ms

    def _interrupt(self, task: _SimulatedTask) -> None:
        self._stop(task)
        task.resuming = True
        task.tally.preemptions += 1
        self._ledger.count_resuming(task.arrival.priority, +1)

    def _judge(self, task: _SimulatedTask, *, on_time: bool) -> None:
        if task.at_admission is not None:
            self._ledger.at_admission.add(task.at_admission, on_time)
        if task.at_start is not None:
            self._ledger.at_start.add(task.at_start, on_time)

    def _forget(self, key: str) -> None:
        task = self._tasks.pop(key)
        if task.waiting:
            self._ledger.leave(task.pool_id, task.arrival.tenant, task.arrival.priority)
        elif task.resuming:
            self._ledger.count_resuming(task.arrival.priority, -1)
        self._count_end()

    def _count_end(self) -> None:
        self._ended += 1
        self._last_end_ms = self._now_ms
        if self._progress is not None and self._ended % _PROGRESS_TASKS == 0:
            self._progress(self._ended)


def _replicas(pool: FleetPool) -> Iterable[ReplicaSpec]:
    spec = pool.spec
    key = SetKey(
        engine=spec.engine,
        model=min(spec.model_refs),
        quant=spec.quant,
        ctx=spec.ctx,
        engine_version="simulated",
        sampler_profile_version=spec.sampler_profile_version,
        model_digest="simulated",
    )
    digits = len(str(pool.replicas))
    for number in range(pool.replicas):
        yield ReplicaSpec(
            f"r{number:0{digits}}",
            spec.id,
            key,
            pool.slots_per_replica,
            ctx_max=spec.ctx,
            interruptible=True,
        )
