"""Looks after an engine that somebody else runs: probes it, for as long as the service runs.

Invariant: it is asked every 500 ms whatever its state, so one that comes back is Ready within
1.5 s of being healthy. Requirements: ORCH-3002, ORCH-3010, ORCH-3032.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from pool_managerd.engine_probe import PROBE_PERIOD_S, EngineProbe, NotReady
from pool_managerd.observer import Cause, CauseCode
from pool_managerd.replica import Replica
from pool_managerd.replica_state import ReplicaState
from pool_managerd.settings import ExternalReplica, PoolSettings
from worker_adapters.adapter_api.types import EngineAdapter

PRELOAD_DEADLINE_S = 120.0
LEAST_PAUSE_S = 0.05

_log = structlog.get_logger(__name__)


class ExternalSupervisor:
    """The `run` of one external replica; raises ValueError for a URL the adapter refuses."""

    def __init__(
        self,
        replica: Replica,
        pool: PoolSettings,
        external: ExternalReplica,
        adapter: EngineAdapter,
        clock: Callable[[], int],
    ) -> None:
        self.replica = replica
        replica.url = external.url
        self._client = adapter.connect(external.url, model_digest=external.model_digest)
        self._probe = EngineProbe(pool, external.url, self._client, clock, external.model_digest)

    async def run(self) -> None:
        """Probe until cancelled."""
        loop = asyncio.get_running_loop()
        self.replica.start()
        deadline_s = loop.time() + PRELOAD_DEADLINE_S
        while True:
            asked_s = loop.time()
            try:
                await self._look(overdue=asked_s > deadline_s)
            except Exception as error:  # noqa: BLE001
                # A defect here must cost this replica, and be seen, not its supervision.
                _log.exception("replica.supervision_failed", replica_id=self.replica.id)
                self.replica.fail(self.replica.cause(CauseCode.INTERNAL, repr(error)))
            spent_s = loop.time() - asked_s
            await self.replica.pause(max(LEAST_PAUSE_S, PROBE_PERIOD_S - spent_s))

    def broken(self, cause: Cause) -> None:
        """A task's connection broke: no more work until it has answered a probe."""
        self.replica.lose(cause)
        self.replica.stir()

    async def stop(self, grace_s: float) -> None:
        """Close the connections; the engine is not ours to stop."""
        self.replica.stopped()
        await self._client.close()

    async def _look(self, *, overdue: bool) -> None:
        replica = self.replica
        if replica.is_ready:
            cause = await self._probe.liveness()
            if cause is not None:
                replica.lose(cause)
            return
        verdict = await self._probe.readiness()
        if not isinstance(verdict, NotReady):
            replica.ready(self._client, verdict)
            return
        preloads = (
            verdict.cause.code is CauseCode.LOADING
            and replica.state is ReplicaState.PRELOADING
            and not overdue
        )
        if not preloads:  # anything but loading means that it cannot be used right now
            replica.fail(verdict.cause)
