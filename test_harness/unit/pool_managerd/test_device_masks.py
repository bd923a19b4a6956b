"""Which GPUs an engine is given when those of the host come and go; the host as plain values."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import pytest

from gpu_telemetry.snapshot import OFF_THE_BUS, DeviceSnapshot, HostGpus, MigInstance
from pool_managerd.device_masks import DeviceGone, DeviceMasks, taken_by
from pool_managerd.launch_profiles import LaunchRefused
from pool_managerd.settings import LaunchSettings, PoolSettings

A, B = DeviceSnapshot(0, "GPU-aaaa1111"), DeviceSnapshot(1, "GPU-bbbb2222")
SLICES = (MigInstance(0, "MIG-cccc3333"), MigInstance(1, "MIG-dddd4444"))
BOTH = HostGpus((A, B))


def on(*devices: str, pool_id: str = "p", shared: bool = False) -> PoolSettings:
    return PoolSettings(
        pool_id, "llamacpp", "m", devices=devices, launch=LaunchSettings(), shared_devices=shared
    )


@dataclass
class Host:
    """What the next look finds."""

    gpus: HostGpus = field(default=BOTH)

    def masks(self) -> DeviceMasks:
        return DeviceMasks(lambda: self.gpus)


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
def test_an_engine_is_given_full_uuids_in_the_order_of_its_mask() -> None:
    masks = Host().masks()

    assert masks.resolve(on("1", "GPU-aaaa")) == ("GPU-bbbb2222", "GPU-aaaa1111")
    assert masks.resolve(on()) == ()


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
def test_an_index_stays_with_its_gpu_when_another_one_takes_its_number() -> None:
    host = Host()
    masks = host.masks()
    before = masks.resolve(on("0"))

    host.gpus = HostGpus((replace(B, index=0),))
    with pytest.raises(DeviceGone) as caught:
        masks.resolve(on("0"))
    host.gpus = HostGpus((replace(B, index=0), replace(A, index=1)))
    after = masks.resolve(on("0"))

    assert before == after == ("GPU-aaaa1111",)
    assert str(caught.value) == ("GPU 0 (GPU-aaaa1111) is gone: the driver knows 0 (GPU-bbbb2222)")


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
@pytest.mark.parametrize("name", ["0", "GPU-aaaa"])
def test_nothing_is_started_on_a_gpu_that_does_not_answer(name: str) -> None:
    masks = Host(HostGpus((replace(A, lost=OFF_THE_BUS), B))).masks()

    with pytest.raises(DeviceGone, match=r"GPU 0 \(GPU-aaaa1111\): the GPU does not answer"):
        masks.resolve(on("1", name))


def test_while_the_driver_is_silent_a_name_means_what_it_meant() -> None:
    host = Host()
    masks = host.masks()
    masks.resolve(on("1"))

    host.gpus = HostGpus(message="the NVIDIA driver has not answered for 30 s")

    assert masks.resolve(on("0", "1")) == ("0", "GPU-bbbb2222")


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
def test_a_divided_gpu_is_meant_by_its_index_where_it_has_one_instance() -> None:
    host = Host(HostGpus((replace(A, mig=SLICES[:1]), replace(B, mig=SLICES))))
    masks = host.masks()

    assert masks.resolve(on("0", "MIG-dddd")) == ("MIG-cccc3333", "MIG-dddd4444")
    with pytest.raises(LaunchRefused, match="names 1, a GPU that is divided into 2 MIG instances"):
        masks.resolve(on("1"))
    host.gpus = HostGpus((replace(A, mig=SLICES[1:]), B))
    with pytest.raises(DeviceGone, match=r"GPU 0 \(MIG-cccc3333\) is gone"):
        masks.resolve(on("0"))


@pytest.mark.req("ORCH-3011", "OC-POOL-3020")
@pytest.mark.parametrize(
    ("one", "other", "one_device"),
    [
        ("0", "GPU-aaaa1111", True),
        ("GPU-bbbb", "MIG-cccc3333", True),
        ("1", "MIG-dddd4444", True),
        ("MIG-cccc", "MIG-cccc3333", True),
        ("MIG-cccc3333", "MIG-dddd4444", False),
        ("0", "GPU-bbbb2222", False),
        ("0", "GPU-zzzz9999", False),
    ],
)
def test_a_device_is_the_same_by_whatever_name(one: str, other: str, one_device: bool) -> None:
    host = HostGpus((A, replace(B, mig=SLICES)))

    silent = taken_by(on(one, pool_id="q"), [on(other)], host)
    half = taken_by(on(one, pool_id="q", shared=True), [on(other)], host)
    both = taken_by(on(one, pool_id="q", shared=True), [on(other, shared=True)], host)

    assert (silent is not None, half is not None, both) == (one_device, one_device, None)
    if silent is not None:
        assert silent.startswith(f"pools[q].devices names {one}, which is {other} of pool p;")
