"""Drain, cordon and resume: taking pools and replicas out of service without losing a task.

Beside a task's path: an operator's order, or a rollout's. A cordoned replica gets no new work. A
drained one (or a drained pool) finishes what runs, until it is idle or the deadline is over; then
its tasks go on elsewhere or end, and its engine stops. Invariants: a replica leaves the core's
sight before its tasks are told, and its engine stops after both; the end of a drain is one step of
the event loop, so that a resume comes before it or after it. Requirements: ORCH-2101, ORCH-3031,
OC-CTRL-2002.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from orchestrator_core.events import Evacuated, PoolDraining
from orchestratord.services.replicas import Key, ReplicaDirectory
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.telemetry import Telemetry

log = structlog.get_logger("orchestratord.drains")

# How often a drain looks whether it is over. Drains are rare and take seconds; tasks are not to pay
# for somebody who might be waiting for their end.
LOOK_S = 0.05
# From SIGTERM to SIGKILL for an engine that has nothing to do any more.
STOP_GRACE_S = 5.0


class Engines(Protocol):
    """The pool host, as far as drains and rollouts give it orders; see `PoolHost`."""

    def replica_ids(self, pool_id: str) -> tuple[str, ...]: ...

    def launch_count(self, pool_id: str) -> int: ...

    def has_external(self, pool_id: str) -> bool: ...

    def launch_model(self, pool_id: str, model: str, replica_ids: Sequence[str]) -> None: ...

    def drain_replica(self, pool_id: str, replica_id: str) -> bool: ...

    def lift_replica(self, pool_id: str, replica_id: str) -> bool: ...

    def stop_replica(
        self, pool_id: str, replica_id: str, grace_s: float, message: str
    ) -> Awaitable[None]: ...

    def start_replica(self, pool_id: str, replica_id: str) -> None: ...

    def remove_replica(self, pool_id: str, replica_id: str, grace_s: float) -> Awaitable[None]: ...


class Conflict(Exception):
    """The pool is not in a state for this order; the message says what to do instead."""


class UnknownTarget(Exception):
    """No such pool, or no such replica in it; the message names the field."""


@dataclass(slots=True, eq=False)
class _Drain:
    """One order. `outcome` is None while it goes on."""

    pool_id: str
    replica_id: str | None
    deadline_s: float  # on the loop's clock
    outcome: str | None = None
    hurry: asyncio.Event = field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None


class DrainService:
    """Owns all drains; a pool has one, and so has each of its replicas, until it is resumed."""

    def __init__(
        self,
        scheduling: SchedulingService,
        replicas: ReplicaDirectory,
        engines: Engines,
        telemetry: Telemetry,
    ) -> None:
        self._scheduling = scheduling
        self._replicas = replicas
        self._engines = engines
        self._telemetry = telemetry
        self._drains: dict[tuple[str, str | None], _Drain] = {}
        # Replicas on their way out for good: no order of an operator concerns them any more.
        self._retiring: set[Key] = set()
        self._discards: set[asyncio.Task[None]] = set()
        # Pools that a change of the configuration has in hand: no order of an operator concerns
        # them before it is over.
        self._held: set[str] = set()

    # --- an operator's orders ----------------------------------------------------------------

    def drain(self, pool_id: str, deadline_ms: int, replica_id: str | None = None) -> None:
        """Finish what runs within `deadline_ms` from now, take no more. Of a drain that goes on
        already the deadline moves. Raises `UnknownTarget`, and `Conflict` for a pool that is
        held."""
        names = self._targets(pool_id, replica_id)
        deadline_s = asyncio.get_running_loop().time() + deadline_ms / 1000
        if (known := self._drains.get((pool_id, replica_id))) is not None:
            known.deadline_s = deadline_s
            known.hurry.set()
            return
        self._begin(_Drain(pool_id, replica_id, deadline_s), names)

    def cordon(self, pool_id: str, replica_id: str | None = None) -> None:
        """Give the replica, or all of the pool, no new work. Raises as `drain`."""
        for name in self._targets(pool_id, replica_id):
            self._replicas.cordon(pool_id, name, True)

    def resume(self, pool_id: str, replica_id: str | None = None) -> None:
        """Lift a cordon or a drain; what a drain has stopped starts again. Raises as `drain`."""
        names = self._targets(pool_id, replica_id)
        whole = self._drains.get((pool_id, None))
        if whole is not None:
            for name in self._members(pool_id):
                if name not in names:  # the others stay drained, each for itself
                    self._stay_drained(whole, name)
            self._lift(whole)
            self._scheduling.step(PoolDraining(pool_id, draining=False))
        host_id = self._replicas.host_of(pool_id)
        for name in names:
            if (single := self._drains.get((pool_id, name))) is not None:
                self._lift(single)
            self._engines.lift_replica(host_id, name)
            self._engines.start_replica(host_id, name)
            self._replicas.cordon(pool_id, name, False)

    def is_draining(self, pool_id: str) -> bool:
        """Whether the whole pool drains, or is drained and was not resumed."""
        return (pool_id, None) in self._drains

    def hold(self, pool_id: str) -> None:
        """A change of the configuration has the pool in hand, until `release`."""
        self._held.add(pool_id)

    def release(self, pool_id: str) -> None:
        """Orders concern the pool again."""
        self._held.discard(pool_id)

    def check_free(self, pool_id: str) -> None:
        """Raises `Conflict` for a pool that a change of the configuration has in hand."""
        if pool_id in self._held:
            raise Conflict(
                f"pool {pool_id}: a change of the configuration is under way there; "
                "its health shows when it is over"
            )

    # --- a rollout's orders ------------------------------------------------------------------

    async def retire(
        self,
        pool_id: str,
        names: Sequence[str],
        deadline_ms: int,
        *,
        whole_pool: bool = False,
        for_good: bool = False,
    ) -> str:
        """Drain these replicas for good: cordon them at once, and remove them when they are idle or
        the deadline is over; returns which (idle or deadline). Cancelling it before leaves them
        draining (`reinstate`). `whole_pool`: with everything that waits for them; `for_good`: and
        that is not waited for, since nothing will serve it."""
        deadline_s = asyncio.get_running_loop().time() + deadline_ms / 1000
        host_id = self._replicas.host_of(pool_id)
        for name in names:
            self._retiring.add((host_id, name))
            self._replicas.cordon(pool_id, name, True)
            self._engines.drain_replica(host_id, name)
        drain = _Drain(pool_id, None, deadline_s)
        outcome = await self._wait(drain, None if whole_pool and not for_good else names)
        self._replicas.withdraw(pool_id, names)
        self._scheduling.step(Evacuated(pool_id, () if whole_pool else tuple(names)))
        await self.discard(host_id, names)
        return outcome

    def reinstate(self, pool_id: str, names: Sequence[str]) -> None:
        """Replicas whose retirement or pause was cancelled, or is over, are as before it."""
        host_id = self._replicas.host_of(pool_id)
        for name in names:
            self._retiring.discard((host_id, name))
            self._engines.lift_replica(host_id, name)
            self._engines.start_replica(host_id, name)
            self._replicas.cordon(pool_id, name, False)

    async def pause(self, pool_id: str, names: Sequence[str], deadline_ms: int, why: str) -> None:
        """Drain these replicas and stop them; `reinstate` starts them again."""
        deadline_s = asyncio.get_running_loop().time() + deadline_ms / 1000
        host_id = self._replicas.host_of(pool_id)
        for name in names:
            self._replicas.cordon(pool_id, name, True)
            self._engines.drain_replica(host_id, name)
        await self._wait(_Drain(pool_id, None, deadline_s), names)
        self._replicas.withdraw(pool_id, names)
        self._scheduling.step(Evacuated(pool_id, tuple(names)))
        stops = [self._engines.stop_replica(host_id, n, STOP_GRACE_S, why) for n in names]
        await asyncio.gather(*stops)

    def discard(self, host_id: str, names: Sequence[str]) -> Awaitable[None]:
        """Remove these replicas, and what was said of them. What is returned is done when nothing
        is left; it goes on when nobody waits any more."""
        work = asyncio.create_task(self._discard(host_id, names), name=f"removal in {host_id}")
        work.add_done_callback(_report_defect)
        self._discards.add(work)
        work.add_done_callback(self._discards.discard)
        return asyncio.shield(work)

    async def _discard(self, host_id: str, names: Sequence[str]) -> None:
        removals = [self._engines.remove_replica(host_id, name, STOP_GRACE_S) for name in names]
        try:
            await asyncio.gather(*removals)
        finally:
            for name in names:
                self._retiring.discard((host_id, name))
                single = self._drains.pop((self._replicas.home(host_id, name), name), None)
                if single is not None and single.work is not None:
                    single.work.cancel()
                self._replicas.forget(host_id, name)

    def members(self, pool_id: str) -> tuple[str, ...]:
        """The replicas that work in the pool, and are not about to leave it."""
        return self._members(pool_id)

    async def close(self) -> None:
        """The service stops: no drain goes on."""
        works = [drain.work for drain in self._drains.values() if drain.work is not None]
        works += self._discards
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    # --- one drain ---------------------------------------------------------------------------

    def _begin(self, drain: _Drain, names: Sequence[str]) -> None:
        self._drains[drain.pool_id, drain.replica_id] = drain
        log.info("drain.started", **_about(drain))
        host_id = self._replicas.host_of(drain.pool_id)
        for name in names:
            self._engines.drain_replica(host_id, name)
        if drain.replica_id is None:
            self._scheduling.step(PoolDraining(drain.pool_id))
        else:
            self._replicas.cordon(drain.pool_id, drain.replica_id, True)
        drain.work = asyncio.create_task(self._run(drain), name=f"drain {drain.pool_id}")
        drain.work.add_done_callback(_report_defect)

    async def _run(self, drain: _Drain) -> None:
        whole = drain.replica_id is None
        outcome = await self._wait(drain, None if whole else (drain.replica_id or "",))
        names = self._members(drain.pool_id) if drain.replica_id is None else (drain.replica_id,)
        self._replicas.withdraw(drain.pool_id, names)
        self._scheduling.step(Evacuated(drain.pool_id, () if whole else names))
        host_id = self._replicas.host_of(drain.pool_id)
        message = "the pool was drained" if whole else "the replica was drained"
        stops = [self._engines.stop_replica(host_id, n, STOP_GRACE_S, message) for n in names]
        drain.outcome = outcome
        self._telemetry.drained(self._replicas.pools[drain.pool_id].spec, outcome)
        log.info("drain.ended", outcome=outcome, **_about(drain))
        await asyncio.gather(*stops)

    async def _wait(self, drain: _Drain, names: Sequence[str] | None) -> str:
        """Until nothing runs on these replicas (None: nor waits in the pool), or the deadline."""
        loop = asyncio.get_running_loop()
        scheduler = self._scheduling.scheduler
        while True:
            idle = (
                scheduler.is_empty(drain.pool_id)
                if names is None
                else not any(scheduler.leased(drain.pool_id, name) for name in names)
            )
            left_s = drain.deadline_s - loop.time()
            if idle or left_s <= 0:
                return "idle" if idle else "deadline"
            drain.hurry.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, LOOK_S)):
                    await drain.hurry.wait()

    def _stay_drained(self, whole: _Drain, name: str) -> None:
        if (whole.pool_id, name) in self._drains:
            return
        single = _Drain(whole.pool_id, name, whole.deadline_s, whole.outcome)
        if whole.outcome is None:
            self._begin(single, (name,))
        else:
            self._drains[whole.pool_id, name] = single
            self._replicas.cordon(whole.pool_id, name, True)

    def _lift(self, drain: _Drain) -> None:
        del self._drains[drain.pool_id, drain.replica_id]
        if drain.outcome is None:
            drain.outcome = "lifted"
            if drain.work is not None:
                drain.work.cancel()
            self._telemetry.drained(self._replicas.pools[drain.pool_id].spec, "lifted")
        log.info("drain.lifted", **_about(drain))

    def _members(self, pool_id: str) -> tuple[str, ...]:
        host_id = self._replicas.host_of(pool_id)
        return tuple(
            name
            for name in self._engines.replica_ids(host_id)
            if self._replicas.home(host_id, name) == pool_id
            and not self._replicas.is_hidden(host_id, name)
            and (host_id, name) not in self._retiring
        )

    def _targets(self, pool_id: str, replica_id: str | None) -> tuple[str, ...]:
        if pool_id not in self._replicas.pools:
            raise UnknownTarget("id: no such pool")
        self.check_free(pool_id)
        members = self._members(pool_id)
        if replica_id is None:
            return members
        if replica_id not in members:
            raise UnknownTarget(f"replica_id: pool {pool_id} has no replica {replica_id!r}")
        return (replica_id,)


def _about(drain: _Drain) -> dict[str, str | int | None]:
    left_s = drain.deadline_s - asyncio.get_running_loop().time()
    return {
        "pool_id": drain.pool_id,
        "replica_id": drain.replica_id,
        "deadline_ms": max(0, round(left_s * 1000)),
    }


def _report_defect(work: asyncio.Task[None]) -> None:
    if not work.cancelled() and (error := work.exception()) is not None:
        log.error("drain.failed", work=work.get_name(), exc_info=error)
