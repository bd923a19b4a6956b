"""Processes as /proc shows them: found by the marker in their environment, ended by pidfd.

An engine's marker is a random value that only its own processes inherit, and a pid together with
the time of its start is one process's only, so a pid that was given to somebody else in the
meantime is never mistaken for ours; between the check and the signal the pidfd holds on to the
process. Requirements: OC-POOL-3010.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from pool_managerd.launch_command import MARKER_VARIABLE

_PROC = Path("/proc")


def start_ticks(pid: int) -> int | None:
    """When a process started, in clock ticks since boot; None where there is none."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def started_by(leader: int) -> list[tuple[int, int]]:
    """Pid and start of what a process has started and of all in its session, without itself."""
    found = {}
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and (fields := _stat(int(entry.name))) is not None:
            found[int(entry.name)] = (int(fields[1]), int(fields[3]), int(fields[19]))
    ours = {leader} | {pid for pid, (_, session, _) in found.items() if session == leader}
    before = 0
    while len(ours) > before:
        before = len(ours)
        ours |= {pid for pid, (parent, _, _) in found.items() if parent in ours}
    return sorted((pid, found[pid][2]) for pid in ours - {leader} if pid in found)


def carriers_of(marker: str) -> Iterator[int]:
    """Pids of the living processes whose environment has an engine marker that starts so."""
    wanted = f"{MARKER_VARIABLE}={marker}".encode()
    for entry in _PROC.iterdir():
        if entry.name.isdigit() and _carries(int(entry.name), wanted):
            yield int(entry.name)


def marker_of(pid: int) -> str | None:
    """The engine marker in a process's environment; None where there is none to be read."""
    for entry in _environment(pid):
        name, _, value = entry.partition(b"=")
        if name == MARKER_VARIABLE.encode():
            return value.decode(errors="replace")
    return None


def kill_carriers(marker: str) -> list[int]:
    """SIGKILL every process whose engine marker starts with `marker`; returns their pids."""
    wanted = f"{MARKER_VARIABLE}={marker}".encode()
    killed = []
    for pid in carriers_of(marker):
        if pid == os.getpid():
            continue
        with suppress(OSError):  # it ended by itself in between
            descriptor = os.pidfd_open(pid)
            try:
                if _carries(pid, wanted):
                    signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                    killed.append(pid)
            finally:
                os.close(descriptor)
    return killed


def kill_started_at(pid: int, ticks: int) -> bool:
    """SIGKILL the process that has this pid since then; False where it has ended."""
    with suppress(OSError):
        descriptor = os.pidfd_open(pid)
        try:
            fields = _stat(pid)
            if fields is not None and int(fields[19]) == ticks and fields[0] != b"Z":
                signal.pidfd_send_signal(descriptor, signal.SIGKILL)
                return True
        finally:
            os.close(descriptor)
    return False


def _stat(pid: int) -> list[bytes] | None:
    """The fields of its `stat` from the state on; None where there is none."""
    try:
        stat = (_PROC / str(pid) / "stat").read_bytes()
    except OSError:
        return None
    # The name, in parentheses, may hold blanks and parentheses.
    return stat.rpartition(b")")[2].split()


def _carries(pid: int, wanted: bytes) -> bool:
    return any(entry.startswith(wanted) for entry in _environment(pid))


def _environment(pid: int) -> list[bytes]:
    try:
        return (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return []  # gone, or somebody else's
