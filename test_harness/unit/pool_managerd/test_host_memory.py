"""The host's memory, and a container's, out of the kernel's files."""

from __future__ import annotations

from pathlib import Path

import pytest

from pool_managerd.host_memory import read_host_memory
from pool_managerd.memory_estimate import MIB, Room

pytestmark = [pytest.mark.req("ORCH-3003", partial="the estimate and what follows from it")]

MEMINFO = "MemTotal:       16384 kB\nMemFree:  1 kB\nMemAvailable:   8192 kB\nHugePages_Total: 0\n"


def write(root: Path, files: dict[str, str]) -> None:
    for name, content in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(content)


def read(tmp_path: Path, cgroup: str, files: dict[str, str]) -> Room | None:
    write(tmp_path / "proc", {"meminfo": MEMINFO, "self/cgroup": cgroup})
    write(tmp_path / "cgroup", files)
    return read_host_memory(tmp_path / "proc", tmp_path / "cgroup")


def test_without_a_limit_it_is_what_the_kernel_can_hand_out(tmp_path: Path) -> None:
    files = {"memory.max": "max\n", "memory.current": "1\n"}

    assert read(tmp_path, "0::/\n", files) == Room(8 * MIB, 16 * MIB)


def test_a_cgroup_limit_counts_with_what_the_kernel_would_drop(tmp_path: Path) -> None:
    limit, used = 6 * MIB, 5 * MIB
    files = {
        "memory.max": f"{limit}\n",
        "memory.current": f"{used}\n",
        "memory.stat": f"anon 1\nfile 2\ninactive_file {2 * MIB}\n",
    }

    assert read(tmp_path, "0::/\n", files) == Room(3 * MIB, 6 * MIB)


def test_the_tightest_limit_above_the_process_counts(tmp_path: Path) -> None:
    files = {
        "memory.max": f"{12 * MIB}\n",
        "memory.current": f"{10 * MIB}\n",
        "a/memory.max": f"{6 * MIB}\n",
        "a/memory.current": "0\n",
        "a/b/memory.max": "max\n",
        "a/b/memory.current": "0\n",
    }

    assert read(tmp_path, "0::/a/b\n", files) == Room(2 * MIB, 6 * MIB)


def test_version_1_writes_no_limit_as_a_large_number(tmp_path: Path) -> None:
    files = {
        "memory/memory.limit_in_bytes": "9223372036854771712\n",
        "memory/memory.usage_in_bytes": "1\n",
        "memory/box/memory.limit_in_bytes": f"{4 * MIB}\n",
        "memory/box/memory.usage_in_bytes": f"{4 * MIB}\n",
        "memory/box/memory.stat": f"inactive_file 0\ntotal_inactive_file {MIB}\n",
    }

    assert read(tmp_path, "4:memory:/box\n1:cpu:/\n0::/\n", files) == Room(MIB, 4 * MIB)


def test_a_path_that_is_not_there_leaves_the_containers_root(tmp_path: Path) -> None:
    files = {"memory.max": f"{4 * MIB}\n", "memory.current": "0\n"}

    assert read(tmp_path, "0::/docker/abc\n", files) == Room(4 * MIB, 4 * MIB)


def test_a_cgroup_path_never_leads_out_of_the_cgroups(tmp_path: Path) -> None:
    write(tmp_path, {"memory.max": "1\n", "memory.current": "0\n"})

    assert read(tmp_path, "0::/../../\n", {"cgroup.procs": ""}) == Room(8 * MIB, 16 * MIB)


def test_a_group_over_its_limit_has_nothing_left(tmp_path: Path) -> None:
    files = {"memory.max": f"{4 * MIB}\n", "memory.current": f"{5 * MIB}\n"}

    assert read(tmp_path, "0::/\n", files) == Room(0, 4 * MIB)


@pytest.mark.parametrize("meminfo", ["", "MemTotal: 1 kB\n"])
def test_where_the_kernel_does_not_say_nothing_is_known(tmp_path: Path, meminfo: str) -> None:
    write(tmp_path, {"proc/meminfo": meminfo})

    assert read_host_memory(tmp_path / "proc") is None
    assert read_host_memory(tmp_path / "nowhere") is None


def test_this_machine_says_something_plausible() -> None:
    room = read_host_memory()

    assert room is not None
    assert 0 < room.free_bytes <= room.total_bytes
