"""pynvml, NVIDIA's own bindings, on a scripted library: what is read, and what goes wrong."""

from __future__ import annotations

from pathlib import Path

import pytest

from gpu_telemetry.nvml import REOPEN_S, XIDS_PER_LOOK, NvmlReader, NvmlUnavailable
from gpu_telemetry.snapshot import (
    OFF_THE_BUS,
    RESET_REQUIRED,
    GpuLink,
    HostGpus,
    MigInstance,
    ProcessMemory,
    XidEvent,
)
from harness_kit import nvml_library as stub
from harness_kit.nvml_library import DRIVER, Gpu, ScriptedNvml, mig_uuid_of, uuid_of

MIB = 1 << 20


class Clock:
    """Seconds that a test lets pass."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def reader(nvml: ScriptedNvml, tmp_path: Path, clock: Clock) -> NvmlReader:
    return NvmlReader(tmp_path / "sys", clock)


@pytest.mark.req("ORCH-3028", partial="its way to /metrics")
@pytest.mark.req("OC-POOL-3030", partial="RAM use, preload outcomes, restarts")
def test_every_figure_of_a_gpu_is_read(nvml: ScriptedNvml, reader: NvmlReader) -> None:
    nvml.gpus(Gpu(0, {"ecc": 3, "throttle": 0x1 | 0x4 | 0x40}).runs(4711, 300))

    host = reader.look()

    assert (host.driver_version, host.message, host.xids) == (DRIVER, None, ())
    (device,) = host.devices
    assert (device.index, device.uuid, device.name) == (0, uuid_of(0), "Scripted H100")
    assert (device.pci_bus_id, device.numa_node) == ("00000000:10:00.0", 0)
    assert device.cpus == (0, 1, 2, 3, 4, 5, 6, 7)
    assert device.memory_total_bytes == 81920 * MIB
    assert device.memory_used_bytes == 1024 * MIB
    assert device.memory_reserved_bytes == 512 * MIB
    assert device.memory_free_bytes == (81920 - 1024 - 512) * MIB
    assert device.utilization_percent == 10
    assert device.temperature_celsius == 40
    assert device.power_watts == 250.5
    assert device.sm_clock_mhz == 1980
    assert device.throttle_reasons == ("power-cap", "hardware-thermal")
    assert device.throttled is True
    assert device.ecc_errors == 3
    assert device.processes == (ProcessMemory(4711, 300 * MIB),)
    assert (device.lost, device.mig) == (None, None)


def test_eight_gpus_of_different_sizes_come_in_the_order_of_the_bus(
    nvml: ScriptedNvml, reader: NvmlReader
) -> None:
    nvml.gpus(*(Gpu(index, {"total_mib": 10240 * (index + 1)}) for index in range(8)))

    devices = reader.look().devices

    assert [device.index for device in devices] == [0, 1, 2, 3, 4, 5, 6, 7]
    assert [device.memory_total_bytes for device in devices] == [
        10240 * MIB * number for number in (1, 2, 3, 4, 5, 6, 7, 8)
    ]


def test_what_a_gpu_does_not_support_is_none(nvml: ScriptedNvml, reader: NvmlReader) -> None:
    bare = ("power_mw", "ecc", "util", "throttle", "sm_mhz", "mig", "cpus", "node", "temperature")
    nvml.gpus(Gpu(0, dict.fromkeys(bare)))

    (device,) = reader.look().devices

    assert device.memory_total_bytes == 81920 * MIB
    assert device.throttled is None
    assert device.cpus == ()
    assert {
        device.power_watts,
        device.ecc_errors,
        device.utilization_percent,
        device.throttle_reasons,
        device.sm_clock_mhz,
        device.mig,
        device.numa_node,
        device.temperature_celsius,
    } == {None}


def test_an_older_driver_tells_memory_and_throttling_under_older_names(
    nvml: ScriptedNvml, reader: NvmlReader
) -> None:
    nvml.gpus(Gpu(0, {"throttle": 0x20}))
    nvml.fails("nvmlDeviceGetMemoryInfo_v2", stub.FUNCTION_NOT_FOUND)
    nvml.fails("nvmlDeviceGetCurrentClocksEventReasons", stub.FUNCTION_NOT_FOUND)

    (device,) = reader.look().devices

    assert (device.memory_used_bytes, device.memory_reserved_bytes) == (1024 * MIB, None)
    assert device.memory_free_bytes == (81920 - 1024) * MIB
    assert device.throttle_reasons == ("thermal",)


def test_the_numa_node_comes_from_the_kernel_where_the_driver_does_not_say(
    nvml: ScriptedNvml, reader: NvmlReader, tmp_path: Path
) -> None:
    nvml.gpus(Gpu(0, {"node": None}), Gpu(1, {"node": None}))
    for bus, node in (("10", "1"), ("11", "-1")):
        place = tmp_path / "sys/bus/pci/devices" / f"0000:{bus}:00.0"
        place.mkdir(parents=True)
        (place / "numa_node").write_text(f"{node}\n", encoding="ascii")

    devices = reader.look().devices

    assert [device.numa_node for device in devices] == [1, None]


def test_a_process_with_two_contexts_counts_once_with_both(
    nvml: ScriptedNvml, reader: NvmlReader
) -> None:
    nvml.gpus(Gpu(0).runs(20, 5).runs(10, 100).runs(10, 50))

    (device,) = reader.look().devices

    assert device.processes == (ProcessMemory(10, 150 * MIB), ProcessMemory(20, 5 * MIB))


@pytest.mark.req("ORCH-3028", partial="its way to /metrics")
def test_a_divided_gpu_has_its_instances_with_their_memory_and_processes(
    nvml: ScriptedNvml, reader: NvmlReader
) -> None:
    small = {"total_mib": 10240, "used_mib": 0}
    nvml.gpus(Gpu(0, instances={0: small, 2: small | {"used_mib": 700}}).runs(99, 700, instance=2))

    (device,) = reader.look().devices

    assert device.processes is None
    assert device.mig is not None
    first, second = device.mig
    assert (first.number, first.uuid, first.processes) == (0, mig_uuid_of(0, 0), ())
    assert (second.number, second.uuid) == (2, mig_uuid_of(0, 2))
    assert (second.memory_total_bytes, second.memory_used_bytes) == (10240 * MIB, 700 * MIB)
    assert second.processes == (ProcessMemory(99, 700 * MIB),)


def test_a_divided_gpu_that_is_lost_is_still_found_by_its_instances(
    nvml: ScriptedNvml, reader: NvmlReader
) -> None:
    nvml.gpus(Gpu(0, instances={1: {"total_mib": 10240, "used_mib": 5}}))
    reader.look()
    nvml.set(0, lost=stub.LOST)

    (device,) = reader.look().devices

    assert device.lost == OFF_THE_BUS
    assert device.mig == (MigInstance(1, mig_uuid_of(0, 1)),)


def test_links_between_gpus_are_read(nvml: ScriptedNvml, reader: NvmlReader) -> None:
    nvml.gpus(Gpu(0), Gpu(1), Gpu(2))
    nvml.link(0, 1, stub.SINGLE_SWITCH, nvlink=True)
    nvml.link(1, 2, stub.SYSTEM, nvlink=False)

    links = reader.look().links

    assert links == (
        GpuLink(0, 1, "single", True),
        GpuLink(0, 2, None, None),
        GpuLink(1, 2, "system", False),
    )


@pytest.mark.req("ORCH-3053", partial="its way to replicas, the circuit breaker")
def test_a_lost_gpu_is_told_and_the_others_are_read_on(
    nvml: ScriptedNvml, reader: NvmlReader
) -> None:
    nvml.gpus(Gpu(0), Gpu(1))
    reader.look()
    nvml.set(0, lost=stub.LOST)

    lost, well = reader.look().devices

    assert (lost.index, lost.uuid, lost.lost) == (0, uuid_of(0), OFF_THE_BUS)
    assert (lost.memory_total_bytes, lost.utilization_percent, lost.processes) == (None, None, None)
    assert (well.lost, well.utilization_percent) == (None, 11)


def test_a_gpu_that_has_to_be_reset_is_lost_until_it_was(
    nvml: ScriptedNvml, reader: NvmlReader
) -> None:
    nvml.gpus(Gpu(0))
    reader.look()
    nvml.set(0, lost=stub.RESET_REQUIRED)
    while_broken = reader.look().devices[0].lost
    nvml.set(0, lost=None)

    after = reader.look().devices[0].lost

    assert (while_broken, after) == (RESET_REQUIRED, None)


def test_indices_stay_when_a_gpu_is_gone_and_the_driver_numbers_anew(
    nvml: ScriptedNvml, reader: NvmlReader, clock: Clock
) -> None:
    nvml.gpus(Gpu(0), Gpu(1), Gpu(2))
    reader.look()
    nvml.set(0, lost=stub.LOST, gone=1)
    reader.look()
    clock.now_s += REOPEN_S

    devices = reader.look().devices

    assert [(device.index, device.uuid) for device in devices] == [
        (0, uuid_of(0)),
        (1, uuid_of(1)),
        (2, uuid_of(2)),
    ]
    assert [device.lost for device in devices] == [OFF_THE_BUS, None, None]


def test_a_new_gpu_never_takes_the_index_of_one_that_is_known(
    nvml: ScriptedNvml, reader: NvmlReader, clock: Clock
) -> None:
    nvml.gpus(Gpu(0), Gpu(1))
    reader.look()
    nvml.gpus(Gpu(0, {"lost": stub.LOST, "gone": 1}), Gpu(1), Gpu(2))
    reader.look()
    clock.now_s += REOPEN_S

    devices = reader.look().devices

    assert [(device.index, device.uuid) for device in devices] == [
        (0, uuid_of(0)),
        (1, uuid_of(1)),
        (2, uuid_of(2)),
    ]


def test_a_gpu_lost_before_the_first_look_has_a_number_and_comes_back_with_its_name(
    nvml: ScriptedNvml, reader: NvmlReader, clock: Clock
) -> None:
    nvml.gpus(Gpu(0, {"lost": stub.LOST}), Gpu(1))
    first = [(device.index, device.uuid, device.lost) for device in reader.look().devices]
    nvml.set(0, lost=None)
    too_soon = [device.uuid for device in reader.look().devices]
    clock.now_s += REOPEN_S

    back = [(device.index, device.uuid, device.lost) for device in reader.look().devices]

    assert first == [(0, "", OFF_THE_BUS), (1, uuid_of(1), None)]
    assert too_soon == ["", uuid_of(1)]
    assert back == [(0, uuid_of(0), None), (1, uuid_of(1), None)]


@pytest.mark.req("ORCH-3053", partial="its way to replicas, the circuit breaker")
def test_each_xid_is_read_once(nvml: ScriptedNvml, reader: NvmlReader) -> None:
    nvml.gpus(Gpu(0), Gpu(1))
    reader.look()
    nvml.xid(1, 79)
    nvml.xid(0, 31)

    xids = [reader.look().xids, reader.look().xids]

    assert xids == [(XidEvent(1, 79), XidEvent(0, 31)), ()]


def test_a_storm_of_xids_is_read_in_bounded_parts(nvml: ScriptedNvml, reader: NvmlReader) -> None:
    nvml.gpus(Gpu(0))
    reader.look()
    for _ in range(XIDS_PER_LOOK + 1):
        nvml.xid(0, 74)

    counts = [len(reader.look().xids), len(reader.look().xids)]

    assert counts == [XIDS_PER_LOOK, 1]


def test_a_driver_without_events_is_read_all_the_same(
    nvml: ScriptedNvml, reader: NvmlReader
) -> None:
    nvml.gpus(Gpu(0))
    nvml.fails("nvmlEventSetCreate", stub.NOT_SUPPORTED)

    host = reader.look()

    assert (len(host.devices), host.xids) == (1, ())


def test_without_a_driver_the_reason_is_said_and_asked_for_seldom(
    nvml: ScriptedNvml, reader: NvmlReader, clock: Clock
) -> None:
    nvml.has_driver = False
    nvml.write()
    with pytest.raises(NvmlUnavailable, match="the NVIDIA driver is not usable: Driver Not Loaded"):
        reader.look()
    nvml.has_driver = True
    nvml.gpus(Gpu(0))
    with pytest.raises(NvmlUnavailable, match="not usable"):
        reader.look()
    clock.now_s += REOPEN_S

    host = reader.look()

    assert len(host.devices) == 1


def test_a_driver_that_is_unloaded_while_we_look_is_opened_again(
    nvml: ScriptedNvml, reader: NvmlReader, clock: Clock
) -> None:
    nvml.gpus(Gpu(0))
    reader.look()
    nvml.fails("nvmlDeviceGetUtilizationRates", stub.DRIVER_NOT_LOADED)
    clock.now_s += 1
    with pytest.raises(NvmlUnavailable, match="the NVIDIA driver is gone"):
        reader.look()
    nvml.recovers()
    clock.now_s += REOPEN_S

    host = reader.look()

    assert [device.utilization_percent for device in host.devices] == [10]


def test_a_host_whose_driver_sees_no_gpu_has_none(nvml: ScriptedNvml, reader: NvmlReader) -> None:
    host = reader.look()

    assert host == HostGpus(driver_version=DRIVER)
