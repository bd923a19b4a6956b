"""Which GPUs an engine is given: those of its pool's mask by full UUIDs, the same at each start.

Asked at each start of an engine, and by `pools plan`. An index means another GPU as soon as one
falls off the bus, so it is looked up once and its UUID is kept as long as this process lives. A
divided GPU (MIG) is meant by its index only where it has one instance, which is what the engine
gets. Invariants: an engine is never given another GPU than the one that its mask named first, and
none at all while one of its mask does not answer; without a driver to ask, names stand as they are.
Requirements: ORCH-3001, ORCH-3011, OC-POOL-3020.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from gpu_telemetry.snapshot import HostGpus
from gpu_telemetry.topology import device_of, known_names, overlap
from pool_managerd.launch_profiles import LaunchRefused
from pool_managerd.settings import PoolSettings


class DeviceGone(Exception):
    """A GPU of the mask does not answer; names its UUID."""


class DeviceMasks:
    """`gpus` is the last look at this host's GPUs. From any thread."""

    def __init__(self, gpus: Callable[[], HostGpus]) -> None:
        self._gpus = gpus
        self._uuids: dict[str, str] = {}  # by index: as many as a host has GPUs

    def resolve(self, pool: PoolSettings) -> tuple[str, ...]:
        """The pool's mask as an engine is given it.

        Raises `DeviceGone` where a GPU does not answer, and `LaunchRefused` where a name means no
        device, or not one.
        """
        return tuple(self._resolve(pool.id, name, self._gpus()) for name in pool.devices)

    def _resolve(self, pool_id: str, name: str, host: HostGpus) -> str:
        meant = self._uuids.get(name, name)
        if not host.devices:
            return meant
        known = f"the driver knows {', '.join(known_names(host))}"
        place = device_of(meant, host)
        if place is None and meant != name:
            raise DeviceGone(f"GPU {name} ({meant}) is gone: {known}")
        if place is None:
            raise LaunchRefused(
                f"pools[{pool_id}].devices names {name}, which is not there or not one device; "
                f"{known}"
            )
        device, instance = place
        if device.lost is not None:
            uuid = instance.uuid if instance is not None else device.uuid or "no UUID"
            raise DeviceGone(f"GPU {device.index} ({uuid}): {device.lost}")
        if instance is None and device.mig is not None:
            if len(device.mig) != 1:
                raise LaunchRefused(
                    f"pools[{pool_id}].devices names {name}, a GPU that is divided into "
                    f"{len(device.mig)} MIG instances: name one of them; {known}"
                )
            (instance,) = device.mig
        uuid = device.uuid if instance is None else instance.uuid
        if name.isdecimal():
            self._uuids[name] = uuid
        return uuid


def taken_by(pool: PoolSettings, others: Iterable[PoolSettings], host: HostGpus) -> str | None:
    """Why the pool may not launch beside `others`: a device of both that not both call shared;
    None where it may."""
    for other in others:
        if other.launch is None or (pool.shared_devices and other.shared_devices):
            continue
        for name in pool.devices:
            for theirs in other.devices:
                if name == theirs or overlap(name, theirs, host):
                    return (
                        f"pools[{pool.id}].devices names {name}, which is {theirs} of pool "
                        f"{other.id}; where that is meant, set shared_devices: true in both"
                    )
    return None
