"""Who looks after a replica: the supervisor for each, made from the pool's settings.

Between the pool host, which decides what shall run, and the supervisors, which run it. Invariant:
inference on a host without a GPU, or with the CPU build that is a default launcher, happens under
the carve-out only and is announced. Requirements: ORCH-1101, ORCH-3001, ORCH-3018, OC-POOL-3012.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol

import structlog

from pool_managerd.backoff import Backoff
from pool_managerd.engine_ledger import EngineLedger
from pool_managerd.engine_output import EngineOutput
from pool_managerd.external_replica import ExternalSupervisor
from pool_managerd.launch_profiles import runs_on_cpu
from pool_managerd.launched_replica import LaunchedSupervisor
from pool_managerd.model_store import ModelStore
from pool_managerd.observer import Cause, CauseCode
from pool_managerd.preload_check import PreloadCheck
from pool_managerd.replica import Replica
from pool_managerd.settings import ExternalReplica, LaunchSettings, PoolSettings
from worker_adapters.adapter_api.types import EngineAdapter

_log = structlog.get_logger(__name__)


class Supervisor(Protocol):
    """Keeps one replica alive while `run` is not cancelled."""

    @property
    def replica(self) -> Replica: ...

    async def run(self) -> None: ...

    def broken(self, cause: Cause) -> None: ...

    async def stop(self, grace_s: float) -> None: ...


class NotRunHere(Exception):
    """A replica may or can not run on this host; `code` is the cause's."""

    def __init__(self, code: CauseCode, message: str) -> None:
        super().__init__(message)
        self.code = code


class SupervisorFactory:
    """Makes supervisors, each for one start of a replica; `marker` is random and this run's."""

    def __init__(
        self,
        adapters: Mapping[str, EngineAdapter],
        *,
        cpu_carve_out: bool,
        run_dir: Path,
        clock: Callable[[], int],
        jitter: Callable[[], float],
        has_gpu: Callable[[], bool],
        marker: str,
        ledger: EngineLedger,
        preload: PreloadCheck,
        models: ModelStore | None = None,
    ) -> None:
        self._adapters = adapters
        self._cpu_carve_out = cpu_carve_out
        self._run_dir = run_dir
        self._clock = clock
        self._jitter = jitter
        self._has_gpu = has_gpu
        self._marker = marker
        self._ledger = ledger
        self._preload = preload
        self._models = models

    def announce(self, pool: PoolSettings) -> None:
        """Say so where the pool's engines are allowed to run on the CPU, and do."""
        if pool.launch is not None and self._cpu_carve_out and self._on_cpu(pool, pool.launch):
            _log.warning(
                "pool.cpu_carve_out",
                pool_id=pool.id,
                advice="INFERENCE ON CPU: platform.cpu_carve_out is on; for demos and CI only",
            )

    def make(
        self, replica: Replica, pool: PoolSettings, external: ExternalReplica | None
    ) -> Supervisor:
        """The supervisor of an external replica, or of one that `pool.launch` describes. Raises
        `NotRunHere` for one that may or can not run here."""
        adapter = self._adapters.get(pool.engine)
        if adapter is None:
            known = ", ".join(sorted(self._adapters)) or "none"
            raise NotRunHere(
                CauseCode.ADAPTER,
                f"no adapter for engine {pool.engine!r} of pool {pool.id} (there are: {known})",
            )
        if external is None:
            assert pool.launch is not None, "a replica is external or launched"
            return self._launched(replica, pool, pool.launch, adapter)
        try:
            return ExternalSupervisor(replica, pool, external, adapter, self._clock)
        except ValueError as error:
            raise NotRunHere(CauseCode.ADAPTER, f"{external.url}: {error}") from None

    def _launched(
        self, replica: Replica, pool: PoolSettings, launch: LaunchSettings, adapter: EngineAdapter
    ) -> Supervisor:
        if self._on_cpu(pool, launch) and not self._cpu_carve_out:
            why = (
                "the default launcher runs on the CPU"
                if runs_on_cpu(pool, launch)
                else "this host has no NVIDIA GPU"
            )
            raise NotRunHere(
                CauseCode.CARVE_OUT,
                f"pool {pool.id} is not launched: {why}, and inference on a CPU needs "
                "platform.cpu_carve_out: true (for demos and CI only)",
            )
        return LaunchedSupervisor(
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
            models=self._models,
        )

    def _on_cpu(self, pool: PoolSettings, launch: LaunchSettings) -> bool:
        return runs_on_cpu(pool, launch) or not self._has_gpu()
