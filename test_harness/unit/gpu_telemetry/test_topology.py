"""Masks, labels and CPUs from what a look at the host has found."""

from __future__ import annotations

import pytest

from gpu_telemetry.snapshot import DeviceSnapshot, GpuLink, HostGpus, MigInstance
from gpu_telemetry.topology import (
    cpus_near,
    device_of,
    devices_of,
    known_names,
    placement_labels,
)

MIG = MigInstance(1, "MIG-11112222-7777")
# Two sockets: 0 and 1 behind one switch of the first, 2 alone on the second.
HOST = HostGpus(
    (
        DeviceSnapshot(0, "GPU-aaaa0000", pci_bus_id="00000000:10:00.0", numa_node=0, cpus=(0, 1)),
        DeviceSnapshot(1, "GPU-aaaa1111", pci_bus_id="00000000:11:00.0", numa_node=0, cpus=(0, 1)),
        DeviceSnapshot(
            2, "GPU-bbbb2222", pci_bus_id="00000000:90:00.0", numa_node=1, cpus=(2, 3), mig=(MIG,)
        ),
    ),
    links=(
        GpuLink(0, 1, "single", False),
        GpuLink(0, 2, "system", False),
        GpuLink(1, 2, "system", False),
    ),
)


@pytest.mark.req("OC-POOL-3020", partial="what the engine is given")
@pytest.mark.parametrize(
    ("name", "index"),
    [
        ("1", 1),
        ("GPU-bbbb2222", 2),
        ("GPU-bbbb", 2),
        ("MIG-11112222-7777", 2),
        ("GPU-aaaa", None),  # fits two
        ("GPU-b", None),  # too short to be meant
        ("7", None),
        ("MIG-9", None),
    ],
)
def test_a_mask_names_devices_by_index_uuid_or_mig_uuid(name: str, index: int | None) -> None:
    found = device_of(name, HOST)

    assert (None if found is None else found[0].index) == index


def test_a_mig_name_finds_its_instance_too() -> None:
    found = device_of(MIG.uuid, HOST)

    assert found is not None
    assert found[1] == MIG


def test_a_mask_that_names_a_device_twice_has_it_once() -> None:
    assert [d.index for d in devices_of(["GPU-bbbb2222", MIG.uuid, "0", "9"], HOST)] == [0, 2]


def test_known_names_are_what_a_mask_can_say() -> None:
    assert known_names(HOST) == (
        "0 (GPU-aaaa0000)",
        "1 (GPU-aaaa1111)",
        "2 (GPU-bbbb2222)",
        "MIG-11112222-7777",
    )


@pytest.mark.req("ORCH-3013", partial="their way to launched replicas")
@pytest.mark.parametrize(
    ("mask", "labels"),
    [
        (["0"], {"numa": "0", "pcie": "00000000:10:00.0"}),
        (["1"], {"numa": "0", "pcie": "00000000:10:00.0"}),
        (["2"], {"numa": "1", "pcie": "00000000:90:00.0"}),
        (["0", "1"], {"numa": "0", "pcie": "00000000:10:00.0", "link": "single"}),
        (
            ["1", "2"],
            {"numa": "0+1", "pcie": "00000000:10:00.0+00000000:90:00.0", "link": "system"},
        ),
        ([], {}),
        (["9"], {}),
    ],
)
def test_labels_say_which_devices_share_memory_and_lanes(
    mask: list[str], labels: dict[str, str]
) -> None:
    assert dict(placement_labels(mask, HOST)) == labels


def test_devices_that_are_all_joined_by_nvlink_say_so() -> None:
    joined = HostGpus(
        HOST.devices[:2],
        links=(GpuLink(0, 1, "system", True),),
    )

    assert dict(placement_labels(["0", "1"], joined))["link"] == "nvlink"


def test_what_the_driver_does_not_tell_gives_no_label_and_no_cpu() -> None:
    unknown = HostGpus((DeviceSnapshot(0, "GPU-a"), DeviceSnapshot(1, "GPU-b")))

    assert placement_labels(["0", "1"], unknown) == ()
    assert cpus_near(["0"], unknown) == ()


@pytest.mark.req("ORCH-3013", partial="their way to launched replicas")
@pytest.mark.parametrize(
    ("mask", "cpus"), [(["0"], (0, 1)), (["0", "2"], (0, 1, 2, 3)), ([], ()), (["9"], ())]
)
def test_the_cpus_near_a_mask_are_those_of_its_devices(
    mask: list[str], cpus: tuple[int, ...]
) -> None:
    assert cpus_near(mask, HOST) == cpus
