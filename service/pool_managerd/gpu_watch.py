"""Looks at the GPUs again and again, and says when one of them fails.

Beside the pool host: its replicas are failed on the faults told here, the preload reads free memory
from `latest`. Invariants: the library is called in one thread of its own, so a call that hangs
delays neither a token nor the end of the service; one look is in flight at most, and the next one
begins a whole period after it; a look that is overdue is said to be so instead of shown as news.
Requirements: ORCH-3028, ORCH-3053, OC-POOL-3030.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

import structlog

from gpu_telemetry.faults import FaultKind, GpuFault, faults_between
from gpu_telemetry.nvml import NvmlReader, NvmlUnavailable
from gpu_telemetry.snapshot import DeviceSnapshot, HostGpus

# A replica as (pool id, replica id).
Engine = tuple[str, str]

# Opening the library wakes every GPU, which takes up to ten seconds on a large host.
HANG_S = 30.0
STOP_S = 1.0
# Nothing grows with what a driver makes up.
PIDS_MAX = 4096

_log = structlog.get_logger(__name__)


class GpuReader(Protocol):
    """What looks; used by one thread."""

    def look(self) -> HostGpus:
        """Raises `NvmlUnavailable`."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class _Seen:
    """One look: the GPUs, whose the processes on them are, or the defect that prevented it."""

    host: HostGpus
    owners: Mapping[int, Engine]
    defect: Exception | None = None


class GpuWatch:
    """A look every `period_ms` milliseconds, 0 for never. Set `owner_of` (called in the thread; the
    replica that a pid belongs to) and `on_fault` (called from the event loop) before `start`."""

    def __init__(
        self,
        period_ms: int,
        open_reader: Callable[[], GpuReader] = NvmlReader,
        hang_s: float = HANG_S,
    ) -> None:
        self._period_s = period_ms / 1000
        self._open_reader = open_reader
        self._hang_s = hang_s
        self.owner_of: Callable[[int], Engine | None] = lambda _: None
        self.on_fault: Callable[[GpuFault], None] = lambda _: None
        never = "nobody looks at the GPUs: platform.gpu_telemetry_ms is 0"
        waits = "the first look at the GPUs is not over yet"
        self._host = HostGpus(message=waits if period_ms else never)
        # The last look that succeeded: what a fault is news against.
        self._known = HostGpus()
        self.owners: Mapping[int, Engine] = {}
        self._engines: dict[int, frozenset[Engine]] = {}
        self._looked = asyncio.Event()
        self._ended = asyncio.Event()
        self._stop = threading.Event()
        self._overdue: asyncio.TimerHandle | None = None
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """Begin to look; returns at once."""
        if not self._period_s:
            self._looked.set()
            return
        loop = asyncio.get_running_loop()
        self._overdue = loop.call_later(self._hang_s + self._period_s, self._hangs)
        # A daemon: a call that never returns must not keep the process from its end.
        self._thread = threading.Thread(target=self._look, args=(loop,), name="nvml", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        """Look no more; waits for a look in flight, at most `STOP_S` seconds. Idempotent."""
        self._stop.set()
        if self._overdue is not None:
            self._overdue.cancel()
        if self._thread is not None:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._ended.wait(), min(STOP_S, self._hang_s))

    async def looked(self) -> None:
        """Wait until the first look is over, or is overdue; at once where nobody looks."""
        await self._looked.wait()

    def latest(self) -> HostGpus:
        """What the last look found; its `message` says why there is nothing to be seen."""
        return self._host

    def engines_on(self, index: int) -> frozenset[Engine]:
        """Replicas whose processes were on the device when it last answered."""
        return self._engines.get(index, frozenset())

    # --- in the thread -----------------------------------------------------------------------

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        reader = self._open_reader()
        with suppress(RuntimeError):  # the event loop has ended: nobody is there to be told
            while True:
                loop.call_soon_threadsafe(self._take, self._look_once(reader))
                if self._stop.wait(self._period_s):
                    break
            reader.close()
            loop.call_soon_threadsafe(self._ended.set)

    def _look_once(self, reader: GpuReader) -> _Seen:
        try:
            host = reader.look()
            pids = sorted({process for device in host.devices for process in _pids(device)})
            owners = {pid: owner for pid in pids[:PIDS_MAX] if (owner := self.owner_of(pid))}
        except NvmlUnavailable as error:
            return _Seen(HostGpus(message=str(error)), {})
        except Exception as error:  # noqa: BLE001 - telemetry must not end for a defect in it
            return _Seen(HostGpus(message=f"the look at the GPUs failed: {error!r}"), {}, error)
        return _Seen(host, owners)

    # --- in the event loop -------------------------------------------------------------------

    def _take(self, seen: _Seen) -> None:
        if self._stop.is_set():
            return
        if self._overdue is not None:
            self._overdue.cancel()
        loop = asyncio.get_running_loop()
        self._overdue = loop.call_later(self._hang_s + self._period_s, self._hangs)
        host = seen.host
        if host.message is not None:
            self._show(host, defect=seen.defect)
            return
        faults = faults_between(self._known, host)
        self._show(host)
        self._known, self.owners = host, seen.owners
        for fault in faults:
            _report(fault)
            self.on_fault(fault)
        # After the faults, which go by who was there before them.
        for device in host.devices:
            if device.lost is None:
                owners = (seen.owners.get(pid) for pid in _pids(device))
                self._engines[device.index] = frozenset(filter(None, owners))

    def _hangs(self) -> None:
        message = f"the NVIDIA driver has not answered for {self._hang_s:g} s"
        self._show(HostGpus(message=message))

    def _show(self, host: HostGpus, defect: Exception | None = None) -> None:
        """Make it the latest, and log where GPUs appear or vanish."""
        before, self._host = self._host, host
        self._looked.set()
        if host.message is not None:
            self.owners = {}
            if host.message != before.message:
                # A host that had GPUs a moment ago should have them still.
                had = bool(before.devices) or defect is not None
                write = _log.warning if had else _log.info
                write("gpu.telemetry_unavailable", cause=host.message, exc_info=defect)
        elif before.message is not None:
            _log.info(
                "gpu.telemetry", driver_version=host.driver_version, devices=len(host.devices)
            )


def _pids(device: DeviceSnapshot) -> list[int]:
    everywhere = [device.processes, *(instance.processes for instance in device.mig or ())]
    return [process.pid for processes in everywhere for process in processes or ()]


def _report(fault: GpuFault) -> None:
    back = fault.kind is FaultKind.BACK
    write = _log.info if back else _log.error if fault.fatal else _log.warning
    write(
        "gpu.back" if back else "gpu.fault",
        device=fault.index,
        uuid=fault.uuid,
        kind=str(fault.kind),
        fatal=fault.fatal,
        cause=fault.message,
    )
