"""The circuit breakers of the pools, and what is said of objectives that are missed.

Off every task's path: once a second each pool's objectives are judged; a change is one log line,
and a pool whose breaker is on tells the core which priorities it refuses. Invariant: the core hears
of every change, and while something is refused again at each look, so that a refused client is told
when to come back as far as that is known now. Not kept over a restart: a breaker starts closed.
Requirements: ORCH-3040, ORCH-3041.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import structlog

from orchestrator_core.admission.circuit_breaker import PRIORITIES, CircuitBreaker, Shed
from orchestrator_core.events import Shedding
from orchestrator_core.task import Priority
from orchestratord.services.jobs import Job
from orchestratord.services.replicas import PoolTraits, ReplicaDirectory
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.slo import Measure, Objective, SloService

log = structlog.get_logger("orchestratord.slo")


class BreakerService:
    """Owns the breaker of every pool that has one."""

    def __init__(
        self,
        slo: SloService,
        scheduling: SchedulingService,
        replicas: ReplicaDirectory,
        monotonic: Callable[[], float],
    ) -> None:
        self._slo = slo
        self._scheduling = scheduling
        self._replicas = replicas
        self._monotonic = monotonic
        self._breakers: dict[str, CircuitBreaker] = {}
        self._violated: dict[str, list[Objective]] = {}
        self._causes: dict[str, str] = {}  # what a pool refuses for, as it was measured last

    def shed(self, pool_id: str) -> tuple[Priority, ...]:
        """The priorities that the pool refuses now."""
        breaker = self._breakers.get(pool_id)
        return () if breaker is None else breaker.shed

    def look(self, running: Iterable[Job]) -> None:
        """Measure, judge, act; `running` are the tasks that engines work at."""
        self._slo.look(running)
        pools = self._replicas.pools
        for gone in [pool_id for pool_id in self._violated if pool_id not in pools]:
            del self._violated[gone]
            self._breakers.pop(gone, None)
            self._causes.pop(gone, None)
        for pool_id, traits in pools.items():
            violated = self._slo.violated(pool_id)
            before, self._violated[pool_id] = self._violated.get(pool_id, []), violated
            if violated != before:
                self._tell_changes(traits, before, violated)
            self._drive(traits, violated)

    def _tell_changes(
        self, traits: PoolTraits, before: list[Objective], violated: list[Objective]
    ) -> None:
        measures = {measure.objective: measure for measure in self._slo.measures([traits.spec.id])}
        for of in violated:
            if of not in before:
                log.warning("slo.violated", **_fields(traits, of, measures.get(of)))
        for of in before:
            if of not in violated:
                log.info("slo.met", **_fields(traits, of, measures.get(of)))

    def _drive(self, traits: PoolTraits, violated: list[Objective]) -> None:
        pool_id, policy = traits.spec.id, traits.breaker
        breaker = self._breakers.get(pool_id)
        if policy is None:
            if breaker is not None:  # switched off by a reload
                del self._breakers[pool_id]
                self._causes.pop(pool_id, None)
                self._scheduling.step(Shedding(pool_id, ()))
            return
        if breaker is None or breaker.policy != policy:
            breaker = self._breakers[pool_id] = CircuitBreaker(policy)
            self._causes.pop(pool_id, None)
            self._scheduling.step(Shedding(pool_id, ()))
        before, now_ms = breaker.shed, int(self._monotonic() * 1000)
        changed = breaker.observe({of.priority for of in violated}, now_ms)
        if not changed and not breaker.shed:
            return
        # The lowest priority's own objectives open nothing.
        if causes := [of for of in violated if of.priority is not PRIORITIES[-1]]:
            self._causes[pool_id] = self._cause(pool_id, causes)
        cause = self._causes.get(pool_id, "")
        wall_ms = self._scheduling.clock_ms()
        shed = [
            Shed(priority, wall_ms + breaker.admits_in_ms(priority, now_ms), cause)
            for priority in breaker.shed
        ]
        self._scheduling.step(Shedding(pool_id, tuple(shed)))
        if not shed:
            self._causes.pop(pool_id, None)
        if changed:
            opened = len(breaker.shed) > len(before)
            (moved,) = set(breaker.shed) ^ set(before)
            log.warning(
                "breaker.opened" if opened else "breaker.closed",
                pool_id=pool_id,
                engine=traits.spec.engine,
                priority=moved.value,
                refused=[priority.value for priority in breaker.shed],
                cause=cause,
            )

    def _cause(self, pool_id: str, causes: list[Objective]) -> str:
        """The most urgent objective that is missed, as measured and as wanted."""
        first = min(causes, key=lambda of: PRIORITIES.index(of.priority))
        for measure in self._slo.measures([pool_id]):
            if measure.objective == first:
                return f"{first.key} is {measure.value:.4g}, its goal {first.goal:g}"
        return first.key


def _fields(traits: PoolTraits, of: Objective, measure: Measure | None) -> dict[str, object]:
    return {
        "pool_id": traits.spec.id,
        "engine": traits.spec.engine,
        "priority": of.priority.value,
        "objective": of.name,
        "goal": of.goal,
        "value": None if measure is None else round(measure.value, 4),
        "met_ratio": None if measure is None else _rounded(measure.met_ratio),
        "samples": 0 if measure is None else measure.samples,
    }


def _rounded(ratio: float | None) -> float | None:
    return None if ratio is None else round(ratio, 4)
