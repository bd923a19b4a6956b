"""The pool host with the real engine and the real small model."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from harness_kit.scripted_engine import ReplicaRecorder
from harness_kit.waiting import wait_until, wait_until_async
from pool_managerd.listen_port import free_port, says_port_taken
from pool_managerd.model_files import SMOLLM2_SHA256
from pool_managerd.observer import CauseCode
from pool_managerd.pool_host import PoolHost
from pool_managerd.processes import carriers_of, start_ticks
from pool_managerd.settings import LaunchSettings, PoolSettings
from worker_adapters.llamacpp_http.client import LlamaCppAdapter

READY_S = 30.0


def host_of(pool: PoolSettings, run_dir: Path, recorder: ReplicaRecorder) -> PoolHost:
    return PoolHost(
        [pool],
        {"llamacpp": LlamaCppAdapter()},
        recorder,
        cpu_carve_out=True,
        run_dir=run_dir,
        clock=lambda: int(time.time() * 1000),
        jitter=lambda: 0.0,
    )


@pytest.mark.req("ORCH-3002")
@pytest.mark.req("ORCH-3032")
@pytest.mark.req("ORCH-3049", partial="a self-test that fails")
@pytest.mark.req("OC-POOL-3001")
@pytest.mark.req("OC-POOL-3030", partial="memory and driver figures")
def test_two_real_replicas_get_ready_survive_a_kill_and_leave_nothing_behind(
    tmp_path: Path,
) -> None:
    recorder = ReplicaRecorder()
    pool = PoolSettings(
        "demo",
        "llamacpp",
        "builtin:smollm2",
        ctx=512,
        launch=LaunchSettings(2, args=("--parallel", "2")),
    )

    async def scenario() -> str:
        host = host_of(pool, tmp_path, recorder)
        await host.start()
        try:
            await wait_until_async(
                lambda: recorder.words().count("ready") == 2, READY_S, "two Ready"
            )
            victim = host.health("demo").replicas[0]
            assert victim.pid is not None
            os.kill(victim.pid, signal.SIGKILL)
            await wait_until_async(lambda: ("lost", victim.id) in recorder.events, 1.0, "the loss")
            await wait_until_async(
                lambda: recorder.events.count(("ready", victim.id)) == 2, READY_S, "Ready again"
            )
            health = host.health("demo")
            assert (health.live, health.ready, health.state) == (True, True, "Ready")
            assert [view.restarts for view in health.replicas] == [1, 0]
            pids = [view.pid for view in health.replicas]
        finally:
            await host.stop(10.0)
        assert [start_ticks(pid) for pid in pids if pid is not None] == [None, None]
        return host._marker

    marker = asyncio.run(scenario())

    assert list(carriers_of(marker)) == []
    assert recorder.self_tests == [True, True, True]  # before each first Ready of an engine
    for name in ("demo-0", "demo-1"):
        stood = [state for replica, state in recorder.states if replica == name]
        assert stood[:3] == ["Preloading", "SelfTest", "Ready"]
        outcomes = [word for word, replica in recorder.events if replica == name]
        assert outcomes[:2] == ["preloaded", "ready"]
    for properties in recorder.properties:
        assert properties.model_digest == f"sha256:{SMOLLM2_SHA256}"
        assert "xllamacpp-" in properties.engine_version
        assert properties.slots_total == 2
        assert properties.ctx_max == 512


@pytest.mark.req("ORCH-3037", partial="the catalog's artifacts, which come later")
def test_a_tampered_model_never_reaches_the_engine(tmp_path: Path) -> None:
    model = tmp_path / "model.gguf"
    model.write_bytes(b"GGUF, or so it says")
    recorder = ReplicaRecorder()
    pool = PoolSettings(
        "demo", "llamacpp", f"file:{model}@sha256:{SMOLLM2_SHA256}", launch=LaunchSettings(1)
    )

    async def scenario() -> None:
        host = host_of(pool, tmp_path / "run", recorder)
        await host.start()
        try:
            await wait_until_async(lambda: bool(recorder.causes), READY_S, "the refusal")
        finally:
            await host.stop(10.0)

    asyncio.run(scenario())

    assert recorder.causes[0].code is CauseCode.MODEL
    assert f"expected {SMOLLM2_SHA256}: not loaded" in recorder.causes[0].message


@contextmanager
def launcher(
    port: int, *arguments: str
) -> Iterator[tuple[subprocess.Popen[str], dict[str, object]]]:
    """Our launcher by itself, listening, with the line that said so."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "pool_managerd.llamacpp_launcher"),
            *("--model", "builtin:smollm2", "--port", str(port), "--ctx", "512", *arguments),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        events = (json.loads(line) for line in process.stdout if line.startswith('{"event"'))
        yield process, next(events)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def complete(port: int, tokens: int) -> socket.socket:
    """A streamed completion under way: its first token has arrived."""
    body = json.dumps(
        {"prompt": "Once", "n_predict": tokens, "stream": True, "ignore_eos": True}
    ).encode()
    connection = socket.create_connection(("127.0.0.1", port), timeout=READY_S)
    connection.sendall(
        b"POST /completion HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\nConnection: close\r\n\r\n" % len(body) + body
    )
    assert b"200" in connection.recv(4096)
    return connection


