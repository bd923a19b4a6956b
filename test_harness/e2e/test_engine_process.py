"""Launched engines as processes: how they start, end, hang and are cleaned up after.

The engine is any program here; what the pool host asks it is scripted.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from structlog.testing import capture_logs

from harness_kit.scripted_engine import ReplicaRecorder, ScriptedAdapter, ScriptedEngine
from harness_kit.waiting import wait_until, wait_until_async
from pool_managerd import engine_process
from pool_managerd.engine_ledger import EngineLedger
from pool_managerd.observer import CauseCode
from pool_managerd.pool_host import PoolHost
from pool_managerd.processes import carriers_of, kill_carriers, start_ticks, started_by
from pool_managerd.settings import LaunchSettings, PoolSettings
from worker_adapters.adapter_api.types import Health

WAIT_S = 20.0
Play = Callable[[PoolHost, ScriptedEngine, ReplicaRecorder], Awaitable[None]]


def alive(pid: int) -> bool:
    return start_ticks(pid) is not None


def running(pid: int) -> bool:
    """It runs program code: it is neither gone nor waits for somebody to reap it."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except OSError:
        return False


def said(file: Path) -> str:
    return file.read_text() if file.exists() else ""


def play(run_dir: Path, script: str, scenario: Play, *, count: int = 1) -> ReplicaRecorder:
    """Run `scenario` against engines that are `sh -c script`, and see that nothing is left."""
    script = script.replace("{", "{{").replace("}", "}}")
    recorder = ReplicaRecorder()
    engine = ScriptedEngine()
    launch = LaunchSettings(count, ("sh", "-c", script))
    pool = PoolSettings("p", "llamacpp", "scripted", launch=launch)

    async def all_of_it() -> None:
        host = PoolHost(
            [pool],
            {"llamacpp": ScriptedAdapter(anywhere=engine)},
            recorder,
            cpu_carve_out=True,
            run_dir=run_dir,
            clock=lambda: int(time.time() * 1000),
            jitter=lambda: 0.0,
        )
        await host.start()
        try:
            await scenario(host, engine, recorder)
        finally:
            await host.stop(2.0)
        assert list(carriers_of(host._marker)) == []
        assert not (run_dir / "engines.json").exists()
        assert engine.open_clients == 0

    asyncio.run(all_of_it())
    return recorder


async def ready(host: PoolHost) -> int:
    """The pid of the first replica's engine, once it is Ready."""
    await wait_until_async(lambda: host.health("p").ready, WAIT_S, "Ready")
    pid = host.health("p").replicas[0].pid
    assert pid is not None
    return pid


