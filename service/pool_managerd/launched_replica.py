"""Runs an engine of our own: starts it, waits until it is Ready, and starts it again when it ends.

Invariants: never more than one engine process per replica; an engine that died, hangs or does not
fit is gone, with all it started, before the next one starts; restarts are spaced by `Backoff`.
Requirements: ORCH-3001, ORCH-3002, OC-POOL-3001, OC-POOL-3002, OC-POOL-3003, OC-POOL-3011.
"""

from __future__ import annotations

import asyncio
import os
import re
import socket
from collections.abc import Callable

import structlog

from pool_managerd.backoff import Backoff
from pool_managerd.engine_ledger import EngineLedger
from pool_managerd.engine_output import EngineOutput, last_words
from pool_managerd.engine_probe import PROBE_PERIOD_S, EngineProbe, NotReady
from pool_managerd.engine_process import EngineProcess
from pool_managerd.launch_command import HOST, LaunchRefused, engine_command, engine_environment
from pool_managerd.model_files import ModelUnavailable
from pool_managerd.observer import Cause, CauseCode
from pool_managerd.replica import Replica
from pool_managerd.settings import LaunchSettings, PoolSettings
from worker_adapters.adapter_api.types import EngineAdapter, EngineClient

PRELOAD_DEADLINE_S = 120.0
PRELOAD_PROBE_S = 0.1  # a small model is there in half a second; do not add as much again
# An engine of ours that hangs is given this long to come back, then it is ended and restarted.
HANG_S = 10.0
KILL_GRACE_S = 2.0
# The port was free when we looked; somebody may have been quicker. That is no failure to wait for.
PORT_ATTEMPTS = 3
PORT_TAKEN = re.compile(rb"address already in use|couldn't bind|failed to bind", re.IGNORECASE)

_log = structlog.get_logger(__name__)


class LaunchedSupervisor:
    """The `run` of one launched replica."""

    def __init__(
        self,
        replica: Replica,
        pool: PoolSettings,
        launch: LaunchSettings,
        adapter: EngineAdapter,
        clock: Callable[[], int],
        *,
        marker: str,
        ledger: EngineLedger,
        output: EngineOutput,
        backoff: Backoff,
    ) -> None:
        self.replica = replica
        self._pool = pool
        self._launch = launch
        self._adapter = adapter
        self._clock = clock
        self._marker = marker
        self._ledger = ledger
        self._output = output
        self._backoff = backoff
        self._engine: EngineProcess | None = None
        self._client: EngineClient | None = None
        self._ready_since_s: float | None = None

    async def run(self) -> None:
        """Keep an engine running until cancelled."""
        loop = asyncio.get_running_loop()
        lost_ports = 0
        while True:
            self._ready_since_s = None
            self.replica.start()
            try:
                cause = await self._live()
            except Exception as error:  # noqa: BLE001
                # A defect here must cost one life of the engine, and be seen.
                _log.exception("replica.supervision_failed", replica_id=self.replica.id)
                cause = self.replica.cause(CauseCode.INTERNAL, repr(error))
            self.replica.fail(cause)
            await self._end_engine(KILL_GRACE_S)
            since_s = self._ready_since_s
            healthy_s = 0.0 if since_s is None else loop.time() - since_s
            lost_port = (
                cause.code is CauseCode.EXITED
                and since_s is None
                and PORT_TAKEN.search(self._output.tail()) is not None
            )
            lost_ports = lost_ports + 1 if lost_port else 0
            delay_s = (
                0.0 if 0 < lost_ports < PORT_ATTEMPTS else self._backoff.after_failure(healthy_s)
            )
            self.replica.wait_for_restart(delay_s)
            await asyncio.sleep(delay_s)
            await self._close_client()
            self.replica.restarted()

    def broken(self, cause: Cause) -> None:
        """A task's connection broke: no more work until it has answered a probe."""
        self.replica.lose(cause)
        self.replica.stir()

    async def stop(self, grace_s: float) -> None:
        """End the engine, gently for `grace_s` seconds; after `run` was cancelled."""
        self.replica.stopped()
        await self._end_engine(grace_s)
        await self._close_client()
        self._output.close()

    async def _live(self) -> Cause:
        """One life of the engine, from its start; returns why it is over."""
        replica = self.replica
        port = free_port()
        try:
            # Finding the model may read all of it, to verify it.
            command = await asyncio.to_thread(
                engine_command, self._pool, self._launch, replica.id, port
            )
            environment = engine_environment(self._pool, self._launch, self._marker, os.environ)
            engine = EngineProcess(
                command, environment, self._marker, self._output, self._engine_exited
            )
        except ModelUnavailable as error:
            return replica.cause(CauseCode.MODEL, str(error))
        except (LaunchRefused, OSError, ValueError) as error:
            return replica.cause(CauseCode.SPAWN, f"cannot start the engine: {error}")
        self._engine = engine
        replica.pid = engine.pid
        replica.url = f"http://{HOST}:{port}"
        self._ledger.add(replica.pool_id, replica.id, engine.pid)
        self._client = self._adapter.connect(replica.url)
        probe = EngineProbe(self._pool, replica.url, self._client, self._clock)
        return await self._watch(engine, self._client, probe)

    async def _watch(
        self, engine: EngineProcess, client: EngineClient, probe: EngineProbe
    ) -> Cause:
        loop = asyncio.get_running_loop()
        replica = self.replica
        deadline_s = loop.time() + PRELOAD_DEADLINE_S
        was_ready = False
        while not engine.exited.is_set():
            asked_s = loop.time()
            if replica.is_ready:
                cause = await probe.liveness()
                if cause is None:
                    await replica.pause(max(0.0, PROBE_PERIOD_S - (loop.time() - asked_s)))
                else:
                    replica.lose(cause)
                if not replica.is_ready:
                    deadline_s = loop.time() + HANG_S
                continue
            verdict = await probe.readiness()
            if engine.exited.is_set():
                break
            if not isinstance(verdict, NotReady):
                was_ready = True
                self._ready_since_s = loop.time()
                replica.ready(client, verdict)
                continue
            if verdict.misfit:
                return verdict.cause
            # Not noted as an error: an engine that has just been started is not there yet.
            if loop.time() > deadline_s:
                if was_ready:
                    return verdict.cause
                return replica.cause(
                    CauseCode.PRELOAD_TIMEOUT,
                    f"not Ready {PRELOAD_DEADLINE_S:g} s after its start: {verdict.cause.message}",
                )
            await replica.pause(max(0.0, PRELOAD_PROBE_S - (loop.time() - asked_s)))
        return self._exit_cause(engine)

    def _engine_exited(self) -> None:
        """From the event loop, at the instant of the exit."""
        if self._engine is not None:
            self.replica.lose(self._exit_cause(self._engine))
        self.replica.stir()

    def _exit_cause(self, engine: EngineProcess) -> Cause:
        return self.replica.cause(
            CauseCode.EXITED,
            f"the engine (pid {engine.pid}) {engine.status}: {last_words(self._output.tail())}",
        )

    async def _end_engine(self, grace_s: float) -> None:
        engine = self._engine
        if engine is None:
            return
        await engine.stop(grace_s)
        self._engine = None
        self.replica.pid = None
        self._ledger.remove(engine.pid)

    async def _close_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on right now; the kernel seldom gives the same
    one twice in a row."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port
