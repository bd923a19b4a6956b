"""What went wrong with a GPU between two looks.

Off a task's path: the pool manager fails the replicas of a device on what is found here. The
invariant: every trouble is told once, when it begins; what was there at the first look already
(old ECC errors) is no news, a device that does not answer is. Requirements: ORCH-3038, ORCH-3053.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum

from gpu_telemetry.snapshot import RESET_REQUIRED, DeviceSnapshot, HostGpus

# Xids that one application causes for itself, by its code or its own end; the GPU is well. As in
# NVIDIA's device plugin for Kubernetes (internal/rm/health.go), which ignores the same ones.
APPLICATION_XIDS = frozenset((13, 31, 43, 45, 68, 109))


class FaultKind(StrEnum):
    """What happened; the first four are values of the metrics contract's label `reason`."""

    XID = "xid"
    ECC = "ecc"
    LOST = "gpu-lost"
    RESET = "reset"
    BACK = "back"


@dataclass(frozen=True, slots=True)
class GpuFault:
    """Something happened to a device; `fatal` where no engine on it can be trusted any more."""

    index: int
    uuid: str
    kind: FaultKind
    message: str
    fatal: bool


def faults_between(before: HostGpus, now: HostGpus) -> tuple[GpuFault, ...]:
    """What happened from one look to the next, by device; a look that failed is compared with
    nothing, so pass the last one that succeeded."""
    earlier = {device.index: device for device in before.devices}
    faults = [
        fault for device in now.devices for fault in _of_device(earlier.get(device.index), device)
    ]
    uuids = {device.index: device.uuid for device in now.devices}
    for event in now.xids:
        own = event.xid in APPLICATION_XIDS
        blame = "the application's own" if own else "of the GPU or its driver"
        faults.append(
            GpuFault(
                event.index,
                uuids.get(event.index, ""),
                FaultKind.XID,
                f"Xid {event.xid} ({blame})",
                fatal=not own,
            )
        )
    return tuple(faults)


def _of_device(before: DeviceSnapshot | None, now: DeviceSnapshot) -> Iterator[GpuFault]:
    if now.lost is not None:
        if before is None or before.lost != now.lost:
            kind = FaultKind.RESET if now.lost == RESET_REQUIRED else FaultKind.LOST
            yield GpuFault(now.index, now.uuid, kind, now.lost, fatal=True)
        return
    if before is None:
        return
    if before.lost is not None:
        message = f"answers again; it was lost: {before.lost}"
        yield GpuFault(now.index, now.uuid, FaultKind.BACK, message, fatal=False)
        return
    if before.ecc_errors is None or now.ecc_errors is None:
        return
    more = now.ecc_errors - before.ecc_errors
    if more > 0:
        message = f"{more} uncorrected memory errors, {now.ecc_errors} since the driver was loaded"
        yield GpuFault(now.index, now.uuid, FaultKind.ECC, message, fatal=True)
    elif more < 0:
        # They count from the load of the driver: it was loaded anew, or the GPU was reset.
        message = f"its count of memory errors fell from {before.ecc_errors} to {now.ecc_errors}"
        yield GpuFault(now.index, now.uuid, FaultKind.RESET, message, fatal=True)
