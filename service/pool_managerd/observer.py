"""Who is told when replicas come and go, and the reason they are given.

Between the pool host and the services: a Ready replica takes tasks from the call on, a lost one
takes none. Invariant: for one replica, `replica_ready` and `replica_lost` alternate, Ready first.
Requirements: ORCH-3010, OC-POOL-3003, OC-POOL-3030.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from worker_adapters.adapter_api.types import EngineClient, EngineProperties


class CauseCode(StrEnum):
    """Why a replica is not Ready; closed, fit for a metric label."""

    CARVE_OUT = "carve-out"  # ORCH-1101: no inference on this host
    ADAPTER = "adapter"  # nothing speaks this engine's protocol
    MODEL = "model"  # the model file is absent, unreadable, or not the one it should be
    SPAWN = "spawn"  # the engine's command cannot be started
    EXITED = "exited"  # the engine's process ended
    PRELOAD_TIMEOUT = "preload-timeout"
    LOADING = "loading"
    CONNECTION = "connection"  # refused, cut or reset
    TIMEOUT = "timeout"  # connected, and no answer
    PROTOCOL = "protocol"  # it answers, and not as this engine should
    CONTEXT = "context"  # it offers less context than the pool promises
    DIGEST = "digest"  # it serves another model than the pool's
    INTERNAL = "internal"


@dataclass(frozen=True, slots=True)
class Cause:
    """Why, in words that name the numbers; `at_ms` is wall-clock milliseconds."""

    code: CauseCode
    message: str
    at_ms: int


class ReplicaObserver(Protocol):
    """Called from the event loop; must not block."""

    def replica_ready(
        self,
        pool_id: str,
        replica_id: str,
        client: EngineClient,
        properties: EngineProperties,
        labels: tuple[tuple[str, str], ...],
    ) -> None:
        """It takes work from now on; `client` is open until some time after `replica_lost`."""
        ...

    def replica_lost(self, pool_id: str, replica_id: str, cause: Cause) -> None:
        """It takes no more work."""
        ...

    def preload_outcome(self, pool_id: str, replica_id: str, ok: bool, cause: Cause | None) -> None:
        """A preload succeeded (`cause` None) or failed; once per attempt."""
        ...

    def restarted(self, pool_id: str, replica_id: str) -> None:
        """A launched engine is started again."""
        ...
