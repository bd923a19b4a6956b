"""Who is told when replicas come and go, and the reason they are given.

Between the pool host and the services: a Ready replica takes tasks from the call on, a lost one
takes none. Invariant: for one replica, `replica_ready` and `replica_lost` alternate, Ready first.
Requirements: ORCH-3010, ORCH-3038, ORCH-3039, ORCH-3053, OC-POOL-3003, OC-POOL-3030.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Literal, Protocol

from pool_managerd.replica_state import ReplicaState
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
    MEMORY = "memory"  # what it needs, by the estimate, is not free: it was not started
    DEVICE = "device"  # a GPU of its mask does not answer: it was not started
    SELF_TEST = "self-test"  # it answers, and does not work
    VRAM_OOM = "vram-oom"  # it ended for want of GPU memory
    HOST_OOM = "host-oom"  # it ended for want of the host's memory
    CUDA_ERROR = "cuda-error"  # its driver, CUDA or NCCL failed
    XID = "xid"  # the driver reported an Xid event
    ECC = "ecc"  # an uncorrectable memory error of the GPU
    GPU_LOST = "gpu-lost"  # the GPU does not answer any more
    GPU_RESET = "gpu-reset"  # the GPU was reset, or has to be
    DRAINED = "drained"  # somebody asked for it; its drain is over
    INTERNAL = "internal"


MemoryKind = Literal["vram", "host-ram"]
DeviceFault = Literal["cuda-error", "xid", "ecc", "gpu-lost", "reset"]

# Nothing was started, for want of it: that is no storm of restarts.
NOT_STARTED = frozenset((CauseCode.MEMORY, CauseCode.DEVICE))
# What the metrics contract counts of the causes: `oom_events_total`, `driver_reset_events_total`.
MEMORY_KINDS: Mapping[CauseCode, MemoryKind] = {
    CauseCode.VRAM_OOM: "vram",
    CauseCode.HOST_OOM: "host-ram",
}
DEVICE_FAULTS: Mapping[CauseCode, DeviceFault] = {
    CauseCode.CUDA_ERROR: "cuda-error",
    CauseCode.XID: "xid",
    CauseCode.ECC: "ecc",
    CauseCode.GPU_LOST: "gpu-lost",
    CauseCode.GPU_RESET: "reset",
}


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

    def replica_state(self, pool_id: str, replica_id: str, state: ReplicaState) -> None:
        """It stands there from now on; told of every transition, before what follows from it."""
        ...

    def self_tested(self, pool_id: str, replica_id: str, ok: bool) -> None:
        """A self-test before Ready passed or failed."""
        ...

    def out_of_memory(self, pool_id: str, replica_id: str, memory: MemoryKind) -> None:
        """Its engine failed for want of this memory; once per life of the engine."""
        ...

    def device_error(self, pool_id: str, replica_id: str, fault: DeviceFault) -> None:
        """Its driver or GPU failed under it; once per life of the engine."""
        ...
