"""What the kernel says of an engine's end: its count of memory kills, and its log where readable.

Between a launched engine's exit and `failure_classes`. Invariant: reading never blocks, never
raises, and costs a bounded number of records; on a host that shows nothing the evidence is empty.
Requirements: ORCH-3039, ORCH-3053.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

# A record of /dev/kmsg is at most 8 KiB (CONSOLE_EXT_LOG_MAX).
RECORD_BYTES = 8192
RECORDS_MAX = 4096

_PROC = Path("/proc")
_CGROUPS = Path("/sys/fs/cgroup")
_OOM_KILL = re.compile(rb"^oom_kill (\d+)$", re.MULTILINE)


class MemoryKills:
    """The kernel's counts of processes killed for want of memory: the host's (`/proc/vmstat`) and
    that of our control group (v2 `memory.events`, v1 `memory.oom_control`)."""

    def __init__(self, proc: Path = _PROC, cgroups: Path = _CGROUPS) -> None:
        self._files = [proc / "vmstat"]
        for line in _text(proc / "self" / "cgroup").decode(errors="replace").splitlines():
            _, controllers, path = [*line.split(":", 2), "", ""][:3]
            group = path.lstrip("/")
            if not controllers:
                self._files.append(cgroups / group / "memory.events")
            elif "memory" in controllers.split(","):
                self._files.append(cgroups / "memory" / group / "memory.oom_control")

    def count(self) -> int:
        """A number that has grown when a process was killed since it was last asked for."""
        return sum(int(count) for file in self._files for count in _OOM_KILL.findall(_text(file)))


class KernelLog:
    """The kernel's log from now on, as far as this process may read it."""

    def __init__(self, device: Path = Path("/dev/kmsg")) -> None:
        self._descriptor = -1
        try:
            self._descriptor = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            os.lseek(self._descriptor, 0, os.SEEK_END)
        except OSError:
            self.close()

    def lines(self) -> tuple[str, ...]:
        """The messages since the start, or since the last call."""
        messages = []
        for _ in range(RECORDS_MAX if self._descriptor != -1 else 0):
            try:
                record = os.read(self._descriptor, RECORD_BYTES)
            except BrokenPipeError:
                continue  # records were overwritten before they were read
            except OSError:
                break  # EAGAIN: that was all
            if not record:
                break
            # "priority,sequence,microseconds,flags;message" and lines of properties.
            head, _, rest = record.decode(errors="replace").partition(";")
            messages.append((rest or head).partition("\n")[0])
        return tuple(messages)

    def close(self) -> None:
        """Read no more."""
        if self._descriptor != -1:
            os.close(self._descriptor)
            self._descriptor = -1


def _text(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""