def test_the_launcher_says_when_it_listens_and_lets_a_decode_end_on_sigterm() -> None:
    port = free_port()
    with launcher(port) as (process, listening):
        assert listening == {
            "event": "listening",
            "host": "127.0.0.1",
            "port": port,
            "pid": process.pid,
            "model_digest": f"sha256:{SMOLLM2_SHA256}",
        }
        with complete(port, tokens=40) as connection:
            process.send_signal(signal.SIGTERM)
            answer = b"".join(iter(lambda: connection.recv(65536), b""))

        assert b'"stop":true' in answer
        assert process.wait(READY_S) == 0


def test_the_launchers_drain_is_bounded() -> None:
    port = free_port()
    with launcher(port, "--drain-s", "0.2") as (process, _), complete(port, tokens=400) as stream:
        process.send_signal(signal.SIGTERM)
        status = process.wait(READY_S)
        answer = b"".join(iter(lambda: received(stream), b""))

    assert status == 0
    assert b'"stop":true' not in answer


def received(connection: socket.socket) -> bytes:
    try:
        return connection.recv(65536)
    except ConnectionResetError:
        return b""


@pytest.mark.parametrize("busy_port", [True, False], ids=["port taken", "no such model"])
def test_a_launcher_that_cannot_serve_says_why_and_exits_1(busy_port: bool) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        model = "builtin:smollm2" if busy_port else "file:/absent.gguf"
        finished = subprocess.run(
            [
                *(sys.executable, "-P", "-m", "pool_managerd.llamacpp_launcher"),
                *("--model", model, "--port", str(taken.getsockname()[1])),
            ],
            capture_output=True,
            text=True,
            timeout=60,
        )

    assert finished.returncode == 1
    # A lost port is told from a failure by these words, and tried again at once.
    assert says_port_taken(finished.stderr.encode()) is busy_port
    assert '{"event": "failed", "message": ' in finished.stdout


STARTS_A_LAUNCHER = """
import subprocess, sys
process = subprocess.Popen([sys.executable, "-P", "-m", "pool_managerd.llamacpp_launcher",
    "--model", "builtin:smollm2", "--ctx", "512", "--port", sys.argv[1]], stdout=subprocess.PIPE)
for line in process.stdout:
    if b"listening" in line and line.startswith(b"{"):
        print(process.pid, flush=True)
"""


def test_a_real_engine_dies_with_its_killed_parent() -> None:
    parent = subprocess.Popen(
        [sys.executable, "-c", STARTS_A_LAUNCHER, str(free_port())],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert parent.stdout is not None
    try:
        engine = int(parent.stdout.readline())
        assert start_ticks(engine) is not None
    finally:
        parent.kill()
        parent.wait()
        parent.stdout.close()

    wait_until(lambda: start_ticks(engine) is None, 20.0, "the engine's death")
