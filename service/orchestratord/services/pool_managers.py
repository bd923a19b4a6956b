"""Pool managers in processes of their own: leases, and what becomes of the engines they report.

Beside a task's path. A manager's report is its heartbeat: the full state each time, so a lost one
costs nothing. Its Ready replicas become replicas of their pools that somebody else runs, named
`MANAGER.REPLICA`; this service probes them like all others, so a dead engine is noticed without the
manager. Restarts and failures that a report tells of are counted in this service's metrics.
Invariants: only one start of a manager (`epoch`) holds its lease; nothing of a manager outlives its
lease by more than `LEAVE_MS`; a replica whose address changed is gone before the next one of its
name comes. Requirements: ORCH-3002, ORCH-3010, ORCH-2101, OC-POOL-3001, OC-POOL-3003, OC-POOL-3030.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import structlog

from orchestratord.services.drains import DrainService
from orchestratord.services.replicas import Key, ReplicaDirectory

log = structlog.get_logger("orchestratord.pool_managers")

# What runs on replicas that nobody looks after any more has so long to end; then it goes elsewhere.
LEAVE_MS = 10_000
# The same for a manager that says good-bye: it ends its engines when it wants to, or when they are
# idle.
GOODBYE_MS = 60_000
MANAGERS_MAX = 1024

_READY, _DRAINING = "Ready", "Draining"
# What the metrics contract counts of the codes of a `LastError`, and how it names them there.
MEMORY_KINDS = {"vram-oom": "vram", "host-oom": "host-ram"}
DEVICE_FAULTS = {
    "cuda-error": "cuda-error",
    "xid": "xid",
    "ecc": "ecc",
    "gpu-lost": "gpu-lost",
    "gpu-reset": "reset",
}


class Engines(Protocol):
    """The pool host, as far as managers' replicas need it; see `PoolHost`."""

    def replica_ids(self, pool_id: str) -> tuple[str, ...]: ...

    def add_external(
        self,
        pool_id: str,
        replica_id: str,
        url: str,
        model_digest: str | None,
        labels: Sequence[tuple[str, str]],
    ) -> None: ...

    def drain_replica(self, pool_id: str, replica_id: str) -> bool: ...

    def lift_replica(self, pool_id: str, replica_id: str) -> bool: ...


class RegistrationRefused(Exception):
    """The lease is somebody else's, or there are too many; the message names the field."""


class UnknownManager(Exception):
    """No such manager."""


@dataclass(frozen=True, slots=True)
class ReportedReplica:
    """One engine as its manager sees it; `last_error` is the contract's `LastError`."""

    pool_id: str
    id: str
    url: str
    state: str
    labels: tuple[tuple[str, str], ...] = ()
    model_digest: str | None = None
    engine_version: str | None = None
    restarts: int = 0
    last_error: Mapping[str, object] | None = None


@dataclass(frozen=True, slots=True)
class Registration:
    """What a manager is told."""

    pools: tuple[str, ...]
    unknown_pools: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ManagerView:
    """A manager as it is now; `lease_ms_remaining` is 0 where it is going."""

    id: str
    lease_ms_remaining: int
    replicas: int


@dataclass(slots=True)
class _Manager:
    epoch: str
    deadline_s: float  # on the loop's clock
    timer: asyncio.TimerHandle
    reports: dict[Key, ReportedReplica]


@dataclass(slots=True, eq=False)
class _Seat:
    """A replica that we have added. `cordoned`: by us, for a drain that its manager reports."""

    url: str
    cordoned: bool = False
    leaving: asyncio.Task[None] | None = None


@dataclass(slots=True)
class _Seats:
    """What is in service of one manager, or still drains; `epoch` of one that is going."""

    of: dict[Key, _Seat] = field(default_factory=dict)
    gone_epoch: str | None = None


