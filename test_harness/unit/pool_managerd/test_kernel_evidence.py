"""What the kernel is asked after an engine's end, from files of the kernel's own form."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pool_managerd.kernel_evidence import RECORDS_MAX, KernelLog, MemoryKills

pytestmark = pytest.mark.req("ORCH-3039")


def host(tmp_path: Path, cgroup: str, files: dict[str, str]) -> tuple[Path, Path]:
    proc, groups = tmp_path / "proc", tmp_path / "cgroup"
    (proc / "self").mkdir(parents=True)
    (proc / "self" / "cgroup").write_text(cgroup)
    for name, text in files.items():
        file = proc / name if name == "vmstat" else groups / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return proc, groups


def test_the_hosts_count_is_read(tmp_path: Path) -> None:
    proc, groups = host(tmp_path, "", {"vmstat": "pgfault 12\noom_kill 3\noom_killed_x 9\n"})

    assert MemoryKills(proc, groups).count() == 3


def test_the_count_of_our_control_group_is_read_in_version_2(tmp_path: Path) -> None:
    events = "low 0\nhigh 0\nmax 77\noom 5\noom_kill 2\noom_group_kill 1\n"
    proc, groups = host(
        tmp_path,
        "0::/system.slice/orch.service\n",
        {"system.slice/orch.service/memory.events": events},
    )

    assert MemoryKills(proc, groups).count() == 2


def test_the_count_of_our_control_group_is_read_in_version_1(tmp_path: Path) -> None:
    control = "oom_kill_disable 0\nunder_oom 0\noom_kill 4\n"
    proc, groups = host(
        tmp_path,
        "5:devices:/\n4:memory:/docker/ab12\n0::/\n",
        {"memory/docker/ab12/memory.oom_control": control},
    )

    assert MemoryKills(proc, groups).count() == 4


def test_a_host_that_shows_nothing_counts_nothing(tmp_path: Path) -> None:
    assert MemoryKills(tmp_path / "absent", tmp_path / "absent").count() == 0


def test_the_kernels_log_is_read_from_now_on_and_each_message_once(tmp_path: Path) -> None:
    device = tmp_path / "kmsg"
    device.write_text("4,1,100,-;before\n")
    log = KernelLog(device)
    with device.open("a") as kernel:
        kernel.write("3,2,200,-;Out of memory: Killed process 7 (llama-server)\n SUBSYSTEM=x\n")

    assert log.lines() == ("Out of memory: Killed process 7 (llama-server)",)
    assert log.lines() == ()
    log.close()
    assert log.lines() == ()


def test_records_that_were_overwritten_are_passed_over_and_the_reading_is_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "kmsg").touch()
    log = KernelLog(tmp_path / "kmsg")
    reads = 0

    def flooded(descriptor: int, size: int) -> bytes:
        nonlocal reads
        reads += 1
        if reads % 2:
            raise BrokenPipeError
        return b"6,1,1,-;again"

    with monkeypatch.context() as kernel:
        kernel.setattr(os, "read", flooded)
        lines = log.lines()
    log.close()

    assert reads == RECORDS_MAX
    assert lines == ("again",) * (RECORDS_MAX // 2)


def test_a_log_that_may_not_be_read_is_empty(tmp_path: Path) -> None:
    log = KernelLog(tmp_path / "absent")

    assert log.lines() == ()
    log.close()
