"""The GPUs of this host and whose engines run on them, for operators and for Prometheus.

Off a task's path: asked by `GET /v1/devices` and by a scrape, both from the pool host's last look.
Invariants: what a GPU does not tell is left out, never shown as zero; a gauge of a GPU that does
not answer is gone and not frozen at its last value. The label `device` is the GPU's index in the
order of the PCI bus, `index:instance` for a MIG instance; the figures of the host's GPUs are those
of whole GPUs, so that their sum counts nothing twice. Requirements: ORCH-3028, ORCH-3053,
OC-CORE-1041, OC-POOL-3030.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from orch_metrics.definitions import OrchMetrics
from orchestratord.services.replicas import ReplicaDirectory


class EngineShare(Protocol):
    """An engine of ours on a GPU."""

    @property
    def pool_id(self) -> str: ...
    @property
    def replica_id(self) -> str: ...
    @property
    def memory_used_bytes(self) -> int | None: ...


class Gpu(Protocol):
    """A GPU or one MIG instance of it; None is what it does not tell."""

    @property
    def label(self) -> str: ...
    @property
    def index(self) -> int: ...
    @property
    def uuid(self) -> str: ...
    @property
    def name(self) -> str: ...
    @property
    def is_instance(self) -> bool: ...
    @property
    def lost(self) -> bool: ...
    @property
    def memory_total_bytes(self) -> int | None: ...
    @property
    def memory_used_bytes(self) -> int | None: ...
    @property
    def utilization_percent(self) -> int | None: ...
    @property
    def temperature_celsius(self) -> int | None: ...
    @property
    def power_watts(self) -> float | None: ...
    @property
    def sm_clock_mhz(self) -> int | None: ...
    @property
    def throttle_reasons(self) -> Sequence[str] | None: ...
    @property
    def throttled(self) -> bool | None: ...
    @property
    def ecc_errors(self) -> int | None: ...
    @property
    def divided(self) -> bool: ...
    @property
    def numa_node(self) -> int | None: ...
    @property
    def engines(self) -> Sequence[EngineShare]: ...


class GpuReport(Protocol):
    """What the pool host says of this host's GPUs."""

    @property
    def driver_version(self) -> str | None: ...
    @property
    def message(self) -> str | None: ...
    @property
    def gpus(self) -> Sequence[Gpu]: ...


class DeviceService:
    def __init__(
        self, report: Callable[[], GpuReport], replicas: ReplicaDirectory, metrics: OrchMetrics
    ) -> None:
        self._report = report
        self._replicas = replicas
        self._metrics = metrics

    def devices(self) -> dict[str, Any]:
        """`Devices` of the contract."""
        report = self._report()
        about = {"driver_version": report.driver_version, "message": report.message}
        return _told(about) | {"devices": [_document(gpu) for gpu in report.gpus]}

    def set_gauges(self) -> None:
        """Bring every gauge of a GPU up to date; before a scrape is rendered."""
        metrics, gpus = self._metrics, self._report().gpus
        for family in (
            metrics.gpu_utilization,
            metrics.vram_used_bytes,
            metrics.gpu_memory_total_bytes,
            metrics.gpu_memory_used_bytes,
            metrics.gpu_temperature_celsius,
            metrics.gpu_power_watts,
            metrics.gpu_sm_clock_mhz,
            metrics.gpu_throttled,
            metrics.gpu_ecc_errors,
            metrics.gpu_lost,
        ):
            family.clear()
        for gpu in gpus:
            for share in gpu.engines:
                self._set_share(gpu, share)
            if gpu.is_instance:
                continue
            metrics.gpu_lost.labels(device=gpu.label).set(gpu.lost)
            for family, value in (
                (metrics.gpu_memory_total_bytes, gpu.memory_total_bytes),
                (metrics.gpu_memory_used_bytes, gpu.memory_used_bytes),
                (metrics.gpu_temperature_celsius, gpu.temperature_celsius),
                (metrics.gpu_power_watts, gpu.power_watts),
                (metrics.gpu_sm_clock_mhz, gpu.sm_clock_mhz),
                (metrics.gpu_throttled, gpu.throttled),
                (metrics.gpu_ecc_errors, gpu.ecc_errors),
            ):
                if value is not None:
                    family.labels(device=gpu.label).set(value)

    def _set_share(self, gpu: Gpu, share: EngineShare) -> None:
        traits = self._replicas.pools.get(share.pool_id)
        if traits is None:
            return
        replica = self._replicas.get(share.pool_id, share.replica_id)
        for family, value in (
            (self._metrics.gpu_utilization, gpu.utilization_percent),
            (self._metrics.vram_used_bytes, share.memory_used_bytes),
        ):
            if value is not None:
                family.labels(
                    engine=traits.spec.engine,
                    engine_version="" if replica is None else replica.properties.engine_version,
                    pool_id=share.pool_id,
                    replica_id=share.replica_id,
                    device=gpu.label,
                ).set(value)


def _document(gpu: Gpu) -> dict[str, Any]:
    figures = {
        "index": gpu.index,
        "uuid": gpu.uuid or None,
        "name": gpu.name or None,
        "lost": gpu.lost,
        "memory_total_bytes": gpu.memory_total_bytes,
        "memory_used_bytes": gpu.memory_used_bytes,
        "utilization_percent": gpu.utilization_percent,
        "temperature_celsius": gpu.temperature_celsius,
        "power_watts": gpu.power_watts,
        "sm_clock_mhz": gpu.sm_clock_mhz,
        "throttle_reasons": None if gpu.throttle_reasons is None else list(gpu.throttle_reasons),
        "ecc_errors": gpu.ecc_errors,
        "mig": gpu.divided,
        "numa_node": gpu.numa_node,
        "processes": [
            _told(
                {
                    "pool_id": share.pool_id,
                    "replica_id": share.replica_id,
                    "memory_used_bytes": share.memory_used_bytes,
                }
            )
            for share in gpu.engines
        ],
    }
    return _told(figures)


def _told(fields: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}
