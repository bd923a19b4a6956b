"""Whose engine is on which GPU, and what it takes of it."""

from __future__ import annotations

import pytest

from gpu_telemetry.snapshot import (
    OFF_THE_BUS,
    DeviceSnapshot,
    HostGpus,
    MigInstance,
    ProcessMemory,
)
from pool_managerd.gpu_report import EngineShare, GpuReport, RunningEngine, report_of

WHOLE = DeviceSnapshot(
    0,
    "GPU-aaaaaaaa",
    memory_total_bytes=1000,
    memory_used_bytes=600,
    processes=(ProcessMemory(1, 100), ProcessMemory(2, 50), ProcessMemory(3, 400)),
)
DIVIDED = DeviceSnapshot(
    1,
    "GPU-bbbbbbbb",
    numa_node=1,
    mig=(
        MigInstance(0, "MIG-00000000", 300, 0, ()),
        MigInstance(3, "MIG-33333333", 500, 70, (ProcessMemory(4, 70),)),
    ),
)


def engines(report: GpuReport) -> dict[str, list[EngineShare]]:
    return {gpu.label: list(gpu.engines) for gpu in report.gpus}


@pytest.mark.req("ORCH-3028", partial="SLO attainment")
def test_memory_goes_to_the_replica_of_each_process_and_strangers_to_nobody() -> None:
    owners = {1: ("p", "p-0"), 2: ("p", "p-0"), 4: ("q", "q-0")}

    report = report_of(HostGpus((WHOLE, DIVIDED), "580"), owners, [])

    assert report.driver_version == "580"
    assert engines(report) == {
        "0": [EngineShare("p", "p-0", 150)],
        "1": [],
        "1:0": [],
        "1:3": [EngineShare("q", "q-0", 70)],
    }


def test_an_engine_is_on_the_devices_of_its_mask_without_a_claim_on_memory() -> None:
    running = [
        RunningEngine(("p", "p-0"), ("0", "MIG-33333333")),
        RunningEngine(("p", "p-1"), ("7",)),
    ]

    report = report_of(HostGpus((WHOLE, DIVIDED)), {3: ("p", "p-0")}, running)

    assert engines(report) == {
        "0": [EngineShare("p", "p-0", 400)],
        "1": [],
        "1:0": [],
        "1:3": [EngineShare("p", "p-0", None)],
    }


def test_instances_of_a_divided_gpu_have_their_own_memory_and_no_share_of_its_figures() -> None:
    report = report_of(HostGpus((DIVIDED,)), {}, [])

    assert [
        (gpu.label, gpu.index, gpu.uuid, gpu.is_instance, gpu.divided, gpu.memory_total_bytes)
        for gpu in report.gpus
    ] == [
        ("1", 1, "GPU-bbbbbbbb", False, True, None),
        ("1:0", 1, "MIG-00000000", True, False, 300),
        ("1:3", 1, "MIG-33333333", True, False, 500),
    ]
    assert {gpu.numa_node for gpu in report.gpus} == {1}


def test_a_process_whose_memory_is_not_told_leaves_the_engine_without_a_figure() -> None:
    host = HostGpus((DeviceSnapshot(0, "GPU-a", processes=(ProcessMemory(1, None),)),))

    report = report_of(host, {1: ("p", "p-0")}, [])

    assert engines(report) == {"0": [EngineShare("p", "p-0", None)]}


def test_a_lost_gpu_is_said_to_be_and_keeps_the_engines_of_its_mask() -> None:
    host = HostGpus((DeviceSnapshot(0, "GPU-a", lost=OFF_THE_BUS),))

    (gpu,) = report_of(host, {}, [RunningEngine(("p", "p-0"), ("0",))]).gpus

    assert (gpu.lost, gpu.memory_total_bytes, gpu.engines) == (
        True,
        None,
        (EngineShare("p", "p-0", None),),
    )


def test_without_a_driver_there_is_its_message_and_no_gpu() -> None:
    report = report_of(HostGpus(message="no driver"), {}, [RunningEngine(("p", "p-0"), ("0",))])

    assert report == GpuReport(None, "no driver", ())
