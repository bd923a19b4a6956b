"""CPUs near an engine's GPUs, in its command line: as text and back, and how it stays on them.

Off a task's path. The launchers import this before they become an engine: no third-party imports.
Invariant: an engine is never given a CPU that the service itself may not use, and never none.
Requirements: ORCH-3013.
"""

from __future__ import annotations

import os
from collections.abc import Iterable


def cpu_list(cpus: Iterable[int]) -> str:
    """CPU numbers as the kernel writes them, `0-3,8`."""
    runs: list[list[int]] = []
    for cpu in sorted(set(cpus)):
        if runs and runs[-1][1] == cpu - 1:
            runs[-1][1] = cpu
        else:
            runs.append([cpu, cpu])
    return ",".join(f"{a}" if a == b else f"{a}-{b}" for a, b in runs)


def cpus_in(text: str) -> frozenset[int]:
    """The numbers of such a list. Raises ValueError for anything else."""
    found: set[int] = set()
    for run in text.split(","):
        first, dash, last = run.partition("-")
        found.update(range(int(first), int(last if dash else first) + 1))
    return frozenset(found)


def stay_near(cpus: frozenset[int]) -> None:
    """Run this process and what it starts on those of `cpus` that it may use; where that is none,
    or the kernel refuses, it runs wherever it may."""
    allowed = os.sched_getaffinity(0) & cpus
    if allowed:
        try:
            os.sched_setaffinity(0, allowed)
        except OSError:
            return  # a hint, not a condition
