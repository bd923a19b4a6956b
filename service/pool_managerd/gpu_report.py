"""The GPUs with the engines that run on them, as the services show them.

Pure: from the last look, the owners of the processes it saw and the device masks to one entry per
GPU and per MIG instance. Invariant: memory is ascribed to an engine on the driver's word only; an
engine is *on* a device by its pool's mask, or because a process of it was seen there.
Requirements: ORCH-3028, OC-POOL-3020, OC-POOL-3030.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gpu_telemetry.snapshot import DeviceSnapshot, HostGpus, MigInstance, ProcessMemory
from gpu_telemetry.topology import device_of
from pool_managerd.gpu_watch import Engine


@dataclass(frozen=True, slots=True)
class RunningEngine:
    """A launched engine that runs, and its pool's device mask."""

    engine: Engine
    mask: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class EngineShare:
    """An engine on a device; `memory_used_bytes` None where the driver does not tell."""

    pool_id: str
    replica_id: str
    memory_used_bytes: int | None


@dataclass(frozen=True, slots=True)
class GpuEntry:
    """A GPU, or one MIG instance of it, which has its GPU's index and memory of its own.

    `label` is what metrics call it: the index, or `index:instance`.
    """

    label: str
    index: int
    uuid: str
    name: str
    is_instance: bool
    lost: bool
    memory_total_bytes: int | None
    memory_used_bytes: int | None
    utilization_percent: int | None
    temperature_celsius: int | None
    power_watts: float | None
    sm_clock_mhz: int | None
    throttle_reasons: tuple[str, ...] | None
    throttled: bool | None
    ecc_errors: int | None
    divided: bool
    numa_node: int | None
    engines: tuple[EngineShare, ...]


@dataclass(frozen=True, slots=True)
class GpuReport:
    """All of them, ordered by index, instances after their GPU."""

    driver_version: str | None
    message: str | None
    gpus: tuple[GpuEntry, ...]


def report_of(
    host: HostGpus, owners: Mapping[int, Engine], running: Sequence[RunningEngine]
) -> GpuReport:
    """Ascribe what was seen to the engines that run."""
    by_mask: dict[tuple[int, int | None], set[Engine]] = {}
    for engine in running:
        for name in engine.mask:
            place = device_of(name, host)
            if place is not None:
                device, instance = place
                key = device.index, None if instance is None else instance.number
                by_mask.setdefault(key, set()).add(engine.engine)
    entries = []
    for device in host.devices:
        masked = by_mask.get((device.index, None), set())
        entries.append(_gpu(device, _shares(device.processes, owners, masked)))
        for instance in device.mig or ():
            masked = by_mask.get((device.index, instance.number), set())
            shares = _shares(instance.processes, owners, masked)
            entries.append(_instance(device, instance, shares))
    return GpuReport(host.driver_version, host.message, tuple(entries))


def _shares(
    processes: Sequence[ProcessMemory] | None, owners: Mapping[int, Engine], masked: set[Engine]
) -> tuple[EngineShare, ...]:
    used: dict[Engine, int | None] = dict.fromkeys(masked)
    for process in processes or ():
        engine = owners.get(process.pid)
        if engine is not None:
            before, more = used.get(engine), process.used_bytes
            used[engine] = before if more is None else (before or 0) + more
    return tuple(EngineShare(*engine, used[engine]) for engine in sorted(used))


def _gpu(device: DeviceSnapshot, engines: tuple[EngineShare, ...]) -> GpuEntry:
    return GpuEntry(
        label=str(device.index),
        index=device.index,
        uuid=device.uuid,
        name=device.name,
        is_instance=False,
        lost=device.lost is not None,
        memory_total_bytes=device.memory_total_bytes,
        memory_used_bytes=device.memory_used_bytes,
        utilization_percent=device.utilization_percent,
        temperature_celsius=device.temperature_celsius,
        power_watts=device.power_watts,
        sm_clock_mhz=device.sm_clock_mhz,
        throttle_reasons=device.throttle_reasons,
        throttled=device.throttled,
        ecc_errors=device.ecc_errors,
        divided=device.mig is not None,
        numa_node=device.numa_node,
        engines=engines,
    )


def _instance(
    device: DeviceSnapshot, instance: MigInstance, engines: tuple[EngineShare, ...]
) -> GpuEntry:
    return GpuEntry(
        label=f"{device.index}:{instance.number}",
        index=device.index,
        uuid=instance.uuid,
        name=device.name,
        is_instance=True,
        lost=False,
        memory_total_bytes=instance.memory_total_bytes,
        memory_used_bytes=instance.memory_used_bytes,
        utilization_percent=None,
        temperature_celsius=None,
        power_watts=None,
        sm_clock_mhz=None,
        throttle_reasons=None,
        throttled=None,
        ecc_errors=None,
        divided=False,
        numa_node=device.numa_node,
        engines=engines,
    )
