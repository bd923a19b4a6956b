"""What is news between two looks at the GPUs, and whether engines on them can go on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from gpu_telemetry.faults import FaultKind, GpuFault, faults_between
from gpu_telemetry.snapshot import (
    OFF_THE_BUS,
    RESET_REQUIRED,
    DeviceSnapshot,
    HostGpus,
    XidEvent,
)

WELL = DeviceSnapshot(0, "GPU-a", ecc_errors=2)


def news(before: DeviceSnapshot | None, now: DeviceSnapshot) -> list[tuple[str, bool, str]]:
    faults = faults_between(
        HostGpus(() if before is None else (before,)),
        HostGpus((now,)),
    )
    return [(fault.kind, fault.fatal, fault.message) for fault in faults]


@pytest.mark.req("ORCH-3053", partial="the circuit breaker")
@pytest.mark.parametrize(
    ("now", "told"),
    [
        (WELL, []),
        (replace(WELL, ecc_errors=None), []),
        (replace(WELL, lost=OFF_THE_BUS), [("gpu-lost", True, OFF_THE_BUS)]),
        (replace(WELL, lost=RESET_REQUIRED), [("reset", True, RESET_REQUIRED)]),
        (
            replace(WELL, ecc_errors=5),
            [("ecc", True, "3 uncorrected memory errors, 5 since the driver was loaded")],
        ),
        (
            replace(WELL, ecc_errors=0),
            [("reset", True, "its count of memory errors fell from 2 to 0")],
        ),
    ],
)
def test_a_gpu_that_was_well(now: DeviceSnapshot, told: list[tuple[str, bool, str]]) -> None:
    assert news(WELL, now) == told


def test_a_trouble_is_told_when_it_begins_and_when_it_ends() -> None:
    lost = replace(WELL, ecc_errors=None, lost=OFF_THE_BUS)

    assert news(lost, lost) == []
    assert news(lost, WELL) == [("back", False, f"answers again; it was lost: {OFF_THE_BUS}")]


def test_the_first_look_tells_of_a_lost_gpu_and_of_no_old_memory_error() -> None:
    assert news(None, WELL) == []
    assert news(None, replace(WELL, lost=OFF_THE_BUS)) == [("gpu-lost", True, OFF_THE_BUS)]


@pytest.mark.req("ORCH-3053", partial="the circuit breaker")
@pytest.mark.parametrize(
    ("xid", "fatal", "message"),
    [
        (79, True, "Xid 79 (of the GPU or its driver)"),
        (31, False, "Xid 31 (the application's own)"),
    ],
)
def test_an_xid_is_fatal_unless_an_application_causes_it(
    xid: int, fatal: bool, message: str
) -> None:
    now = HostGpus((WELL,), xids=(XidEvent(0, xid),))

    faults = faults_between(HostGpus((WELL,)), now)

    assert faults == (GpuFault(0, "GPU-a", FaultKind.XID, message, fatal),)
