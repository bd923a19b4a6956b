"""The relay measure: CPU of a peer per task and per token, and what it does to time.

Phases, one after another, on one started peer: one-token requests from 16 clients (with and
without delayed ACKs in the client), a firehose of 32 streams, and 256 streams at 20 tokens/s
whose starts are spread over a second. A task is one chat request for a router and POST + stream
for the service. Invariant: CPU per token is what is left after the phase's requests are taken off
at the price of the 16-client phase.
"""

from __future__ import annotations

import asyncio
import gc
import os
import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from bench import proc
from bench.load import ClosedLoop, ClosedLoopRun, Outcome
from bench.peers import Target

TASK_CONNECTIONS = 16
FIREHOSE_STREAMS, FIREHOSE_TOKENS = 32, 1000
PACED_STREAMS, PACED_INTERVAL_MS, PACED_RAMP_S = 256, 50.0, 1.0


@dataclass(frozen=True, slots=True)
class Pace:
    """How long phases are: `seconds` of each closed loop, tokens per paced stream; and how long at
    most each phase waits first for other processes to be quiet."""

    seconds: float
    paced_tokens: int
    calm_s: float


@dataclass(frozen=True, slots=True)
class Measured:
    """One phase: what the client saw and what everybody used.

    `foreign_cores` is how many cores other processes used meanwhile: the noise of the machine.
    """

    outcome: Outcome
    peer_cpu_s: float
    engine_cpu_s: float
    client_cpu_s: float
    foreign_cores: float


def measure(target: Target, tokens: int, settings: ClosedLoop, calm_s: float = 0.0) -> Measured:
    """Run one closed-loop phase against a peer, once the machine is calm."""
    run = ClosedLoopRun(proc.HOST, target.port, target.dialect(tokens), settings)
    engine = [target.engine.process.pid]
    mine = [*target.pids, *engine, os.getpid()]
    proc.wait_calm(mine, calm_s)
    gc.collect()
    gc.disable()  # the client's, not the peer's
    try:
        foreign, peer, upstream = proc.foreign_cpu_s(mine), proc.cpu_s(target.pids), 0.0
        upstream, client, start_s = proc.cpu_s(engine), time.process_time(), time.perf_counter()
        outcome = asyncio.run(run.go())
        wall_s = time.perf_counter() - start_s
        return Measured(
            outcome,
            peer_cpu_s=proc.cpu_s(target.pids) - peer,
            engine_cpu_s=proc.cpu_s(engine) - upstream,
            client_cpu_s=time.process_time() - client,
            foreign_cores=(proc.foreign_cpu_s(mine) - foreign) / wall_s,
        )
    finally:
        gc.enable()


@dataclass(frozen=True, slots=True)
class Relayed:
    """One repetition of one peer."""

    peer: str
    repetition: int
    task: Measured
    task_quickack: Measured
    firehose: Measured
    paced: Measured
    peak_rss_mib: float

    @property
    def task_ms(self) -> float:
        """CPU per task, a normal client."""
        return _per_task_ms(self.task)

    @property
    def task_quickack_ms(self) -> float:
        """CPU per task, a client that does not delay its ACKs."""
        return _per_task_ms(self.task_quickack)

    @property
    def firehose_us(self) -> float:
        """CPU per token of the firehose."""
        return self._per_token_us(self.firehose)

    @property
    def paced_us(self) -> float:
        """CPU per token at serving pace."""
        return self._per_token_us(self.paced)

    @property
    def errors(self) -> int:
        """Requests that did not go well, over all phases."""
        return sum(phase.outcome.errors for phase in self.phases().values())

    def phases(self) -> dict[str, Measured]:
        """By name."""
        return {
            "task": self.task,
            "task_quickack": self.task_quickack,
            "firehose": self.firehose,
            "paced": self.paced,
        }

    def _per_token_us(self, phase: Measured) -> float:
        requests_s = phase.outcome.requests * self.task_ms / 1e3
        return 1e6 * (phase.peer_cpu_s - requests_s) / max(1, phase.outcome.tokens)

    def figures(self) -> dict[str, Any]:
        """For the JSON report."""
        return {
            "peer": self.peer,
            "repetition": self.repetition,
            "task_ms": self.task_ms,
            "task_quickack_ms": self.task_quickack_ms,
            "firehose_us": self.firehose_us,
            "paced_us": self.paced_us,
            "peak_rss_mib": self.peak_rss_mib,
            "errors": self.errors,
            "phases": {name: asdict(phase) for name, phase in self.phases().items()},
        }


def _per_task_ms(phase: Measured) -> float:
    return 1e3 * phase.peer_cpu_s / max(1, phase.outcome.requests)


def relay(target: Target, repetition: int, pace: Pace) -> Relayed:
    """All phases on a started peer."""
    target.engine.pace(0)
    measure(target, 1, ClosedLoop(TASK_CONNECTIONS, seconds=min(1.0, pace.seconds)))  # warm up
    task = ClosedLoop(TASK_CONNECTIONS, seconds=pace.seconds)
    firehose = ClosedLoop(FIREHOSE_STREAMS, seconds=pace.seconds)
    return Relayed(
        target.name,
        repetition,
        measure(target, 1, task, pace.calm_s),
        measure(target, 1, replace(task, quickack=True), pace.calm_s),
        measure(target, FIREHOSE_TOKENS, firehose, pace.calm_s),
        paced(target, pace),
        proc.peak_rss_mib(target.pids),
    )


def paced(target: Target, pace: Pace) -> Measured:
    """The phase that resembles serving: one token per wake-up."""
    target.engine.pace(PACED_INTERVAL_MS)
    settings = ClosedLoop(PACED_STREAMS, requests=PACED_STREAMS, ramp_s=PACED_RAMP_S, gaps=True)
    try:
        return measure(target, pace.paced_tokens, settings, pace.calm_s)
    finally:
        target.engine.pace(0)
