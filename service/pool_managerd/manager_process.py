"""The pool manager as a process of its own: runs engines, and registers them with an orchestrator.

`llama-orch pool-managerd` makes its parts from the configuration and calls `manage`. Invariants:
engines live as long as this process and no longer (they die with it, however it dies); an
orchestrator that is away costs them nothing; on SIGTERM the orchestrator first takes its tasks off
them, within the budget, then they end. Requirements: ORCH-3001, ORCH-3002, OC-POOL-3001,
OC-POOL-3003, OC-POOL-3010.
"""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import structlog

from pool_managerd.observer import Cause, DeviceFault, MemoryKind, ReplicaObserver
from pool_managerd.pool_host import PoolHost
from pool_managerd.registration import Heartbeat, OrchestratorAway, Refused, Registrar
from pool_managerd.replica import ReplicaView
from pool_managerd.replica_state import ReplicaState
from worker_adapters.adapter_api.types import EngineClient, EngineProperties

_log = structlog.get_logger(__name__)

# Of the budget of a stop, for ending engines after their tasks had the rest.
SHUTDOWN_RESERVE_S = 2.0
DRAIN_LOOK_S = 0.2
# The contract's bound of an error's message.
MESSAGE_CHARACTERS_MAX = 1024


class Transitions(ReplicaObserver):
    """Hears of every transition; all else is in the log or in the next report."""

    def __init__(self) -> None:
        self.on_change: Callable[[], None] = lambda: None

    def replica_state(self, pool_id: str, replica_id: str, state: ReplicaState) -> None:
        """Report soon."""
        self.on_change()

    def replica_ready(
        self,
        pool_id: str,
        replica_id: str,
        client: EngineClient,
        properties: EngineProperties,
        labels: tuple[tuple[str, str], ...],
    ) -> None:
        """The orchestrator connects by itself."""

    def replica_lost(self, pool_id: str, replica_id: str, cause: Cause) -> None:
        """The transition says so."""

    def preload_outcome(self, pool_id: str, replica_id: str, ok: bool, cause: Cause | None) -> None:
        """The transition says so."""

    def restarted(self, pool_id: str, replica_id: str) -> None:
        """The next report counts it."""

    def self_tested(self, pool_id: str, replica_id: str, ok: bool) -> None:
        """The transition says so."""

    def out_of_memory(self, pool_id: str, replica_id: str, memory: MemoryKind) -> None:
        """The next report has it as the last error."""

    def device_error(self, pool_id: str, replica_id: str, fault: DeviceFault) -> None:
        """The next report has it as the last error."""


def report_of(host: PoolHost, pool_ids: Sequence[str], epoch: str, lease_ms: int) -> dict[str, Any]:
    """`PoolManagerReport` of the contract: all engines of these pools as they are now."""
    return {
        "lease_ms": lease_ms,
        "epoch": epoch,
        "replicas": [
            _reported(pool_id, view)
            for pool_id in pool_ids
            for view in host.health(pool_id).replicas
        ],
    }


def _reported(pool_id: str, view: ReplicaView) -> dict[str, Any]:
    document: dict[str, Any] = {
        "pool_id": pool_id,
        "id": view.id,
        "url": view.url,
        "state": str(view.state),
        "labels": dict(view.labels),
        "restarts": view.restarts,
    }
    if view.properties is not None:
        document["engine_version"] = view.properties.engine_version
        document["model_digest"] = view.properties.model_digest
    if view.last_error is not None:
        document["last_error"] = {
            "code": str(view.last_error.code),
            "message": view.last_error.message[:MESSAGE_CHARACTERS_MAX],
            "at_ms": view.last_error.at_ms,
        }
    return document


async def manage(
    host: PoolHost,
    transitions: Transitions,
    pool_ids: Sequence[str],
    registrar: Registrar,
    *,
    epoch: str,
    lease_ms: int,
    shutdown_s: float,
    jitter: Callable[[], float],
    on_registered: Callable[[dict[str, Any]], None],
) -> None:
    """Run the engines of `host`, whose observer is `transitions`, until SIGTERM or SIGINT.

    `epoch` is random and this start's. `shutdown_s` bounds the stop. Raises `Refused` where the
    orchestrator will not have this manager, and OSError as `PoolHost.start`.
    """
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    reserve_s = min(SHUTDOWN_RESERVE_S, shutdown_s / 2)
    async with registrar:
        heartbeat = Heartbeat(
            lambda: report_of(host, pool_ids, epoch, lease_ms),
            registrar.register,
            lease_ms,
            jitter,
            on_registered,
        )
        transitions.on_change = heartbeat.stir
        await host.start()
        beats = asyncio.create_task(heartbeat.run(), name="heartbeat")
        stopped = asyncio.create_task(stop.wait(), name="stop")
        try:
            await asyncio.wait((beats, stopped), return_when=asyncio.FIRST_COMPLETED)
            if beats.done():
                beats.result()  # it has been refused
            deadline_s = loop.time() + shutdown_s - reserve_s
            heartbeat.close()
            await beats
            if heartbeat.registered:
                await _say_goodbye(registrar, deadline_s)
        finally:
            for task in (beats, stopped):
                task.cancel()
            await asyncio.gather(beats, stopped, return_exceptions=True)
            await host.stop(reserve_s)


async def _say_goodbye(registrar: Registrar, deadline_s: float) -> None:
    """The orchestrator takes its tasks off our engines, until the deadline on the loop's clock."""
    _log.info("manager.draining")
    with suppress(TimeoutError):
        async with asyncio.timeout_at(deadline_s):
            try:
                while left := await registrar.deregister():
                    _log.debug("manager.drains", replicas=left)
                    await asyncio.sleep(DRAIN_LOOK_S)
            except (OrchestratorAway, Refused) as error:
                # Whoever is away has no tasks here either: their connections are cut.
                _log.warning("orchestrator.goodbye_failed", cause=str(error))
