"""Every pool's replicas, from the start of the service to its end, as they come and go.

The composition root makes one, starts it with the service, and asks it for the pools' health;
operators' orders (drains, rollouts, changes of the configuration) add, stop and remove replicas and
pools meanwhile; what it finds out goes to the observer. Invariants: `start` and every order return
at once and engines come up behind them; a replica has one supervisor at a time, and the next one
begins when nothing of the last one's engine is left; after `stop` no process that it started is
left, however far an order had got. Requirements: ORCH-1101, ORCH-2101, ORCH-2102, ORCH-3001,
ORCH-3002, ORCH-3010, ORCH-3018, ORCH-3031, OC-POOL-3001, OC-POOL-3003, OC-POOL-3012.

Above 400 lines because every order ends in the same few steps on a seat (begin, end), whose races
with each other are seen in one place only.
"""

from __future__ import annotations

import asyncio
import dataclasses
import secrets
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from gpu_telemetry.faults import FaultKind, GpuFault
from gpu_telemetry.topology import cpus_near, devices_of, placement_labels
from pool_managerd.engine_ledger import EngineLedger
from pool_managerd.gpu_presence import gpu_present
from pool_managerd.gpu_report import GpuReport, RunningEngine, report_of
from pool_managerd.gpu_watch import GpuWatch
from pool_managerd.host_memory import read_host_memory
from pool_managerd.launched_replica import LaunchedSupervisor
from pool_managerd.memory_estimate import Room
from pool_managerd.model_store import ModelStore
from pool_managerd.observer import Cause, CauseCode, DeviceFault, ReplicaObserver
from pool_managerd.preload_check import PreloadCheck
from pool_managerd.processes import kill_carriers
from pool_managerd.replica import Replica, ReplicaView
from pool_managerd.replica_state import ReplicaState
from pool_managerd.settings import ExternalReplica, PoolSettings
from pool_managerd.supervisors import NotRunHere, Supervisor, SupervisorFactory
from worker_adapters.adapter_api.types import EngineAdapter

# From SIGKILL to gone takes milliseconds, for a process that can die at all.
KILL_WAIT_S = 2.0

_log = structlog.get_logger(__name__)

# A pool is as well as its best replica; the contract's PoolState has fewer states than a replica.
_BEST_FIRST = (
    (ReplicaState.READY, ReplicaState.READY),
    (ReplicaState.SELF_TEST, ReplicaState.PRELOADING),
    (ReplicaState.PRELOADING, ReplicaState.PRELOADING),
    (ReplicaState.DRAINING, ReplicaState.DRAINING),
    (ReplicaState.UNREADY, ReplicaState.UNREADY),
    (ReplicaState.BACKOFF, ReplicaState.UNREADY),
    (ReplicaState.BROKEN, ReplicaState.UNREADY),
)

_GPU_FAULTS: Mapping[FaultKind, DeviceFault] = {
    FaultKind.XID: "xid",
    FaultKind.ECC: "ecc",
    FaultKind.LOST: "gpu-lost",
    FaultKind.RESET: "reset",
}


@dataclass(frozen=True, slots=True)
class PoolHealthView:
    """A pool as it is now. `state` is one of the contract's `PoolState`;
    `last_error` the latest of its replicas' errors."""

    live: bool
    ready: bool
    draining: bool
    state: str
    last_error: Cause | None
    replicas: tuple[ReplicaView, ...]


@dataclass(slots=True, eq=False)
class _Seat:
    """One replica, what it is made from, and who looks after it; nobody while it is stopped."""

    replica: Replica
    settings: PoolSettings
    external: ExternalReplica | None = None
    added: bool = False  # it did not come with the pool's settings and does not go with them
    supervisor: Supervisor | None = None
    work: asyncio.Task[None] | None = None
    ending: asyncio.Task[None] | None = None  # of the last supervisor and its engine


