"""What one look at the GPUs of this host has found: plain values, nothing that is still open.

Off a task's path. Invariants: devices are ordered by index; a figure that the GPU, the driver or
our permissions do not give is None and never a guess; a device that does not answer is `lost` and
has its identity, that of its MIG instances, and no figures. Requirements: ORCH-3028, ORCH-3053,
OC-POOL-3030.
"""

from __future__ import annotations

from dataclasses import dataclass

# Why a device is `lost`.
OFF_THE_BUS = "the GPU does not answer: it is lost (fallen off the bus, or its driver hangs)"
RESET_REQUIRED = "the GPU does not answer: it has to be reset"

# Bits of nvmlClocksEventReasons (nvml.h) in the order of the bits; bit 0 (idle) slows nothing down.
_REASONS = {
    0x2: "applications-clocks",
    0x4: "power-cap",
    0x8: "hardware-slowdown",
    0x10: "sync-boost",
    0x20: "thermal",
    0x40: "hardware-thermal",
    0x80: "hardware-power-brake",
    0x100: "display-clock",
    0x200: "board-limit",
    0x400: "reliability",
}
_HEAT_OR_POWER = frozenset(
    ("power-cap", "hardware-slowdown", "thermal", "hardware-thermal", "hardware-power-brake")
)


@dataclass(frozen=True, slots=True)
class ProcessMemory:
    """A process that computes on a device. `pid` is the kernel's first pid namespace's number."""

    pid: int
    used_bytes: int | None


@dataclass(frozen=True, slots=True)
class MigInstance:
    """One slice of a divided GPU; `number` is its place there."""

    number: int
    uuid: str
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    processes: tuple[ProcessMemory, ...] | None = None


@dataclass(frozen=True, slots=True)
class DeviceSnapshot:
    """One GPU as it was.

    `index` is NVML's, in the order of the PCI bus, at the first look of this process: it stays with
    the GPU when another one falls off the bus. `memory_used_bytes` leaves out what the driver keeps
    for itself (`memory_reserved_bytes`) where NVML tells them apart. `ecc_errors` counts
    uncorrected ones since the driver was loaded. `processes` are None where they cannot be seen;
    those of a divided GPU are in its `mig` instances. `mig` None: it cannot be divided, or is not.
    """

    index: int
    uuid: str
    name: str = ""
    pci_bus_id: str = ""
    numa_node: int | None = None
    cpus: tuple[int, ...] = ()
    lost: str | None = None
    memory_total_bytes: int | None = None
    memory_used_bytes: int | None = None
    memory_free_bytes: int | None = None
    memory_reserved_bytes: int | None = None
    utilization_percent: int | None = None
    temperature_celsius: int | None = None
    power_watts: float | None = None
    sm_clock_mhz: int | None = None
    throttle_reasons: tuple[str, ...] | None = None
    ecc_errors: int | None = None
    mig: tuple[MigInstance, ...] | None = None
    processes: tuple[ProcessMemory, ...] | None = None

    @property
    def throttled(self) -> bool | None:
        """Whether heat or power slows it down; None where it does not say."""
        if self.throttle_reasons is None:
            return None
        return not _HEAT_OR_POWER.isdisjoint(self.throttle_reasons)


@dataclass(frozen=True, slots=True)
class GpuLink:
    """How two GPUs (by index, `a` < `b`) reach each other.

    `ancestor` is the nearest thing above both: internal (one board), single or multiple (PCIe
    switches), hostbridge, node (one NUMA node) or system.
    """

    a: int
    b: int
    ancestor: str | None
    nvlink: bool | None


@dataclass(frozen=True, slots=True)
class XidEvent:
    """A critical error that the driver reported of the device with this index."""

    index: int
    xid: int


@dataclass(frozen=True, slots=True)
class HostGpus:
    """All GPUs of this host; where nothing can be seen there are none and `message` says why."""

    devices: tuple[DeviceSnapshot, ...] = ()
    driver_version: str | None = None
    links: tuple[GpuLink, ...] = ()
    xids: tuple[XidEvent, ...] = ()
    message: str | None = None


def reasons_of(bits: int) -> tuple[str, ...]:
    """Names of the set bits of NVML's clock event reasons; an unknown bit is `other`."""
    names = [name for bit, name in _REASONS.items() if bits & bit]
    known = sum(_REASONS) | 0x1
    return (*names, "other") if bits & ~known else tuple(names)


def cpus_of(words: tuple[int, ...]) -> tuple[int, ...]:
    """CPU numbers of a bit mask in words of 64 bits, the lowest first."""
    return tuple(
        64 * place + bit for place, word in enumerate(words) for bit in range(64) if word >> bit & 1
    )
