"""The faults of a chaos run and their seeded schedule.

A fault is a context: inside it something is broken, after it the thing is whole again and the
service has to recover. Lanes run side by side, so that faults of different parts overlap; within a
lane the next fault waits until the one before is recovered from. Each round of a lane has every
kind once, in a seeded order, so that no kind is missed however short the run is.
Requirements: ORCH-3051, ORCH-3038, ORCH-3039, ORCH-3053, ORCH-3201, ORCH-3203.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Protocol

from harness_kit import nvml_library
from harness_kit.fault_proxy import FaultProxy, Mode
from harness_kit.nvml_library import ScriptedNvml
from harness_kit.service_process import ServiceProcess
from harness_kit.state_disk import StateDisk
from harness_kit.waiting import wait_until

# A start of everything on a machine that is busy; a launched engine backs off for up to 30 s.
RECOVERED_S = 90.0
# Three seconds without an answer make an engine lost: some halts are shorter, some longer.
HOLD_S = (0.2, 4.0)
PAUSE_S = (0.1, 1.0)
# A launched engine that finds no GPU backs off longer each time.
GPU_LOST_S = (0.1, 1.0)
FATAL_XID = 79

Broken = Callable[[random.Random], AbstractContextManager[None]]


class Engine(Protocol):
    """An engine in a process of its own."""

    @property
    def pid(self) -> int: ...
    def launch(self) -> None: ...
    def kill(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Survived:
    """One fault that the service recovered from; milliseconds from its end to recovery."""

    lane: str
    kind: str
    recovery_ms: float


@dataclass(frozen=True, slots=True)
class Lane:
    """Faults that never overlap with each other; `recovered` says that all is whole again."""

    name: str
    kinds: dict[str, Broken]
    recovered: Callable[[], bool]
    leads: bool = True
    """Whether the run waits for a round of it; the others go on beside those that lead."""


def run_lanes(
    lanes: Sequence[Lane],
    threads: Executor,
    seed: str,
    may_end: Callable[[], bool] = lambda: True,
) -> list[Survived]:
    """Run the lanes side by side, until each that leads has done a round and the run may end;
    what was survived.

    Processes end with the thread that launched them (PR_SET_PDEATHSIG): `threads`, one a lane,
    outlive the engines. AssertionError where the service did not recover within `RECOVERED_S`.
    """
    survived: list[Survived] = []
    failed = threading.Event()
    begun = {lane.name for lane in lanes if lane.leads}  # lanes in their first round

    def over() -> bool:
        return failed.is_set() or (not begun and may_end())

    def run(lane: Lane) -> None:
        rng = random.Random(f"{seed}/{lane.name}")
        try:
            while not over():
                for kind in rng.sample(sorted(lane.kinds), len(lane.kinds)):
                    survived.append(_survive(lane, kind, rng))
                    if over():
                        return
                begun.discard(lane.name)
        except BaseException:
            failed.set()
            raise

    for running in [threads.submit(run, lane) for lane in lanes]:
        running.result()
    return survived


def _survive(lane: Lane, kind: str, rng: random.Random) -> Survived:
    hold(rng, PAUSE_S)
    with lane.kinds[kind](rng):
        pass
    ended_s = time.monotonic()
    wait_until(lane.recovered, RECOVERED_S, f"the recovery of {lane.name} from {kind}")
    return Survived(lane.name, kind, round((time.monotonic() - ended_s) * 1000, 1))


def hold(rng: random.Random, bounds_s: tuple[float, float] = HOLD_S) -> None:
    """Leave things as they are for a seeded time."""
    threading.Event().wait(rng.uniform(*bounds_s))


# --- engines, behind their proxies ----------------------------------------------------------------


def engine_faults(engines: Sequence[tuple[Engine, FaultProxy]]) -> dict[str, Broken]:
    """What happens to one of the engines, or to the connections to it."""

    @contextmanager
    def kill(rng: random.Random) -> Iterator[None]:
        engine, _ = rng.choice(engines)
        engine.kill()
        hold(rng)
        engine.launch()
        yield

    @contextmanager
    def stop(rng: random.Random) -> Iterator[None]:
        engine, _ = rng.choice(engines)
        with halted(engine.pid):
            hold(rng)
        yield

    @contextmanager
    def reset(rng: random.Random) -> Iterator[None]:
        rng.choice(engines)[1].reset()
        yield

    def proxied(mode: Mode) -> Broken:
        @contextmanager
        def misbehave(rng: random.Random) -> Iterator[None]:
            _, proxy = rng.choice(engines)
            proxy.misbehave(mode)
            hold(rng)
            proxy.lift()
            yield

        return misbehave

    modes = (Mode.GARBLED, Mode.SLOW, Mode.HALF_OPEN, Mode.HTTP_500)
    return {
        "engine killed": kill,
        "engine stopped": stop,
        "connections reset": reset,
        **{f"engine {mode}": proxied(mode) for mode in modes},
    }


@contextmanager
def halted(pid: int) -> Iterator[None]:
    """SIGSTOP, and SIGCONT in the end."""
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


# --- GPUs of launched engines ---------------------------------------------------------------------


def gpu_faults(service: ServiceProcess, pool_id: str, nvml: ScriptedNvml) -> dict[str, Broken]:
    """Driver, memory and GPU 0 of a launched pool; each is held until the service has counted it,
    since one that comes while another is dealt with is no further one."""
    errors = itertools.count(1)

    @contextmanager
    def counted(metric: str, reason: str) -> Iterator[None]:
        before = service.metric(metric, pool_id=pool_id, reason=reason)
        yield
        wait_until(
            lambda: service.metric(metric, pool_id=pool_id, reason=reason) > before,
            RECOVERED_S,
            f"{metric} of {reason}",
        )

    @contextmanager
    def xid(_: random.Random) -> Iterator[None]:
        with counted("driver_reset_events_total", "xid"):
            nvml.xid(0, FATAL_XID)
        yield

    @contextmanager
    def ecc(_: random.Random) -> Iterator[None]:
        with counted("driver_reset_events_total", "ecc"):
            nvml.set(0, ecc=next(errors))
        yield

    @contextmanager
    def lost(rng: random.Random) -> Iterator[None]:
        with counted("driver_reset_events_total", "gpu-lost"):
            nvml.set(0, lost=nvml_library.LOST)
        hold(rng, GPU_LOST_S)
        nvml.set(0, lost=None)
        yield

    @contextmanager
    def exhausted(rng: random.Random) -> Iterator[None]:
        with counted("oom_events_total", "vram"):
            os.kill(rng.choice(sorted(service.engine_pids().values())), signal.SIGUSR1)
        yield

    return {"xid": xid, "ecc": ecc, "gpu lost": lost, "vram exhausted": exhausted}


# --- the orchestrator -----------------------------------------------------------------------------


def orchestrator_faults(
    service: ServiceProcess, disk: StateDisk, refuses: Callable[[], None]
) -> dict[str, Broken]:
    """The process and its disk; `refuses` asks for work until it is refused for want of room."""

    @contextmanager
    def stop(rng: random.Random) -> Iterator[None]:
        with halted(service.pid):
            hold(rng)
        yield

    @contextmanager
    def kill(_: random.Random) -> Iterator[None]:
        service.kill()
        service.start(until_ready=False)
        yield

    @contextmanager
    def full(rng: random.Random) -> Iterator[None]:
        disk.fill(service.pid)
        try:
            refuses()
            hold(rng)
        finally:
            disk.free(service.pid)
        yield

    @contextmanager
    def kill_when_full(rng: random.Random) -> Iterator[None]:
        disk.fill(service.pid)
        try:
            refuses()
            hold(rng)
        finally:
            service.kill()
            disk.free(None)
        service.start(until_ready=False)
        yield

    return {
        "orchestrator stopped": stop,
        "orchestrator killed": kill,
        "disk full": full,
        "orchestrator killed with a full disk": kill_when_full,
    }
