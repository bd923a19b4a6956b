"""How much memory this process's host, or its container, still has.

Off a task's path: read before a launch. Two bounds hold at once, and the tighter one counts: what
the kernel can hand out (`MemAvailable` of /proc/meminfo) and what every memory cgroup above this
process has left: its limit less its use, where file pages that nobody needs count as free, because
the kernel drops them first. Invariant: what cannot be read bounds nothing. Sources: proc(5),
Linux Documentation/admin-guide/cgroup-v2.rst and cgroup-v1/memory.rst. Requirements: ORCH-3003.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from pool_managerd.memory_estimate import Room

# cgroup v1 writes "no limit" as the largest number of whole pages.
_UNLIMITED_BYTES = 2**60
_V2 = ("memory.max", "memory.current", "inactive_file")
_V1 = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")


def read_host_memory(
    proc: Path = Path("/proc"), cgroups: Path = Path("/sys/fs/cgroup")
) -> Room | None:
    """Free and total bytes of the host's memory; None where /proc/meminfo does not say."""
    try:
        lines = (proc / "meminfo").read_text().splitlines()
    except OSError:
        return None
    sizes = {}
    for line in lines:
        name, _, value = line.partition(":")
        if value.endswith(" kB"):
            sizes[name] = int(value.removesuffix(" kB")) * 1024
    free_bytes, total_bytes = sizes.get("MemAvailable"), sizes.get("MemTotal")
    if free_bytes is None or total_bytes is None:
        return None
    for limit_bytes, left_bytes in _cgroup_bounds(proc, cgroups):
        total_bytes = min(total_bytes, limit_bytes)
        free_bytes = min(free_bytes, left_bytes)
    return Room(max(0, free_bytes), total_bytes)


def _cgroup_bounds(proc: Path, cgroups: Path) -> Iterator[tuple[int, int]]:
    """Limit and what is left of it, of every limited memory cgroup above this process."""
    try:
        entries = (proc / "self" / "cgroup").read_text().splitlines()
    except OSError:
        return
    for entry in entries:
        _, controllers, path = [*entry.split(":", 2), "", ""][:3]
        if controllers == "":
            root, names = cgroups, _V2
        elif "memory" in controllers.split(","):
            root, names = cgroups / "memory", _V1
        else:
            continue
        # In a namespace of its own the path may lead nowhere; the root is then the container's.
        relative = Path(path.lstrip("/"))
        for place in (relative, *relative.parents):
            if ".." not in place.parts:
                yield from _bound(root / place, *names)


def _bound(folder: Path, limit: str, used: str, reclaimable: str) -> Iterator[tuple[int, int]]:
    try:
        limit_bytes = int((folder / limit).read_text())
        used_bytes = int((folder / used).read_text())
    except (OSError, ValueError):  # "max" is no number
        return
    if limit_bytes >= _UNLIMITED_BYTES:
        return
    yield limit_bytes, limit_bytes - used_bytes + _statistic(folder / "memory.stat", reclaimable)


def _statistic(path: Path, name: str) -> int:
    try:
        for line in path.read_text().splitlines():
            key, _, value = line.partition(" ")
            if key == name:
                return int(value)
    except (OSError, ValueError):
        pass
    return 0
