"""Which devices a mask means, where they hang, and what lies near them.

Pure: from a look at the host to the labels that placement reads (`orchestrator_core.placement`'s
topology) and to the CPUs that an engine should run on. Invariant: what is not known gives no label
and no CPU, and then changes nothing. Requirements: ORCH-3011, ORCH-3013.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from gpu_telemetry.snapshot import DeviceSnapshot, HostGpus, MigInstance

# Links that stay below one PCIe root, so that their traffic shares its lanes.
_ONE_ROOT = frozenset(("internal", "single", "multiple", "hostbridge"))
# CUDA takes the beginning of a UUID for all of it; shorter ones than this would be an accident.
_UUID_PREFIX = 8


def device_of(name: str, host: HostGpus) -> tuple[DeviceSnapshot, MigInstance | None] | None:
    """The device that `name` (an index, a UUID or its beginning, a MIG UUID) means, with the MIG
    instance where it means one; None where there is no such device or the name fits several."""
    if name.isdecimal():
        return next(((d, None) for d in host.devices if d.index == int(name)), None)
    named: list[tuple[str, DeviceSnapshot, MigInstance | None]] = [
        (device.uuid, device, None) for device in host.devices
    ]
    named += [
        (instance.uuid, device, instance)
        for device in host.devices
        for instance in device.mig or ()
    ]
    fitting = [
        (device, instance)
        for uuid, device, instance in named
        if uuid == name or (len(name) >= _UUID_PREFIX and uuid.startswith(name))
    ]
    return fitting[0] if len(fitting) == 1 else None


def devices_of(mask: Iterable[str], host: HostGpus) -> tuple[DeviceSnapshot, ...]:
    """The devices of a mask that are known, each once, by index."""
    found = {}
    for name in mask:
        place = device_of(name, host)
        if place is not None:
            found[place[0].index] = place[0]
    return tuple(found[index] for index in sorted(found))


def overlap(name: str, other: str, host: HostGpus) -> bool:
    """Whether two names mean one device, or a GPU and an instance of it; False where either is not
    known."""
    one, two = device_of(name, host), device_of(other, host)
    if one is None or two is None or one[0].index != two[0].index:
        return False
    return one[1] is None or two[1] is None or one[1].uuid == two[1].uuid


def known_names(host: HostGpus) -> tuple[str, ...]:
    """What a mask can name here, for a message."""
    names = []
    for device in host.devices:
        names.append(f"{device.index} ({device.uuid})" if device.uuid else str(device.index))
        names += [instance.uuid for instance in device.mig or ()]
    return tuple(names)


def placement_labels(mask: Sequence[str], host: HostGpus) -> tuple[tuple[str, str], ...]:
    """Labels of a replica on these devices: `numa` (node numbers), `pcie` (the bus ids of the first
    device under each root), and for several devices `link`, the worst way between two of them."""
    devices = devices_of(mask, host)
    labels = []
    nodes = {device.numa_node for device in devices}
    if devices and None not in nodes:
        labels.append(
            ("numa", "+".join(map(str, sorted(node for node in nodes if node is not None))))
        )
    roots = [_root(device, host) for device in devices]
    if roots and all(roots):
        labels.append(("pcie", "+".join(sorted(set(roots)))))
    if len(devices) > 1 and (worst := _worst_link(devices, host)):
        labels.append(("link", worst))
    return tuple(sorted(labels))


def cpus_near(mask: Sequence[str], host: HostGpus) -> tuple[int, ...]:
    """The CPUs that are nearest to any of these devices, ascending; none where one is not known."""
    devices = devices_of(mask, host)
    if not all(device.cpus for device in devices):
        return ()
    return tuple(sorted({cpu for device in devices for cpu in device.cpus}))


def _root(device: DeviceSnapshot, host: HostGpus) -> str:
    """The bus id of the first device under the same PCIe root; empty where that is not known."""
    if not any(device.index in (link.a, link.b) and link.ancestor for link in host.links):
        # The only GPU of the host has nobody to share its root with.
        return device.pci_bus_id if len(host.devices) == 1 else ""
    beside = {device.index}
    for link in host.links:
        if device.index in (link.a, link.b) and link.ancestor in _ONE_ROOT:
            beside |= {link.a, link.b}
    return next(d.pci_bus_id for d in host.devices if d.index in beside)


def _worst_link(devices: Sequence[DeviceSnapshot], host: HostGpus) -> str:
    """`nvlink` where every two are joined by it, else the farthest common ancestor; empty where one
    is not known."""
    order = ("internal", "single", "multiple", "hostbridge", "node", "system")
    indices = {device.index for device in devices}
    links = [link for link in host.links if link.a in indices and link.b in indices]
    if len(links) < len(indices) * (len(indices) - 1) // 2:
        return ""
    if all(link.nvlink for link in links):
        return "nvlink"
    ways = [link.ancestor for link in links if not link.nvlink]
    return max((way for way in ways if way is not None), key=order.index, default="")
