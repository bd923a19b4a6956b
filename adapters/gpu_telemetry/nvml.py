"""Reads the GPUs of this host through pynvml, NVIDIA's own bindings of NVML.

Off a task's path, and off the event loop: a call into the driver may take long or hang, so the pool
manager gives a reader a thread of its own. Invariants: one reader is used by one thread at a time;
one device that is lost costs the others nothing; what a GPU does not support is None. The library
is opened again, at most every `REOPEN_S`, while it or a device does not answer: a GPU that was
reset is seen by a new opening only. Above 400 lines because opening, looking and events share one
library handle and one table of devices, which a lost device changes in all of them.
Requirements: ORCH-3028, ORCH-3053, OC-POOL-3030.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from gpu_telemetry.snapshot import (
    OFF_THE_BUS,
    RESET_REQUIRED,
    DeviceSnapshot,
    GpuLink,
    HostGpus,
    MigInstance,
    ProcessMemory,
    XidEvent,
    cpus_of,
    reasons_of,
)

LIBRARY = "libnvidia-ml.so.1"
# Opening initialises every GPU, which takes seconds where no process keeps the driver awake.
REOPEN_S = 10.0
# More than ever come between two looks; a storm of them is cut off here and goes on at the next.
XIDS_PER_LOOK = 64
_CPU_WORDS = 16  # 1024 CPUs
_NODE_WORDS = 4  # 256 NUMA nodes

# Return codes of nvml.h.
_RESET_REQUIRED = 16
_DEVICE_GONE = frozenset((15, _RESET_REQUIRED, 28))  # GPU_IS_LOST, RESET_REQUIRED, GPU_NOT_FOUND
_LIBRARY_GONE = frozenset((1, 9, 18))  # UNINITIALIZED, DRIVER_NOT_LOADED, LIB_RM_VERSION_MISMATCH
_ANCESTORS = {
    0: "internal",
    10: "single",
    20: "multiple",
    30: "hostbridge",
    40: "node",
    50: "system",
}

Value = TypeVar("Value")


class NvmlUnavailable(Exception):
    """Nothing can be seen; says why and what it needs."""


class _Lost(Exception):
    """This device does not answer; says how."""


@dataclass(slots=True)
class _Gpu:
    """A device we have met: what never changes, its handle, how it is lost, and the MIG instances
    that it had. Without a handle the last opening did not find it."""

    fixed: DeviceSnapshot
    handle: Any
    lost: str | None = None
    instances: tuple[MigInstance, ...] | None = None

    def silent(self) -> DeviceSnapshot:
        """All that can be said of it while it does not answer."""
        return replace(self.fixed, lost=self.lost, mig=self.instances)


class NvmlReader:
    """The open library; `look` opens it when it is not. `sysfs` is where the kernel tells of PCI
    devices, `monotonic` a clock in seconds."""

    def __init__(
        self,
        sysfs: Path = Path("/sys"),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sysfs = sysfs
        self._monotonic = monotonic
        self._nvml: Any = None
        self._events: Any = None
        self._driver_version: str | None = None
        self._links: tuple[GpuLink, ...] = ()
        self._gpus: dict[str, _Gpu] = {}
        self._nameless: tuple[DeviceSnapshot, ...] = ()
        self._opened_s: float | None = None
        self._closed_because = ""

    def look(self) -> HostGpus:
        """Read every device once. Raises `NvmlUnavailable`."""
        self._keep_open()
        try:
            seen = [self._read(gpu) for gpu in self._gpus.values()]
            xids = self._read_xids()
        except NvmlUnavailable as error:
            self._shut(str(error))
            raise
        devices = sorted([*seen, *self._nameless], key=lambda device: device.index)
        return HostGpus(tuple(devices), self._driver_version, self._links, xids)

    def close(self) -> None:
        """Let go of the library."""
        self._shut("closed")

    # --- opening -----------------------------------------------------------------------------

    def _keep_open(self) -> None:
        """Open what is shut, or what has lost a device, unless that was tried just now."""
        lost = bool(self._nameless) or any(gpu.lost for gpu in self._gpus.values())
        if self._nvml is not None and not lost:
            return
        now_s = self._monotonic()
        if self._opened_s is not None and now_s - self._opened_s < REOPEN_S:
            if self._nvml is None:
                raise NvmlUnavailable(self._closed_because)
            return
        self._opened_s = now_s
        self._shut("")
        try:
            self._open()
        except NvmlUnavailable as error:
            self._shut(str(error))
            raise

    def _open(self) -> None:
        try:
            # Most hosts without a GPU have no such library, and importing the bindings takes 0.1 s.
            ctypes.CDLL(LIBRARY)
        except OSError as error:
            raise NvmlUnavailable(f"no NVIDIA driver is installed here: {error}") from None
        import pynvml

        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            raise NvmlUnavailable(f"the NVIDIA driver is not usable: {error}") from None
        self._nvml = pynvml
        self._driver_version = self._ask(pynvml.nvmlSystemGetDriverVersion)
        self._meet_devices(self._ask(pynvml.nvmlDeviceGetCount) or 0)
        self._links = tuple(self._meet_links())
        self._subscribe()

    def _shut(self, why: str) -> None:
        nvml, self._nvml, self._closed_because = self._nvml, None, why
        events, self._events = self._events, None
        if nvml is None:
            return
        with suppress(nvml.NVMLError):
            if events is not None:
                nvml.nvmlEventSetFree(events)
        with suppress(nvml.NVMLError):
            nvml.nvmlShutdown()

    def _meet_devices(self, count: int) -> None:
        """Find again whom we know by its UUID; who is new gets its number as index, or the next
        free one."""
        for gpu in self._gpus.values():
            gpu.handle, gpu.lost = None, gpu.lost or OFF_THE_BUS
        silent: dict[int, str] = {}
        for number in range(count):
            try:
                handle = self._of_device(self._nvml.nvmlDeviceGetHandleByIndex, number)
                uuid = None if handle is None else self._uuid(handle)
                if uuid is None:
                    silent[number] = OFF_THE_BUS
                elif uuid in self._gpus:
                    self._gpus[uuid].handle, self._gpus[uuid].lost = handle, None
                else:
                    identity = self._identity(handle, self._free_index(number), uuid)
                    self._gpus[uuid] = _Gpu(identity, handle)
            except _Lost as lost:
                silent[number] = str(lost)
        for gpu in self._gpus.values():
            why = silent.pop(gpu.fixed.index, None)
            if why is not None and gpu.handle is None:
                gpu.lost = why
        # One that was lost before we could ask for its UUID is known by its number alone.
        self._nameless = tuple(DeviceSnapshot(n, "", lost=why) for n, why in silent.items())

    def _free_index(self, number: int) -> int:
        taken = {gpu.fixed.index for gpu in self._gpus.values()}
        while number in taken:
            number += 1
        return number

    def _identity(self, handle: Any, index: int, uuid: str) -> DeviceSnapshot:
        nvml = self._nvml
        pci = self._of_device(nvml.nvmlDeviceGetPciInfo, handle)
        words = self._of_device(nvml.nvmlDeviceGetCpuAffinity, handle, _CPU_WORDS)
        return DeviceSnapshot(
            index,
            uuid,
            name=self._of_device(nvml.nvmlDeviceGetName, handle) or "",
            pci_bus_id="" if pci is None else _text(pci.busId),
            numa_node=self._numa_node(handle, pci),
            cpus=() if words is None else cpus_of(tuple(words)),
        )

    def _numa_node(self, handle: Any, pci: Any) -> int | None:
        """The node that the device hangs on; not nvmlDeviceGetNumaNodeId, which tells the node
        that its own memory forms on machines with one address space for both."""
        words = self._of_device(
            self._nvml.nvmlDeviceGetMemoryAffinity,
            handle,
            _NODE_WORDS,
            self._nvml.NVML_AFFINITY_SCOPE_NODE,
        )
        if words is not None:
            nodes = cpus_of(tuple(words))
            if len(nodes) == 1:
                return nodes[0]
        if pci is None:
            return None
        address = f"{pci.domain:04x}:{pci.bus:02x}:{pci.device:02x}.0"
        try:
            text = (self._sysfs / "bus/pci/devices" / address / "numa_node").read_text("ascii")
            node = int(text)
        except (OSError, ValueError):
            return None
        return node if node >= 0 else None  # -1: the machine has one node, or does not tell

    def _meet_links(self) -> list[GpuLink]:
        nvml = self._nvml
        answering = [gpu for gpu in self._gpus.values() if gpu.handle is not None]
        answering.sort(key=lambda gpu: gpu.fixed.index)
        links = []
        for place, a in enumerate(answering):
            for b in answering[place + 1 :]:
                try:
                    level = self._of_device(
                        nvml.nvmlDeviceGetTopologyCommonAncestor, a.handle, b.handle
                    )
                    status = self._of_device(
                        nvml.nvmlDeviceGetP2PStatus,
                        a.handle,
                        b.handle,
                        nvml.NVML_P2P_CAPS_INDEX_NVLINK,
                    )
                except _Lost:
                    continue
                ancestor = None if level is None else _ANCESTORS.get(level)
                nvlink = None if status is None else status == nvml.NVML_P2P_STATUS_OK
                links.append(GpuLink(a.fixed.index, b.fixed.index, ancestor, nvlink))
        return links

    # --- looking -----------------------------------------------------------------------------

    def _read(self, gpu: _Gpu) -> DeviceSnapshot:
        handle, fixed = gpu.handle, gpu.fixed
        if handle is None:
            return gpu.silent()
        nvml = self._nvml
        try:
            memory = self._memory(handle)
            utilization = self._of_device(nvml.nvmlDeviceGetUtilizationRates, handle)
            milliwatts = self._of_device(nvml.nvmlDeviceGetPowerUsage, handle)
            reasons = self._of_device(nvml.nvmlDeviceGetCurrentClocksEventReasons, handle)
            if reasons is None:  # drivers before 535 know the older name only
                reasons = self._of_device(nvml.nvmlDeviceGetCurrentClocksThrottleReasons, handle)
            mode = self._of_device(nvml.nvmlDeviceGetMigMode, handle)
            divided = mode is not None and mode[0] == nvml.NVML_DEVICE_MIG_ENABLE
            found = replace(
                fixed,
                memory_total_bytes=getattr(memory, "total", None),
                memory_used_bytes=getattr(memory, "used", None),
                memory_free_bytes=getattr(memory, "free", None),
                memory_reserved_bytes=getattr(memory, "reserved", None),
                utilization_percent=None if utilization is None else utilization.gpu,
                temperature_celsius=self._of_device(
                    nvml.nvmlDeviceGetTemperature, handle, nvml.NVML_TEMPERATURE_GPU
                ),
                power_watts=None if milliwatts is None else milliwatts / 1000,
                sm_clock_mhz=self._of_device(
                    nvml.nvmlDeviceGetClockInfo, handle, nvml.NVML_CLOCK_SM
                ),
                throttle_reasons=None if reasons is None else reasons_of(reasons),
                ecc_errors=self._of_device(
                    nvml.nvmlDeviceGetTotalEccErrors,
                    handle,
                    nvml.NVML_MEMORY_ERROR_TYPE_UNCORRECTED,
                    nvml.NVML_VOLATILE_ECC,
                ),
                mig=self._mig(handle) if divided else None,
                processes=None if divided else self._processes(handle),
            )
        except _Lost as lost:
            gpu.lost = str(lost)
            return gpu.silent()
        gpu.lost = None
        gpu.instances = found.mig and tuple(MigInstance(i.number, i.uuid) for i in found.mig)
        return found

    def _uuid(self, handle: Any) -> str | None:
        return self._of_device(self._nvml.nvmlDeviceGetUUID, handle)

    def _memory(self, handle: Any) -> Any:
        nvml = self._nvml
        newer = self._of_device(nvml.nvmlDeviceGetMemoryInfo, handle, nvml.nvmlMemory_v2)
        return newer if newer is not None else self._of_device(nvml.nvmlDeviceGetMemoryInfo, handle)

    def _processes(self, handle: Any) -> tuple[ProcessMemory, ...] | None:
        found = self._of_device(self._nvml.nvmlDeviceGetComputeRunningProcesses, handle)
        if found is None:
            return None
        # A process is listed once for each of its compute contexts.
        used: dict[int, int | None] = {}
        for process in found:
            before, more = used.get(process.pid), process.usedGpuMemory
            used[process.pid] = more if before is None else before + (more or 0)
        return tuple(ProcessMemory(pid, used[pid]) for pid in sorted(used))

    def _mig(self, device: Any) -> tuple[MigInstance, ...]:
        nvml = self._nvml
        found = []
        for number in range(self._of_device(nvml.nvmlDeviceGetMaxMigDeviceCount, device) or 0):
            handle = self._of_device(nvml.nvmlDeviceGetMigDeviceHandleByIndex, device, number)
            uuid = None if handle is None else self._uuid(handle)
            if uuid is None:
                continue  # no instance there
            memory = self._memory(handle)
            found.append(
                MigInstance(
                    number,
                    uuid,
                    None if memory is None else memory.total,
                    None if memory is None else memory.used,
                    self._processes(handle),
                )
            )
        return tuple(found)

    # --- events ------------------------------------------------------------------------------

    def _subscribe(self) -> None:
        """Have the driver keep Xids for us, where it can. ECC errors are compared by count, which
        misses none either, so that they need no event."""
        nvml = self._nvml
        self._events = self._ask(nvml.nvmlEventSetCreate)
        if self._events is None:
            return
        for gpu in self._gpus.values():
            if gpu.handle is not None:
                with suppress(nvml.NVMLError):  # this one tells none
                    nvml.nvmlDeviceRegisterEvents(
                        gpu.handle, nvml.nvmlEventTypeXidCriticalError, self._events
                    )

    def _read_xids(self) -> tuple[XidEvent, ...]:
        if self._events is None:
            return ()
        nvml = self._nvml
        indices = {_address(gpu.handle): gpu.fixed.index for gpu in self._gpus.values()}
        found = []
        for _ in range(XIDS_PER_LOOK):
            try:
                event = nvml.nvmlEventSetWait(self._events, 0)
            except nvml.NVMLError:
                # Time-out: no more of them. Anything else: `_read` tells of a device that is lost.
                break
            index = indices.get(_address(event.device))
            if index is not None and event.eventType == nvml.nvmlEventTypeXidCriticalError:
                found.append(XidEvent(index, event.eventData))
        return tuple(found)

    # --- calls -------------------------------------------------------------------------------

    def _ask(self, call: Callable[..., Value], *arguments: Any) -> Value | None:
        """A call of the whole library; None where it is not supported. Raises `NvmlUnavailable`."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in _LIBRARY_GONE:
                raise NvmlUnavailable(f"the NVIDIA driver is gone: {error}") from None
            return None

    def _of_device(self, call: Callable[..., Value], *arguments: Any) -> Value | None:
        """As `_ask`, about a device. Raises `_Lost` too."""
        try:
            return call(*arguments)
        except self._nvml.NVMLError as error:
            if error.value in _LIBRARY_GONE:
                raise NvmlUnavailable(f"the NVIDIA driver is gone: {error}") from None
            if error.value in _DEVICE_GONE:
                raise _Lost(
                    RESET_REQUIRED if error.value == _RESET_REQUIRED else OFF_THE_BUS
                ) from None
            return None


def _address(handle: Any) -> int | None:
    """NVML's handle is a pointer: two objects for one device hold the same address."""
    return None if handle is None else ctypes.cast(handle, ctypes.c_void_p).value


def _text(value: bytes | str) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else value
