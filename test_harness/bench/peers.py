"""What is measured: the service, SGLang's Rust router, and the engine itself.

Each peer is one process in front of one fresh fake engine. Invariant: the service runs as deployed:
journal with full sync on a disk, a key, metrics, logs to a file, bounded queues, no rate limits;
the router with retries, circuit breaker and health checks off, as its fastest setting.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
import venv
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from bench import proc
from bench.dialects import Dialect, OpenAiChat, OrchQueue

ROOT = Path(__file__).resolve().parents[2]
SERVICE = "llama-orch"
ROUTER = "sglang-router"
DIRECT = "direct"
PROGRAM = Path(sys.executable).with_name(SERVICE)  # installed beside the interpreter

TOOLS_VENV = ROOT / ".venv-bench"  # git-ignored; the router's requirements must not meet ours
TOOLS = {ROUTER: "sglang-router==0.3.2", "py-spy": "py-spy==0.4.3"}

MODEL_REF = "repo:bench/fake"
KEY = "bench-key-5f1d0c7e9a3b48d2a6c4e8f0"  # a key of this bench's own process, no secret
KEY_VARIABLE = "LLAMA_ORCH_BENCH_KEY"
SLOTS = 512  # above the 256 streams of the paced phase
QUEUE_CAPACITY = 200_000  # above what a closed loop of POSTs can run ahead of the engine


@dataclass(slots=True)
class Target:
    """A started peer (or the engine itself) that the client talks to."""

    name: str
    port: int
    engine: Engine
    process: proc.Process | None = None
    _pids: list[int] = field(default_factory=list)

    def dialect(self, tokens: int, *, admit_only: bool = False) -> Dialect:
        """How requests for `tokens` tokens are written to this peer."""
        host = f"{proc.HOST}:{self.port}"
        if self.name == SERVICE:
            return OrchQueue(host, tokens, KEY, MODEL_REF, admit_only=admit_only)
        return OpenAiChat(host, tokens)

    @property
    def pids(self) -> list[int]:
        """The measured tree; taken once, since listing /proc is not free."""
        if not self._pids and self.process is not None:
            self._pids = self.process.tree()
        return self._pids

    def stop(self) -> None:
        """Stop the peer, then its engine."""
        if self.process is not None:
            self.process.stop()
        self.engine.process.stop()


class Engine:
    """A fake engine in a process of its own."""

    def __init__(self, logs: Path) -> None:
        script = Path(__file__).with_name("fake_engine.py")
        command = [sys.executable, str(script), "--slots", str(SLOTS)]
        self.process = proc.Process(command, logs / "engine.log")
        self.port = self.process.wait_listening()

    def pace(self, interval_ms: float) -> None:
        """Milliseconds between two tokens of a stream; 0 is as fast as it can."""
        proc.request_json(self.port, "/control", {"interval_ms": interval_ms})

    def stats(self) -> dict[str, int]:
        """Its counters."""
        found: dict[str, int] = proc.request_json(self.port, "/stats")
        return found

    def wait_idle(self, completed: int, timeout_s: float = 120.0) -> None:
        """Wait until it has completed so many answers in all. Raises NotReady."""
        proc.wait_until(
            lambda: self.stats()["completed"] >= completed,
            f"{completed} answers of the engine",
            timeout_s,
        )


def service_config(engine_port: int, state_dir: Path) -> dict[str, Any]:
    """The configuration file of the measured service."""
    priorities = [
        {"name": name, "queue_capacity": QUEUE_CAPACITY, "weight": weight}
        for name, weight in (("interactive", 8), ("batch", 1))
    ]
    return {
        "server": {"host": proc.HOST, "port": 0, "state_dir": str(state_dir)},
        "platform": {"cpu_carve_out": True},
        "auth": {
            "enabled": True,
            "keys": [
                {
                    "id": "bench",
                    "tenant": "bench",
                    "roles": ["data", "control", "metrics"],
                    "key_env": KEY_VARIABLE,
                }
            ],
        },
        "journal": {"sync": "full"},
        "streams": {"retain_s": 60},
        "pools": [
            {
                "id": "bench",
                "engine": "llamacpp",
                "model": MODEL_REF,
                "quant": "q4_1",
                "ctx": 8192,
                "queue": {"capacity": 2 * QUEUE_CAPACITY, "full_policy": "reject"},
                "admission": {"priorities": priorities},
                "replicas": [
                    {
                        "id": "r0",
                        "url": f"http://{proc.HOST}:{engine_port}",
                        "model_digest": "sha256:" + "5f" * 32,
                    }
                ],
            }
        ],
    }


def start_service(work: Path) -> Target:
    """The service in front of a fresh engine. Raises NotReady."""
    engine = Engine(work)
    # A fresh state folder per start: an old journal would be replayed.
    state_dir = Path(tempfile.mkdtemp(prefix="state-", dir=work))
    config = state_dir.with_suffix(".yaml")
    config.write_text(yaml.safe_dump(service_config(engine.port, state_dir)))
    process = proc.Process(
        [str(PROGRAM), "serve", "--config", str(config), "--port", "0"],
        work / "service.log",
        {KEY_VARIABLE: KEY},
    )
    target = Target(SERVICE, 0, engine, process)
    try:
        target.port = process.wait_listening()
        process.wait_answering(lambda: proc.request_json(target.port, "/readyz"))
    except proc.NotReady:
        target.stop()
        raise
    return target


def start_router(work: Path) -> Target:
    """SGLang's router in front of a fresh engine. Raises NotReady."""
    python = tool(ROUTER, "python")
    engine, port = Engine(work), proc.free_port()
    process = proc.Process(
        [
            str(python), "-m", "sglang_router.launch_router",
            "--worker-urls", f"http://{proc.HOST}:{engine.port}",
            "--policy", "round_robin", "--host", proc.HOST, "--port", str(port),
            "--disable-retries", "--disable-circuit-breaker", "--disable-health-check",
            "--log-level", "warn",
            "--worker-startup-timeout-secs", "30", "--worker-startup-check-interval", "1",
            "--prometheus-host", proc.HOST, "--prometheus-port", str(proc.free_port()),
        ],
        work / "router.log",
    )  # fmt: skip
    target = Target(ROUTER, port, engine, process)
    probe = {"model": "fake", "max_tokens": 1, "messages": [{"role": "user", "content": "x"}]}
    try:
        process.wait_answering(lambda: proc.request_json(port, "/v1/chat/completions", probe))
    except proc.NotReady:
        target.stop()
        raise
    return target


def start_direct(work: Path) -> Target:
    """The engine with nothing in front of it."""
    engine = Engine(work)
    return Target(DIRECT, engine.port, engine)


STARTERS = {DIRECT: start_direct, SERVICE: start_service, ROUTER: start_router}


def tool(package: str, program: str) -> Path:
    """A program of the tools' environment; installs `package` there first where it is missing.

    Raises:
        subprocess.CalledProcessError: the package cannot be installed.
    """
    if not TOOLS_VENV.exists():
        venv.create(TOOLS_VENV, with_pip=True)
    binaries = TOOLS_VENV / "bin"
    pinned = TOOLS[package]
    name, _, version = pinned.partition("==")
    pattern = f"lib/python3.*/site-packages/{name.replace('-', '_')}-{version}.dist-info"
    if not any(TOOLS_VENV.glob(pattern)):
        subprocess.run([str(binaries / "pip"), "install", "--quiet", pinned], check=True)
    return binaries / program