class PoolHost:
    """Looks after `pools`. `clock` gives wall-clock milliseconds, `jitter` numbers from 0 to 1;
    `run_dir` holds the engines' logs and the list of those that run."""

    def __init__(
        self,
        pools: Sequence[PoolSettings],
        adapters: Mapping[str, EngineAdapter],
        observer: ReplicaObserver,
        *,
        cpu_carve_out: bool,
        run_dir: Path,
        clock: Callable[[], int],
        jitter: Callable[[], float],
        has_gpu: Callable[[], bool] = gpu_present,
        gpus: GpuWatch | None = None,
        host_memory: Callable[[], Room | None] = read_host_memory,
        models: ModelStore | None = None,
    ) -> None:
        self._pools = {pool.id: pool for pool in pools}
        self._observer = observer
        self._run_dir = run_dir
        self._clock = clock
        self._marker = secrets.token_hex(16)
        self._ledger = EngineLedger(run_dir / "engines.json", self._marker)
        self._gpus = GpuWatch(0) if gpus is None else gpus
        self._gpus.owner_of = self._ledger.owner_of
        self._gpus.on_fault = self.device_fault
        self._factory = SupervisorFactory(
            adapters,
            cpu_carve_out=cpu_carve_out,
            run_dir=run_dir,
            clock=clock,
            jitter=jitter,
            has_gpu=has_gpu,
            marker=self._marker,
            ledger=self._ledger,
            preload=PreloadCheck(self._gpus.latest, host_memory),
            models=models,
        )
        self._seats: dict[str, dict[str, _Seat]] = {pool.id: {} for pool in pools}
        self._started = False
        self._stopped = False

    async def start(self) -> None:
        """End what a killed run left, then begin to preload. Raises OSError where `run_dir`
        cannot be written."""
        self._run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._ledger.reap_leftovers()
        self._gpus.start()
        self._started = True
        first = [pool for pool in self._pools.values() if pool.preload]
        later = [pool for pool in self._pools.values() if not pool.preload]
        for pool in first:
            self._populate(pool, [])
        awaited = [seat.replica for pool in first for seat in self._seats[pool.id].values()]
        for pool in later:
            self._populate(pool, awaited)

    async def stop(self, deadline_s: float) -> None:
        """End every engine that we started: SIGTERM, SIGKILL after `deadline_s` seconds; returns
        when nothing is left. Idempotent."""
        self._stopped = True
        await self._gpus.stop()
        seats = [seat for pool in self._seats.values() for seat in pool.values()]
        try:
            async with asyncio.timeout(deadline_s + KILL_WAIT_S):
                await asyncio.gather(*(self._end(seat, deadline_s) for seat in seats))
        except TimeoutError:
            # A process inside a hung driver cannot be killed; the service must end all the same.
            _log.error("engines.unkillable", run_dir=str(self._run_dir))
        for seat in seats:
            seat.replica.stopped()  # those that never had a supervisor
        kill_carriers(self._marker)
        self._ledger.clear()

    # --- orders ------------------------------------------------------------------------------

    def add_pool(self, pool: PoolSettings) -> None:
        """Another pool, whose replicas begin to preload. Raises ValueError for a known id."""
        if pool.id in self._pools:
            raise ValueError(f"pool {pool.id} exists already")
        self._pools[pool.id] = pool
        self._seats[pool.id] = {}
        if self._started:
            self._populate(pool, [])

    def reconfigure(self, pool: PoolSettings) -> None:
        """Other settings for replicas that come from now on; those that are there keep what they
        were started by. Raises KeyError for an unknown pool."""
        if pool.id not in self._pools:
            raise KeyError(pool.id)
        self._pools[pool.id] = pool

    def changed_external(self, pool: PoolSettings) -> tuple[str, ...]:
        """Replicas that somebody else runs and that `pool` does not have, or has elsewhere. Raises
        KeyError for an unknown pool."""
        wanted = {external.id: external for external in pool.external}
        return tuple(
            name
            for name, seat in self._seats[pool.id].items()
            if seat.external is not None and not seat.added and wanted.get(name) != seat.external
        )

    def populate(self, pool_id: str) -> None:
        """Start every replica of the pool's settings that is not there. Raises KeyError for an
        unknown pool."""
        self._populate(self._pools[pool_id], [])

    async def remove_pool(self, pool_id: str, grace_s: float) -> None:
        """End its engines, SIGKILL after `grace_s` seconds, and forget it. Raises KeyError for an
        unknown pool."""
        await asyncio.gather(
            *(self.remove_replica(pool_id, name, grace_s) for name in list(self._seats[pool_id]))
        )
        del self._pools[pool_id], self._seats[pool_id]

    def add_replicas(self, pool_id: str, settings: PoolSettings, ids: Sequence[str]) -> None:
        """Launch more replicas beside those of the pool, by `settings` (another model, say).
        Raises KeyError for an unknown pool, ValueError for a known replica."""
        seats = self._seats[pool_id]
        for replica_id in ids:
            if replica_id in seats:
                raise ValueError(f"replica {pool_id}/{replica_id} exists already")
        for replica_id in ids:
            self._begin(self._seat(settings, replica_id), [])

    def add_external(
        self,
        pool_id: str,
        replica_id: str,
        url: str,
        model_digest: str | None,
        labels: Sequence[tuple[str, str]],
    ) -> None:
        """One more replica of the pool that somebody else runs; it takes work when it has answered
        its probe. Other settings of the pool do not concern it. Raises KeyError for an unknown
        pool, ValueError for a known replica."""
        if replica_id in self._seats[pool_id]:
            raise ValueError(f"replica {pool_id}/{replica_id} exists already")
        external = ExternalReplica(replica_id, url, model_digest, tuple(sorted(labels)))
        seat = self._seat(self._pools[pool_id], replica_id, external)
        seat.added = True
        self._begin(seat, [])

    def is_added(self, pool_id: str, replica_id: str) -> bool:
        """Whether a replica came without the pool's settings (see `add_external`)."""
        seat = self._seats[pool_id].get(replica_id)
        return seat is not None and seat.added

    def replica_ids(self, pool_id: str) -> tuple[str, ...]:
        """The pool's replicas in the order in which they came. Raises KeyError for an unknown
        pool."""
        return tuple(self._seats[pool_id])

    def launch_count(self, pool_id: str) -> int:
        """How many engines the pool's configuration launches; 0 where somebody else runs them.
        Raises KeyError for an unknown pool."""
        launch = self._pools[pool_id].launch
        return 0 if launch is None else launch.count

    def has_external(self, pool_id: str) -> bool:
        """Whether somebody else runs engines of the pool. Raises KeyError for an unknown pool."""
        return any(seat.external is not None for seat in self._seats[pool_id].values())

    async def first_outcome(self, pool_id: str, replica_id: str) -> None:
        """Until it is known whether a replica that was started becomes Ready; at once for one that
        is not known."""
        if (seat := self._seats.get(pool_id, {}).get(replica_id)) is not None:
            await seat.replica.first_outcome.wait()

    def launch_model(self, pool_id: str, model: str, replica_ids: Sequence[str]) -> None:
        """Launch more replicas of the pool that serve another model. Raises as `add_replicas`."""
        settings = dataclasses.replace(self._pools[pool_id], model=model, external=())
        self.add_replicas(pool_id, settings, replica_ids)

    def drain_replica(self, pool_id: str, replica_id: str) -> bool:
        """It finishes what runs and is shown as Draining; False where it was not Ready. Raises
        KeyError for an unknown one, as all orders do."""
        return self._seats[pool_id][replica_id].replica.drain()

    def lift_replica(self, pool_id: str, replica_id: str) -> bool:
        """It is Ready again; False where it was not Draining."""
        return self._seats[pool_id][replica_id].replica.lift()

    def stop_replica(
        self, pool_id: str, replica_id: str, grace_s: float, message: str
    ) -> Awaitable[None]:
        """It stops now, for the reason in `message`: an engine of ours ends (SIGKILL after
        `grace_s` seconds), one of somebody else's is left alone. What is returned is done when
        nothing is left; idempotent."""
        seat = self._seats[pool_id][replica_id]
        seat.replica.drained(seat.replica.cause(CauseCode.DRAINED, message))
        return self._end(seat, grace_s)

    def start_replica(self, pool_id: str, replica_id: str) -> None:
        """A stopped replica starts again, once nothing is left of its engine; any other goes on as
        it is."""
        seat = self._seats[pool_id][replica_id]
        if seat.supervisor is None:
            self._begin(seat, [])

    async def remove_replica(self, pool_id: str, replica_id: str, grace_s: float) -> None:
        """It stops and is forgotten; nothing happens to one that is not known."""
        if replica_id in self._seats[pool_id]:
            await self.stop_replica(pool_id, replica_id, grace_s, "the replica was removed")
            self._seats[pool_id].pop(replica_id, None)

    # --- what others notice ------------------------------------------------------------------

    def report_broken(self, pool_id: str, replica_id: str) -> None:
        """Dispatch saw a connection break: the replica is lost at once, and Ready again as soon as
        it has answered a probe. An unknown replica is ignored."""
        supervisor = self._supervisor(pool_id, replica_id)
        if supervisor is not None:
            message = f"a task's connection to {supervisor.replica.url} broke"
            supervisor.broken(Cause(CauseCode.CONNECTION, message, self._clock()))

    def report_doubtful(self, pool_id: str, replica_id: str) -> None:
        """Dispatch saw a task fail in a way that may be the engine's: it is probed now, and lost
        only if it does not answer well. An unknown replica is ignored."""
        supervisor = self._supervisor(pool_id, replica_id)
        if supervisor is not None:
            supervisor.replica.stir()

    def device_fault(self, fault: GpuFault) -> None:
        """A GPU failed: replicas whose mask holds it, or whose processes were on it, go elsewhere
        with their tasks, and their engines start anew."""
        if not fault.fatal or self._stopped:
            return
        host, seen = self._gpus.latest(), self._gpus.engines_on(fault.index)
        message = f"GPU {fault.index} ({fault.uuid or 'no UUID'}): {fault.message}"
        for pool_id, seats in self._seats.items():
            masked = devices_of(self._pools[pool_id].devices, host)
            for replica_id, seat in list(seats.items()):
                supervisor = seat.supervisor
                if not isinstance(supervisor, LaunchedSupervisor):
                    continue  # whoever runs an external engine knows its GPUs
                on_it = any(device.index == fault.index for device in masked)
                if on_it or (pool_id, replica_id) in seen:
                    supervisor.device_fault(_GPU_FAULTS[fault.kind], message)

    def gpus(self) -> GpuReport:
        """The GPUs of this host and the engines on them, as of the last look."""
        running = [
            RunningEngine((entry.pool_id, entry.replica_id), pool.devices)
            for entry in self._ledger.engines
            if (pool := self._pools.get(entry.pool_id)) is not None
        ]
        return report_of(self._gpus.latest(), self._gpus.owners, running)

    def health(
        self, pool_id: str, counts: Callable[[str], bool] = lambda replica_id: True
    ) -> PoolHealthView:
        """A pool as it is now, of its replicas only those that count. Raises KeyError for an
        unknown one."""
        seats = self._seats[pool_id]
        replicas = tuple(seat.replica.view() for name, seat in seats.items() if counts(name))
        states = {replica.state for replica in replicas}
        state = next(
            (public for own, public in _BEST_FIRST if own in states), ReplicaState.UNLOADED
        )
        errors = [replica.last_error for replica in replicas if replica.last_error is not None]
        return PoolHealthView(
            live=self._started and not self._stopped,
            ready=state is ReplicaState.READY,
            draining=state is ReplicaState.DRAINING,
            state=str(state),
            last_error=max(errors, key=lambda cause: cause.at_ms, default=None),
            replicas=replicas,
        )

    # --- seats -------------------------------------------------------------------------------

    def _populate(self, pool: PoolSettings, awaited: Sequence[Replica]) -> None:
        """The pool's replicas begin, after the first outcome of those that are `awaited`."""
        known = self._seats[pool.id]
        seats = [
            self._seat(pool, external.id, external)
            for external in pool.external
            if external.id not in known
        ]
        if pool.launch is not None:
            self._factory.announce(pool)
            # After a reload the engines of ours have other names; they are as many.
            if not any(seat.external is None for seat in known.values()):
                names = [f"{pool.id}-{number}" for number in range(pool.launch.count)]
                seats += [self._seat(pool, name) for name in names]
        for seat in seats:
            self._begin(seat, awaited)

    def _seat(
        self, settings: PoolSettings, replica_id: str, external: ExternalReplica | None = None
    ) -> _Seat:
        labels = () if external is None else external.labels
        replica = Replica(settings.id, replica_id, labels, self._observer, self._clock)
        seat = self._seats[settings.id][replica_id] = _Seat(replica, settings, external)
        return seat

    def _supervisor(self, pool_id: str, replica_id: str) -> Supervisor | None:
        seat = self._seats.get(pool_id, {}).get(replica_id)
        return None if seat is None or self._stopped else seat.supervisor

    def _begin(self, seat: _Seat, awaited: Sequence[Replica]) -> None:
        """A supervisor takes the replica on, once nothing is left of the last one."""
        if self._stopped:
            return
        replica, ending = seat.replica, seat.ending
        try:
            supervisor = self._factory.make(replica, seat.settings, seat.external)
        except NotRunHere as refused:
            if replica.state is ReplicaState.STOPPED:
                replica.start()  # what was stopped is looked at again, and refused again
            replica.fail(replica.cause(refused.code, str(refused)))
            return

        async def run() -> None:
            if ending is not None:
                await asyncio.shield(ending)
            for other in awaited:
                await other.first_outcome.wait()
            if isinstance(supervisor, LaunchedSupervisor):
                await self._gpus.looked()
                mask = seat.settings.devices
                replica.placed(placement_labels(mask, self._gpus.latest()))
                supervisor.cpus = cpus_near(mask, self._gpus.latest())
            await supervisor.run()

        seat.supervisor = supervisor
        seat.work = asyncio.create_task(run(), name=f"replica {replica.pool_id}/{replica.id}")
        seat.work.add_done_callback(_report_defect)

    def _end(self, seat: _Seat, grace_s: float) -> Awaitable[None]:
        """From now on nobody looks after the replica; what is returned is done when nothing of its
        engine is left. Not cut short when a waiter is: no engine outlives its supervision."""
        supervisor, work = seat.supervisor, seat.work
        if supervisor is not None and work is not None:
            seat.supervisor = seat.work = None
            before = seat.ending

            async def end() -> None:
                work.cancel()
                await asyncio.gather(work, return_exceptions=True)
                if before is not None:
                    await before
                await supervisor.stop(grace_s)

            seat.ending = asyncio.create_task(end(), name=f"end of {seat.replica.id}")
        return asyncio.shield(seat.ending) if seat.ending is not None else _nothing()


async def _nothing() -> None:
    """There was nothing to end."""


def _report_defect(task: asyncio.Task[None]) -> None:
    """A supervisor ends by cancellation only; anything else is seen in the log."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("replica.supervisor_died", task=task.get_name(), exc_info=error)
