"""Every pool's replicas, from the start of the service to its end.

The composition root makes one, starts it with the service, and asks it for the pools' health;
what it finds out goes to the observer. Invariants: `start` returns at once and preloading goes on
behind it; after `stop` no process that it started is left; inference on a host without a GPU, or
with the CPU build that is the default launcher, happens under the carve-out only and is announced.
Requirements: ORCH-1101, ORCH-3001, ORCH-3002, ORCH-3010, ORCH-3018, OC-POOL-3001, OC-POOL-3003,
OC-POOL-3012.
"""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from gpu_telemetry.faults import FaultKind, GpuFault
from gpu_telemetry.topology import cpus_near, devices_of, placement_labels
from pool_managerd.backoff import Backoff
from pool_managerd.engine_ledger import EngineLedger
from pool_managerd.engine_output import EngineOutput
from pool_managerd.external_replica import ExternalSupervisor
from pool_managerd.gpu_presence import gpu_present
from pool_managerd.gpu_report import GpuReport, RunningEngine, report_of
from pool_managerd.gpu_watch import GpuWatch
from pool_managerd.host_memory import read_host_memory
from pool_managerd.launch_profiles import runs_on_cpu
from pool_managerd.launched_replica import LaunchedSupervisor
from pool_managerd.memory_estimate import Room
from pool_managerd.observer import Cause, CauseCode, DeviceFault, ReplicaObserver
from pool_managerd.preload_check import PreloadCheck
from pool_managerd.processes import kill_carriers
from pool_managerd.replica import Replica, ReplicaView
from pool_managerd.replica_state import ReplicaState
from pool_managerd.settings import PoolSettings
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


