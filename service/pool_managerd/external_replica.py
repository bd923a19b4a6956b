"""Looks after an engine that somebody else runs: probes it, for as long as the service runs.

With `self_test: always` it is tested each time before it becomes Ready, because nobody tells
whether it is still the same process; otherwise it is not disturbed. Invariant: it is asked every
500 ms whatever its state, so one that comes back is Ready within 1.5 s of being healthy, and of
having passed its test. Requirements: ORCH-3002, ORCH-3010, ORCH-3032, ORCH-3049.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import structlog

from pool_managerd.engine_probe import PROBE_PERIOD_S, EngineProbe, NotReady
from pool_managerd.observer import Cause, CauseCode
from pool_managerd.replica import Replica
from pool_managerd.replica_state import ReplicaState
from pool_managerd.self_test import SelfTestFailed, self_test
from pool_managerd.settings import ExternalReplica, PoolSettings
from worker_adapters.adapter_api.types import EngineAdapter, EngineProperties

LEAST_PAUSE_S = 0.05
# An engine that failed its self-test is left alone for so long.
RETEST_S = 30.0

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
        self._preload_s = pool.preload_ms / 1000
        self._tests = pool.self_test == "always"
        self._no_test_before_s = 0.0
        self._probe = EngineProbe(pool, external.url, self._client, clock, external.model_digest)

    async def run(self) -> None:
        """Probe until cancelled."""
        loop = asyncio.get_running_loop()
        self.replica.start()
        deadline_s = loop.time() + self._preload_s
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
        if replica.serves:
            cause = await self._probe.liveness()
            if cause is not None:
                replica.lose(cause)
            return
        verdict = await self._probe.readiness()
        if not isinstance(verdict, NotReady):
            if not self._tests or await self._passes(verdict):
                replica.ready(self._client, verdict)
            return
        preloads = (
            verdict.cause.code is CauseCode.LOADING
            and replica.state is ReplicaState.PRELOADING
            and not overdue
        )
        if not preloads:  # anything but loading means that it cannot be used right now
            replica.fail(verdict.cause)

    async def _passes(self, properties: EngineProperties) -> bool:
        loop = asyncio.get_running_loop()
        replica = self.replica
        if loop.time() < self._no_test_before_s:
            return False
        replica.testing()
        try:
            await self_test(self._client, properties, shared=True)
        except SelfTestFailed as failure:
            self._no_test_before_s = loop.time() + RETEST_S
            replica.self_tested(ok=False)
            replica.fail(replica.cause(CauseCode.SELF_TEST, f"its self-test failed at {failure}"))
            return False
        replica.self_tested(ok=True)
        return True
