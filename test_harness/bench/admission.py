"""The admission measure: POST /v1/tasks alone, journal on, against the running service.

Closed loop at 1 and 64 clients gives the rate, open loop at 1,000 requests/s over 64 connections
the latency of the 202. The tasks are one token long and really run. Invariant: a phase ends when
the engine has answered every admitted task, so that a rate is not borrowed from the queue
unseen: `drain_s` says how far behind the engine's side was, and CPU covers the whole tasks.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from dataclasses import asdict, dataclass
from typing import Any

from bench import proc
from bench.load import ClosedLoop, ClosedLoopRun, Outcome
from bench.open_loop import OpenLoop, OpenLoopRun
from bench.peers import Target

CLOSED_CONNECTIONS = (1, 64)
OPEN_CONNECTIONS, OPEN_RATE_PER_S = 64, 1000.0


@dataclass(frozen=True, slots=True)
class Admitted:
    """One phase of POSTs."""

    outcome: Outcome
    peer_cpu_s: float
    drain_s: float

    @property
    def task_ms(self) -> float:
        """CPU per task, from POST to the end of its log, with no reader."""
        return 1e3 * self.peer_cpu_s / max(1, self.outcome.requests)


@dataclass(frozen=True, slots=True)
class Admission:
    """One repetition: closed loops by number of clients, and the open loop."""

    closed: dict[int, Admitted]
    open: Admitted

    @property
    def errors(self) -> int:
        """Requests without a 202, over all phases."""
        phases = (*self.closed.values(), self.open)
        return sum(phase.outcome.errors for phase in phases)

    def figures(self) -> dict[str, Any]:
        """For the JSON report."""
        named = {f"closed_{clients}": phase for clients, phase in self.closed.items()}
        return {
            name: {"task_ms": phase.task_ms, **asdict(phase)}
            for name, phase in (named | {"open": self.open}).items()
        }


def admission(target: Target, seconds: float, calm_s: float = 0.0) -> Admission:
    """All phases on a started service, `seconds` each, begun once the machine is calm."""
    target.engine.pace(0)
    _measure(target, ClosedLoop(16, seconds=min(1.0, seconds)))  # warm up
    closed = {
        clients: _measure(target, ClosedLoop(clients, seconds=seconds), calm_s)
        for clients in CLOSED_CONNECTIONS
    }
    open_loop = OpenLoop(OPEN_CONNECTIONS, OPEN_RATE_PER_S, seconds)
    return Admission(closed, _measure(target, open_loop, calm_s))


def _measure(target: Target, settings: ClosedLoop | OpenLoop, calm_s: float = 0.0) -> Admitted:
    dialect = target.dialect(1, admit_only=True)
    run: ClosedLoopRun | OpenLoopRun
    if isinstance(settings, OpenLoop):
        run = OpenLoopRun(proc.HOST, target.port, dialect, settings)
    else:
        run = ClosedLoopRun(proc.HOST, target.port, dialect, settings)
    proc.wait_calm([*target.pids, target.engine.process.pid, os.getpid()], calm_s)
    completed = target.engine.stats()["completed"]
    gc.collect()
    gc.disable()
    try:
        before = proc.cpu_s(target.pids)
        outcome = asyncio.run(run.go())
    finally:
        gc.enable()
    answered_s = time.perf_counter()
    # A request in flight at the end of a closed loop is finished by then; failed ones never ran.
    target.engine.wait_idle(completed + outcome.requests)
    return Admitted(outcome, proc.cpu_s(target.pids) - before, time.perf_counter() - answered_s)
