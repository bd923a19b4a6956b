"""Where the service's time goes: a sampling profile of its process during a phase.

py-spy samples from outside, native frames included where the machine allows; the service runs
unchanged. Invariant: profiled phases are never the measured ones (sampling pauses the process).
"""

from __future__ import annotations

import signal
import subprocess
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from bench import peers

RATE_HZ = 250
STOP_S = 60.0  # py-spy resolves symbols before it writes


def self_times(collapsed: str) -> list[tuple[str, float]]:
    """Frames of a collapsed-stack profile by share of self time (0 to 1), most expensive first.

    A line is `frame;frame;frame COUNT`, outermost frame first.
    """
    counts: Counter[str] = Counter()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack:
            counts[stack.rsplit(";", 1)[-1]] += int(count)
    total = sum(counts.values())
    return [(frame, count / total) for frame, count in counts.most_common()]


def python_times(collapsed: str) -> list[tuple[str, float]]:
    """Python functions by share of time in them and in the native code they call (0 to 1).

    Time with no Python frame at all (the event loop's own, interpreter start) is `(native)`.
    """
    counts: Counter[str] = Counter()
    for line in collapsed.splitlines():
        stack, _, count = line.rpartition(" ")
        if stack:
            frames = (frame for frame in reversed(stack.split(";")) if ".py:" in frame)
            counts[next(frames, "(native)")] += int(count)
    total = sum(counts.values())
    return [(frame, count / total) for frame, count in counts.most_common()]


def sampled(pid: int, output: Path, phase: Callable[[], object], *, native: bool = True) -> str:
    """Run `phase` while sampling process `pid`; the collapsed stacks, also left in `output`.

    Raises:
        subprocess.CalledProcessError: py-spy may not attach on this machine.
    """
    command = [
        str(peers.tool("py-spy", "py-spy")), "record", "--pid", str(pid), "--format", "raw",
        "--rate", str(RATE_HZ), "--function", "--output", str(output),
        *(["--native"] if native else []),
    ]  # fmt: skip
    with output.with_suffix(".log").open("wb") as log:
        sampler = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
    try:
        phase()
    finally:
        sampler.send_signal(signal.SIGINT)
        status = sampler.wait(STOP_S)
    if status != 0:
        said = output.with_suffix(".log").read_text(errors="replace")
        raise subprocess.CalledProcessError(status, command, said)
    return output.read_text()
