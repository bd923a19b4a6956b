"""Processes of the bench: start, wait until they listen, CPU and memory of a tree, stop.

Every measured CPU figure comes from here: utime + stime of a process and all its descendants,
all threads, from /proc (10 ms ticks, scaled by the kernel to real run time). Invariant: what was
started is stopped, by pid, with whatever it left behind.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

TICKS_PER_S = os.sysconf("SC_CLK_TCK")
HOST = "127.0.0.1"
POLL_S = 0.05
CALM_CORES, CALM_LOOK_S = 0.25, 0.5  # what a quiet machine uses, and how long to look
STOP_S = 15.0  # above the service's own shutdown time (10 s)


class NotReady(Exception):
    """A process ended, or did not get ready in time."""


def stat_fields(stat: str) -> list[str]:
    """Fields of /proc/PID/stat from `state` (index 0) on; the name may hold blanks and brackets."""
    return stat[stat.rindex(")") + 2 :].split()


def tree(pid: int) -> list[int]:
    """The process and all its descendants, as they are now."""
    children: dict[int, list[int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit() and (fields := _stat(int(entry))):
            children.setdefault(int(fields[1]), []).append(int(entry))
    found, todo = [], [pid]
    while todo:
        parent = todo.pop()
        found.append(parent)
        todo += children.get(parent, [])
    return found


def _stat(pid: int) -> list[str] | None:
    try:
        return stat_fields(Path(f"/proc/{pid}/stat").read_text())
    except OSError:  # it has ended
        return None


def cpu_s(pids: Sequence[int]) -> float:
    """Seconds of utime + stime that these processes used so far."""
    ticks = 0
    for pid in pids:
        if fields := _stat(pid):
            ticks += int(fields[11]) + int(fields[12])
    return ticks / TICKS_PER_S


def peak_rss_mib(pids: Sequence[int]) -> float:
    """Sum of the processes' peak resident sizes."""
    kib = 0
    for pid in pids:
        try:
            status = Path(f"/proc/{pid}/status").read_text()
        except OSError:
            continue
        kib += sum(int(line.split()[1]) for line in status.splitlines() if line[:6] == "VmHWM:")
    return kib / 1024


def foreign_cpu_s(mine: Sequence[int]) -> float:
    """Seconds that all other processes (and their reaped children) used so far."""
    ticks = 0
    for entry in os.listdir("/proc"):
        if entry.isdigit() and int(entry) not in mine and (fields := _stat(int(entry))):
            ticks += sum(int(value) for value in fields[11:15])
    return ticks / TICKS_PER_S


def wait_calm(mine: Sequence[int], at_most_s: float) -> None:
    """Wait until other processes use less than `CALM_CORES`, or for `at_most_s`."""
    end_s = time.monotonic() + at_most_s
    while time.monotonic() < end_s:
        before_s, used_s = time.monotonic(), foreign_cpu_s(mine)
        time.sleep(CALM_LOOK_S)
        if foreign_cpu_s(mine) - used_s < CALM_CORES * (time.monotonic() - before_s):
            return


def free_port() -> int:
    """A TCP port that was free a moment ago (for peers that cannot pick one themselves)."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        port: int = probe.getsockname()[1]
        return port


def request_json(
    port: int,
    path: str,
    body: Mapping[str, Any] | None = None,
    fields: Mapping[str, str] | None = None,
) -> Any:
    """One JSON exchange outside any measured phase. Raises OSError on failure."""
    request = urllib.request.Request(
        f"http://{HOST}:{port}{path}",
        data=None if body is None else json.dumps(body).encode(),
        headers={"Content-Type": "application/json", **(fields or {})},
    )
    with urllib.request.urlopen(request, timeout=10) as answer:
        return json.loads(answer.read() or b"null")


def wait_until(ready: Callable[[], bool], what: str, timeout_s: float = 60.0) -> None:
    """Poll until `ready`. Raises NotReady, naming `what`, after `timeout_s`."""
    end_s = time.monotonic() + timeout_s
    while not ready():
        if time.monotonic() > end_s:
            raise NotReady(f"{what}: not within {timeout_s:.0f} s")
        time.sleep(POLL_S)


class Process:
    """A started program; stdout and stderr go to a file, as in a deployment."""

    def __init__(
        self,
        command: Sequence[str],
        log: Path,
        environment: Mapping[str, str] | None = None,
        cwd: Path | None = None,
    ) -> None:
        self.log = log
        self._log_start = log.stat().st_size if log.exists() else 0
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                command,
                env={**os.environ, **(environment or {})},
                cwd=cwd,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        self.pid = self._popen.pid

    def check_alive(self) -> None:
        """Raises NotReady, with the end of its log, when it has ended."""
        status = self._popen.poll()
        if status is not None:
            tail = self.log.read_text(errors="replace")[self._log_start :][-1500:]
            raise NotReady(f"ended with status {status}: {tail}")

    def wait_listening(self, timeout_s: float = 60.0) -> int:
        """The port of its `"event": "listening"` line. Raises NotReady."""
        found: list[int] = []

        def announced() -> bool:
            self.check_alive()
            for line in self.log.read_bytes()[self._log_start :].splitlines():
                if b'"listening"' in line and line.endswith(b"}"):
                    found.append(int(json.loads(line)["port"]))
                    return True
            return False

        wait_until(announced, f"listening line in {self.log.name}", timeout_s)
        return found[0]

    def wait_answering(self, ask: Callable[[], object], timeout_s: float = 60.0) -> None:
        """Wait until `ask` raises no OSError. Raises NotReady."""

        def answers() -> bool:
            self.check_alive()
            try:
                ask()
            except (OSError, urllib.error.URLError):
                return False
            return True

        wait_until(answers, f"answer of {self.log.name}", timeout_s)

    def tree(self) -> list[int]:
        """Its pid and those of its descendants."""
        return tree(self.pid)

    def stop(self) -> None:
        """SIGTERM, then SIGKILL for it and whatever it left behind."""
        descendants = self.tree()[1:]
        if self._popen.poll() is None:
            self._popen.terminate()
            try:
                self._popen.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._popen.kill()
                self._popen.wait()
        for pid in descendants:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                continue