@pytest.mark.req("ORCH-3001", partial="one process per replica")
def test_each_replica_is_a_process_of_its_own_session(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        await wait_until_async(lambda: recorder.words().count("ready") == 2, WAIT_S)
        views = host.health("p").replicas
        pids = [view.pid for view in views if view.pid is not None]
        assert len(set(pids)) == 2
        assert [os.getsid(pid) for pid in pids] == pids
        assert len({view.url for view in views}) == 2
        listed = json.loads((tmp_path / "engines.json").read_bytes())["engines"]
        assert {entry["pid"] for entry in listed} == set(pids)

    play(tmp_path, "exec sleep 1000", scenario, count=2)


@pytest.mark.req("OC-POOL-3003")
def test_a_dead_engine_is_noticed_at_once_with_its_last_words_and_started_again(
    tmp_path: Path,
) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        first = await ready(host)
        log = tmp_path / "p-0.log"
        await wait_until_async(lambda: log.exists() and b"everything" in log.read_bytes(), WAIT_S)
        os.kill(first, signal.SIGKILL)
        await wait_until_async(lambda: "lost" in recorder.words(), 1.0, "the loss")
        cause = recorder.causes[-1]
        assert cause.code is CauseCode.EXITED
        assert f"(pid {first}) was ended by SIGKILL" in cause.message
        assert cause.message.endswith(": loaded everything")
        second = await ready(host)
        assert second != first
        assert host.health("p").replicas[0].restarts == 1

    recorder = play(tmp_path, "echo loaded everything; exec sleep 1000", scenario)

    assert recorder.words() == ["preloaded", "ready", "lost", "restarted", "preloaded", "ready"]


def test_what_a_dead_engine_started_is_gone_before_the_next_one_starts(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        first = await ready(host)
        await wait_until_async(lambda: len(list(carriers_of(host._marker))) == 2, WAIT_S)
        (orphan,) = set(carriers_of(host._marker)) - {first}
        os.kill(first, signal.SIGKILL)
        await wait_until_async(lambda: recorder.words().count("ready") == 2, WAIT_S)
        # Ended; whether init has reaped it yet is not our business.
        assert orphan not in carriers_of(host._marker)

    play(tmp_path, "setsid sleep 1000 & exec sleep 1000", scenario)


def test_a_worker_that_lost_its_marker_ends_with_its_engine(tmp_path: Path) -> None:
    file = tmp_path / "worker"
    script = f"test -e {file} || {{ env -i sleep 1000 & echo $! > {file}; }}; exec sleep 1000"

    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        first = await ready(host)
        await wait_until_async(lambda: said(file) != "", WAIT_S, "the worker's pid")
        worker = int(said(file))
        assert running(worker)
        os.kill(first, signal.SIGKILL)
        await wait_until_async(lambda: recorder.words().count("ready") == 2, WAIT_S)
        assert not running(worker)

    play(tmp_path, script, scenario)


@pytest.mark.req("OC-POOL-3002", partial="memory is not estimated before the start")
def test_an_engine_that_cannot_load_fails_fast_and_backs_off(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        engine.health = Health.DOWN
        await wait_until_async(lambda: "restarted" in recorder.words(), WAIT_S)
        cause = recorder.causes[0]
        assert cause.code is CauseCode.EXITED
        assert cause.message.endswith("exited with status 3: out of memory")

    recorder = play(tmp_path, "echo starting; echo out of memory >&2; exit 3", scenario)

    assert recorder.words()[:2] == ["preload failed", "restarted"]
    assert "ready" not in recorder.words()


def test_a_command_that_does_not_exist_is_a_cause(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        engine.health = Health.DOWN
        await wait_until_async(lambda: "preload failed" in recorder.words(), WAIT_S)
        assert "not-a-program" in recorder.causes[0].message

    play(tmp_path, "exec not-a-program", scenario)


def test_a_port_lost_to_somebody_else_is_tried_again_without_waiting(tmp_path: Path) -> None:
    # The first two starts find their port taken.
    script = (
        f"echo x >> {tmp_path}/starts; test $(wc -l < {tmp_path}/starts) -gt 2 && exec sleep 1000;"
        "echo bind: Address already in use; exit 1"
    )

    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        engine.health = Health.DOWN
        await wait_until_async(
            lambda: (
                (tmp_path / "starts").exists() and (tmp_path / "starts").read_text().count("x") == 3
            ),
            WAIT_S,
        )
        engine.health = Health.OK
        await ready(host)

    with capture_logs() as logs:
        recorder = play(tmp_path, script, scenario)

    assert recorder.words() == ["preloaded", "ready"]
    assert [line["event"] for line in logs].count("replica.port_taken") == 2


def test_an_engine_that_ignores_sigterm_is_killed_with_all_it_started(tmp_path: Path) -> None:
    # A child in a session of its own is outside the process group, and dies all the same.
    child = tmp_path / "child"
    script = f"trap '' TERM; setsid sleep 1000 & echo $! > {child}; while :; do sleep 0.1; done"
    pids: list[int] = []

    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        pids.append(await ready(host))
        await wait_until_async(lambda: said(child) != "", WAIT_S, "the child's pid")
        pids.append(int(said(child)))
        assert set(pids) <= set(carriers_of(host._marker)), "nothing was there to be killed"

    play(tmp_path, script, scenario)

    wait_until(lambda: not any(alive(pid) for pid in pids), WAIT_S, "the end of them all")


def test_a_stopped_engine_is_lost_and_back_when_it_goes_on(tmp_path: Path) -> None:
    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        pid = await ready(host)
        os.kill(pid, signal.SIGSTOP)
        engine.silent = True
        await wait_until_async(lambda: not host.health("p").ready, WAIT_S, "the loss")
        os.kill(pid, signal.SIGCONT)
        engine.silent = False
        assert await ready(host) == pid

    recorder = play(tmp_path, "exec sleep 1000", scenario)

    assert recorder.words() == ["preloaded", "ready", "lost", "ready"]


def test_an_engine_that_hangs_is_ended_and_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pool_managerd.launched_replica.HANG_S", 0.5)

    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        pid = await ready(host)
        os.kill(pid, signal.SIGSTOP)
        engine.silent = True
        await wait_until_async(lambda: "restarted" in recorder.words(), WAIT_S, "the restart")
        engine.silent = False
        assert await ready(host) != pid
        assert not alive(pid)

    play(tmp_path, "exec sleep 1000", scenario)


def test_an_engine_with_too_little_context_is_ended(tmp_path: Path) -> None:
    recorder = ReplicaRecorder()
    engine = ScriptedEngine()  # offers 2048
    launch = LaunchSettings(1, ("sleep", "1000"))
    pool = PoolSettings("p", "llamacpp", "scripted", ctx=8192, launch=launch)

    async def scenario() -> None:
        host = PoolHost(
            [pool],
            {"llamacpp": ScriptedAdapter(anywhere=engine)},
            recorder,
            cpu_carve_out=True,
            run_dir=tmp_path,
            clock=lambda: 0,
            jitter=lambda: 0.0,
        )
        await host.start()
        await wait_until_async(lambda: "preload failed" in recorder.words(), WAIT_S)
        await wait_until_async(lambda: list(carriers_of(host._marker)) == [], WAIT_S)
        await host.stop(1.0)

    asyncio.run(scenario())

    assert recorder.causes[0].code is CauseCode.CONTEXT
    assert "8192" in recorder.causes[0].message
    assert "2048" in recorder.causes[0].message


HOSTS_AN_ENGINE = """
import asyncio, sys, time
from pathlib import Path
from harness_kit.scripted_engine import ReplicaRecorder, ScriptedAdapter, ScriptedEngine
from pool_managerd.pool_host import PoolHost
from pool_managerd.settings import LaunchSettings, PoolSettings
from worker_adapters.adapter_api.types import Health

async def main():
    up = Path(sys.argv[1]) / "up"
    children = "setsid sleep 1000 & env -i sleep 1001 & setsid env -i sleep 1002 &"
    launch = LaunchSettings(1, ("sh", "-c", f"{children} touch {up}; exec sleep 1000"))
    pool = PoolSettings("p", "llamacpp", "scripted", launch=launch)
    engine = ScriptedEngine()
    engine.health = Health.LOADING
    adapter = ScriptedAdapter(anywhere=engine)
    host = PoolHost([pool], {"llamacpp": adapter}, ReplicaRecorder(), cpu_carve_out=True,
                    run_dir=Path(sys.argv[1]), clock=lambda: 0, jitter=lambda: 0.0)
    await host.start()
    while not host.health("p").ready:
        await asyncio.sleep(0.01)
        engine.health = Health.OK if up.exists() else Health.LOADING
    print(host._marker, host.health("p").replicas[0].pid, flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def test_engines_die_with_a_killed_service_and_the_next_start_ends_what_they_left(
    tmp_path: Path,
) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOSTS_AN_ENGINE, str(tmp_path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    try:
        line = next(line for line in process.stdout if len(line.split()) == 2)
        marker, engine = line.split()[0], int(line.split()[1])
        wait_until(lambda: len(list(carriers_of(marker))) == 2, WAIT_S, "two without a marker")
        workers = dict(started_by(engine))
    finally:
        process.kill()
        process.wait()
        process.stdout.close()

    wait_until(lambda: engine not in carriers_of(marker), WAIT_S, "the engine's death")
    assert [pid for pid, ticks in workers.items() if start_ticks(pid) == ticks] == [*workers]
    reaped = EngineLedger(tmp_path / "engines.json", "f" * 32).reap_leftovers()

    # One that carries the marker, and two that cleared their environment.
    assert (len(reaped), set(reaped)) == (3, {*workers})
    wait_until(lambda: not any(running(pid) for pid in workers), WAIT_S, "their death")
    assert not (tmp_path / "engines.json").exists()


@pytest.mark.parametrize(
    "content", [b"nonsense", b'{"marker":"","engines":[]}', b'{"marker":"abc","engines":[]}']
)
def test_a_damaged_list_of_engines_kills_nobody(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "engines.json").write_bytes(content)
    bystander = subprocess.Popen(["sleep", "1000"], env={"LLAMA_ORCH_ENGINE": "abcdef"})
    try:
        reaped = EngineLedger(tmp_path / "engines.json", "f" * 32).reap_leftovers()

        assert reaped == []
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()


def test_looking_for_what_an_engine_left_keeps_the_event_loop_free(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking, others_ran = threading.Event(), threading.Event()

    def slow(marker: str) -> list[int]:
        looking.set()
        assert others_ran.wait(5.0), "the event loop stands still meanwhile"
        return kill_carriers(marker)

    async def scenario(host: PoolHost, engine: ScriptedEngine, recorder: ReplicaRecorder) -> None:
        os.kill(await ready(host), signal.SIGKILL)
        await wait_until_async(looking.is_set, WAIT_S, "the look")
        others_ran.set()
        await wait_until_async(lambda: "restarted" in recorder.words(), WAIT_S, "a restart")

    monkeypatch.setattr(engine_process, "kill_carriers", slow)
    recorder = play(tmp_path, "exec sleep 1000", scenario)

    assert recorder.words()[:3] == ["preloaded", "ready", "lost"]
