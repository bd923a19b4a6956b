"""Whose engine a process is, as far as the kernel tells."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from harness_kit.waiting import wait_until
from pool_managerd.engine_ledger import EngineLedger
from pool_managerd.launch_command import MARKER_VARIABLE
from pool_managerd.processes import start_ticks

RUN = "0123456789abcdef" * 2
Start = Callable[[dict[str, str]], int]


@pytest.fixture
def start() -> Iterator[Start]:
    """Starts a process in a session of its own, with this environment and no more."""
    running: list[subprocess.Popen[bytes]] = []

    def start(environment: dict[str, str]) -> int:
        process = subprocess.Popen(
            ["/bin/cat"], stdin=subprocess.PIPE, env=environment, start_new_session=True
        )
        running.append(process)
        name = Path(f"/proc/{process.pid}/comm")
        # Before it has become cat it still shows our own environment.
        wait_until(lambda: name.read_text().strip() == "cat", 10.0, "the process runs")
        return process.pid

    yield start
    for process in running:
        process.communicate()


@pytest.fixture
def ledger(tmp_path: Path) -> EngineLedger:
    return EngineLedger(tmp_path / "engines.json", RUN)


@pytest.mark.req("ORCH-3028", partial="SLO attainment")
def test_a_process_with_the_marker_of_an_engine_is_that_engine_s(
    ledger: EngineLedger, start: Start
) -> None:
    own = start({MARKER_VARIABLE: f"{RUN}:pool-a/pool-a-1;"})
    of_another_run = start({MARKER_VARIABLE: f"{'f' * 32}:pool-a/pool-a-1;"})

    assert ledger.owner_of(own) == ("pool-a", "pool-a-1")
    assert ledger.owner_of(of_another_run) is None


def test_a_process_that_hides_its_environment_is_known_by_its_session(
    ledger: EngineLedger, start: Start
) -> None:
    engine, stranger = start({}), start({})
    ledger.add("p", "p-0", engine)

    assert ledger.owner_of(engine) == ("p", "p-0")
    assert ledger.owner_of(stranger) is None
    assert ledger.owner_of(os.getpid()) is None


def test_a_process_that_is_gone_is_nobody_s(ledger: EngineLedger) -> None:
    with subprocess.Popen(["/bin/true"]) as process:
        process.wait()

    assert ledger.owner_of(process.pid) is None


@pytest.mark.req("OC-POOL-3010", partial="what it left is found by its marker")
def test_an_engine_without_a_marker_is_ended_by_its_pid_and_start_and_nobody_else_is(
    ledger: EngineLedger, tmp_path: Path, start: Start
) -> None:
    engine, worker, later = start({}), start({}), start({})
    ledger.add("p", "p-0", engine)
    ticks = start_ticks(worker)
    assert ticks is not None

    ledger.note_workers(engine, [(worker, ticks), (later, ticks - 1)])
    reaped = EngineLedger(tmp_path / "engines.json", "f" * 32).reap_leftovers()

    assert reaped == [engine, worker]
    assert ledger.owner_of(later) is None
    os.kill(later, 0)  # it is there