class PoolManagerService:
    """All managers; used from the event loop."""

    def __init__(self, replicas: ReplicaDirectory, engines: Engines, drains: DrainService) -> None:
        self._replicas = replicas
        self._engines = engines
        self._drains = drains
        self._managers: dict[str, _Manager] = {}
        self._seats: dict[str, _Seats] = {}
        self._expired: dict[str, None] = {}  # whose lease ran out, oldest first

    def __len__(self) -> int:
        """How many hold a lease."""
        return len(self._managers)

    def register(
        self, manager_id: str, epoch: str, lease_ms: int, reports: Sequence[ReportedReplica]
    ) -> Registration:
        """Take or renew the lease for `lease_ms` milliseconds; `reports` is all that the manager
        runs. Raises `RegistrationRefused`."""
        known = self._managers.get(manager_id)
        if known is not None and known.epoch != epoch:
            raise RegistrationRefused("epoch: another start of this manager holds the lease")
        seats = self._seats.get(manager_id)
        if seats is not None and seats.gone_epoch == epoch:
            raise RegistrationRefused("epoch: this start of the manager has said good-bye")
        if known is None and len(self._managers) >= MANAGERS_MAX:
            raise RegistrationRefused(f"id: {MANAGERS_MAX} pool managers are registered already")
        loop = asyncio.get_running_loop()
        if known is not None:
            known.timer.cancel()
        pools = tuple(sorted(name for name, each in self._replicas.pools.items() if each.managed))
        self._managers[manager_id] = _Manager(
            epoch,
            loop.time() + lease_ms / 1000,
            loop.call_later(lease_ms / 1000, self._expire, manager_id),
            {
                (each.pool_id, f"{manager_id}.{each.id}"): each
                for each in reports
                if each.pool_id in pools
            },
        )
        if known is None:
            returned = self._expired.pop(manager_id, self) is None
            log.info(
                "manager.returned" if returned else "manager.registered",
                manager_id=manager_id,
                lease_ms=lease_ms,
                replicas=len(reports),
            )
            self._seats.setdefault(manager_id, _Seats()).gone_epoch = None
        else:
            self._count(known.reports, self._managers[manager_id].reports)
        self._settle(manager_id, LEAVE_MS)
        unknown = sorted({each.pool_id for each in reports} - set(pools))
        return Registration(pools, tuple(unknown))

    def deregister(self, manager_id: str) -> ManagerView:
        """Its replicas drain; called again it tells how far they are. Raises `UnknownManager`."""
        manager = self._managers.pop(manager_id, None)
        seats = self._seats.get(manager_id)
        if manager is not None and seats is not None:
            manager.timer.cancel()
            seats.gone_epoch = manager.epoch
            log.info("manager.deregistered", manager_id=manager_id, replicas=len(seats.of))
            self._settle(manager_id, GOODBYE_MS)
        elif seats is None:
            raise UnknownManager("id: no such pool manager")
        view = self._view(manager_id)
        self._forget_empty(manager_id)
        return view

    def views(self) -> list[ManagerView]:
        """All that hold a lease, or have replicas that still drain, ordered by id."""
        return [self._view(name) for name in sorted(self._seats)]

    def reported(self, pool_id: str) -> dict[str, ReportedReplica]:
        """What living managers say of the pool's replicas, by the replicas' names here."""
        return {
            name: report
            for manager in self._managers.values()
            for (host_id, name), report in manager.reports.items()
            if host_id == pool_id
        }

    async def close(self) -> None:
        """The service stops: no lease runs out, no replica goes."""
        for manager in self._managers.values():
            manager.timer.cancel()
        works = [
            seat.leaving
            for seats in self._seats.values()
            for seat in seats.of.values()
            if seat.leaving is not None
        ]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    def _view(self, manager_id: str) -> ManagerView:
        manager = self._managers.get(manager_id)
        left_s = 0.0 if manager is None else manager.deadline_s - asyncio.get_running_loop().time()
        return ManagerView(
            manager_id, max(0, round(left_s * 1000)), len(self._seats[manager_id].of)
        )

    def _expire(self, manager_id: str) -> None:
        del self._managers[manager_id]
        self._expired[manager_id] = None
        if len(self._expired) > MANAGERS_MAX:
            del self._expired[next(iter(self._expired))]
        log.warning(
            "manager.lease_expired",
            manager_id=manager_id,
            replicas=len(self._seats[manager_id].of),
        )
        self._settle(manager_id, LEAVE_MS)
        self._forget_empty(manager_id)

    def _forget_empty(self, manager_id: str) -> None:
        if manager_id not in self._managers and not self._seats[manager_id].of:
            del self._seats[manager_id]

    def _count(
        self, before: Mapping[Key, ReportedReplica], now: Mapping[Key, ReportedReplica]
    ) -> None:
        """What happened to engines between two reports of one lease; a manager's own process has no
        metrics, and what was before its lease may have been counted already."""
        for key, report in now.items():
            if (last := before.get(key)) is None:
                continue
            if report.restarts > last.restarts:
                self._replicas.restarted(*key, report.restarts - last.restarts)
            if report.last_error is None or report.last_error == last.last_error:
                continue
            code = str(report.last_error.get("code"))
            if (memory := MEMORY_KINDS.get(code)) is not None:
                self._replicas.out_of_memory(*key, memory)
            if (fault := DEVICE_FAULTS.get(code)) is not None:
                self._replicas.device_error(*key, fault)

    # --- what is reported becomes what is in service ------------------------------------------

    def _settle(self, manager_id: str, leave_ms: int) -> None:
        """Bring the manager's replicas in line with its last report; what it does not name any
        more has `leave_ms`."""
        manager = self._managers.get(manager_id)
        reports = {} if manager is None else manager.reports
        seats = self._seats[manager_id].of
        for key, seat in list(seats.items()):
            if seat.leaving is not None:
                continue  # when it has gone, we are here again
            report = reports.get(key)
            if not self._is_known(key):  # its pool was changed or removed
                del seats[key]
            elif report is None:
                self._retire(manager_id, key, seat, leave_ms)
            elif report.state == _DRAINING:
                self._drain(key, seat)
            elif report.state != _READY or report.url != seat.url:
                self._retire(manager_id, key, seat, 0)  # nothing runs there any more
            else:
                self._lift(key, seat)
        for key, report in reports.items():
            if report.state == _READY and key not in seats:
                self._add(manager_id, key, report)

    def _is_known(self, key: Key) -> bool:
        return key[0] in self._replicas.pools and key[1] in self._engines.replica_ids(key[0])

    def _add(self, manager_id: str, key: Key, report: ReportedReplica) -> None:
        pool_id, name = key
        if pool_id not in self._replicas.pools:
            return
        if self._is_known(key):
            log.warning("manager.name_taken", manager_id=manager_id, pool_id=pool_id, name=name)
            return
        self._engines.add_external(pool_id, name, report.url, report.model_digest, report.labels)
        self._seats[manager_id].of[key] = _Seat(report.url)

    def _drain(self, key: Key, seat: _Seat) -> None:
        pool_id, name = key
        self._engines.drain_replica(pool_id, name)
        if not self._replicas.is_cordoned(pool_id, name):
            seat.cordoned = True
            self._replicas.cordon(pool_id, name, True)

    def _lift(self, key: Key, seat: _Seat) -> None:
        if seat.cordoned:
            seat.cordoned = False
            self._engines.lift_replica(*key)
            self._replicas.cordon(*key, False)

    def _retire(self, manager_id: str, key: Key, seat: _Seat, leave_ms: int) -> None:
        pool_id, name = key

        async def leave() -> None:
            try:
                await self._drains.retire(pool_id, (name,), leave_ms)
            except Exception:
                # The pool may have gone in between, with this replica.
                log.exception("manager.retire_failed", pool_id=pool_id, replica_id=name)
            del self._seats[manager_id].of[key]
            self._settle(manager_id, LEAVE_MS)
            self._forget_empty(manager_id)

        seat.leaving = asyncio.create_task(leave(), name=f"{name} leaves")