class _Supervisor(Protocol):
    @property
    def replica(self) -> Replica: ...

    async def run(self) -> None: ...

    def broken(self, cause: Cause) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


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
    ) -> None:
        self._pools = {pool.id: pool for pool in pools}
        self._adapters = adapters
        self._observer = observer
        self._cpu_carve_out = cpu_carve_out
        self._run_dir = run_dir
        self._clock = clock
        self._jitter = jitter
        self._has_gpu = has_gpu
        self._marker = secrets.token_hex(16)
        self._ledger = EngineLedger(run_dir / "engines.json", self._marker)
        self._gpus = GpuWatch(0) if gpus is None else gpus
        self._gpus.owner_of = self._ledger.owner_of
        self._gpus.on_fault = self.device_fault
        self._preload = PreloadCheck(self._gpus.latest, host_memory)
        self._replicas: dict[str, dict[str, Replica]] = {pool.id: {} for pool in pools}
        self._supervisors: dict[tuple[str, str], _Supervisor] = {}
        self._tasks: list[asyncio.Task[None]] = []
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
            self._populate(pool)
        awaited = [replica for pool in first for replica in self._replicas[pool.id].values()]
        for supervisor in self._supervisors.values():
            self._run(supervisor, [])
        preloading = set(self._supervisors)
        for pool in later:
            self._populate(pool)
        for key, supervisor in self._supervisors.items():
            if key not in preloading:
                self._run(supervisor, awaited)

    async def stop(self, deadline_s: float) -> None:
        """End every engine that we started: SIGTERM, SIGKILL after `deadline_s` seconds; returns
        when nothing is left. Idempotent."""
        self._stopped = True
        await self._gpus.stop()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._tasks.clear()
        supervisors, self._supervisors = list(self._supervisors.values()), {}
        try:
            async with asyncio.timeout(deadline_s + KILL_WAIT_S):
                await asyncio.gather(*(supervisor.stop(deadline_s) for supervisor in supervisors))
        except TimeoutError:
            # A process inside a hung driver cannot be killed; the service must end all the same.
            _log.error("engines.unkillable", run_dir=str(self._run_dir))
        for replicas in self._replicas.values():
            for replica in replicas.values():
                replica.stopped()  # those that never had a supervisor
        kill_carriers(self._marker)
        self._ledger.clear()

    def report_broken(self, pool_id: str, replica_id: str) -> None:
        """Dispatch saw a connection break: the replica is lost at once, and Ready again as soon as
        it has answered a probe. An unknown replica is ignored."""
        supervisor = self._supervisors.get((pool_id, replica_id))
        if supervisor is not None and not self._stopped:
            message = f"a task's connection to {supervisor.replica.url} broke"
            supervisor.broken(Cause(CauseCode.CONNECTION, message, self._clock()))

    def report_doubtful(self, pool_id: str, replica_id: str) -> None:
        """Dispatch saw a task fail in a way that may be the engine's: it is probed now, and lost
        only if it does not answer well. An unknown replica is ignored."""
        supervisor = self._supervisors.get((pool_id, replica_id))
        if supervisor is not None and not self._stopped:
            supervisor.replica.stir()

    def device_fault(self, fault: GpuFault) -> None:
        """A GPU failed: replicas whose mask holds it, or whose processes were on it, go elsewhere
        with their tasks, and their engines start anew."""
        if not fault.fatal or self._stopped:
            return
        host, seen = self._gpus.latest(), self._gpus.engines_on(fault.index)
        message = f"GPU {fault.index} ({fault.uuid or 'no UUID'}): {fault.message}"
        for key, supervisor in list(self._supervisors.items()):
            if not isinstance(supervisor, LaunchedSupervisor):
                continue  # whoever runs an external engine knows its GPUs
            masked = devices_of(self._pools[key[0]].devices, host)
            if key in seen or any(device.index == fault.index for device in masked):
                supervisor.device_fault(_GPU_FAULTS[fault.kind], message)

    def gpus(self) -> GpuReport:
        """The GPUs of this host and the engines on them, as of the last look."""
        running = [
            RunningEngine((entry.pool_id, entry.replica_id), pool.devices)
            for entry in self._ledger.engines
            if (pool := self._pools.get(entry.pool_id)) is not None
        ]
        return report_of(self._gpus.latest(), self._gpus.owners, running)

    def health(self, pool_id: str) -> PoolHealthView:
        """A pool as it is now. Raises KeyError for an unknown one."""
        replicas = tuple(replica.view() for replica in self._replicas[pool_id].values())
        states = {replica.state for replica in replicas}
        state = next(
            (public for own, public in _BEST_FIRST if own in states), ReplicaState.UNLOADED
        )
        errors = [replica.last_error for replica in replicas if replica.last_error is not None]
        return PoolHealthView(
            live=self._started and not self._stopped,
            ready=state is ReplicaState.READY,
            draining=False,
            state=str(state),
            last_error=max(errors, key=lambda cause: cause.at_ms, default=None),
            replicas=replicas,
        )

    def _populate(self, pool: PoolSettings) -> None:
        """Make the pool's replicas, and a supervisor for each that may run."""
        adapter = self._adapters.get(pool.engine)
        for external in pool.external:
            replica = self._replica(pool, external.id, external.labels)
            if adapter is None:
                self._refuse_adapter(pool, replica)
                continue
            try:
                supervisor = ExternalSupervisor(replica, pool, external, adapter, self._clock)
            except ValueError as error:
                replica.fail(replica.cause(CauseCode.ADAPTER, f"{external.url}: {error}"))
                continue
            self._supervisors[pool.id, external.id] = supervisor
        launch = pool.launch
        if launch is None:
            return
        default_on_cpu = runs_on_cpu(pool, launch)
        on_cpu = default_on_cpu or not self._has_gpu()
        if on_cpu and self._cpu_carve_out:
            _log.warning(
                "pool.cpu_carve_out",
                pool_id=pool.id,
                advice="INFERENCE ON CPU: platform.cpu_carve_out is on; for demos and CI only",
            )
        for number in range(launch.count):
            replica = self._replica(pool, f"{pool.id}-{number}", ())
            if adapter is None:
                self._refuse_adapter(pool, replica)
            elif on_cpu and not self._cpu_carve_out:
                why = (
                    "the default launcher runs on the CPU"
                    if default_on_cpu
                    else "this host has no NVIDIA GPU"
                )
                replica.fail(
                    replica.cause(
                        CauseCode.CARVE_OUT,
                        f"pool {pool.id} is not launched: {why}, and inference on a CPU needs "
                        "platform.cpu_carve_out: true (for demos and CI only)",
                    )
                )
            else:
                self._supervisors[pool.id, replica.id] = LaunchedSupervisor(
                    replica,
                    pool,
                    launch,
                    adapter,
                    self._clock,
                    # Ends in a character of its own, so that no marker is the start of another.
                    marker=f"{self._marker}:{pool.id}/{replica.id};",
                    ledger=self._ledger,
                    output=EngineOutput(self._run_dir / f"{replica.id}.log"),
                    backoff=Backoff(self._jitter),
                    preload=self._preload,
                )

    def _replica(
        self, pool: PoolSettings, replica_id: str, labels: tuple[tuple[str, str], ...]
    ) -> Replica:
        replica = Replica(pool.id, replica_id, labels, self._observer, self._clock)
        self._replicas[pool.id][replica_id] = replica
        return replica

    def _refuse_adapter(self, pool: PoolSettings, replica: Replica) -> None:
        known = ", ".join(sorted(self._adapters)) or "none"
        message = f"no adapter for engine {pool.engine!r} of pool {pool.id} (there are: {known})"
        replica.fail(replica.cause(CauseCode.ADAPTER, message))

    def _run(self, supervisor: _Supervisor, awaited: Sequence[Replica]) -> None:
        async def run() -> None:
            for replica in awaited:
                await replica.first_outcome.wait()
            if isinstance(supervisor, LaunchedSupervisor):
                await self._gpus.looked()
                mask = self._pools[supervisor.replica.pool_id].devices
                supervisor.replica.placed(placement_labels(mask, self._gpus.latest()))
                supervisor.cpus = cpus_near(mask, self._gpus.latest())
            await supervisor.run()

        replica = supervisor.replica
        task = asyncio.create_task(run(), name=f"replica {replica.pool_id}/{replica.id}")
        task.add_done_callback(_report_defect)
        self._tasks.append(task)


def _report_defect(task: asyncio.Task[None]) -> None:
    """A supervisor ends by cancellation only; anything else is seen in the log."""
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.error("replica.supervisor_died", task=task.get_name(), exc_info=error)
