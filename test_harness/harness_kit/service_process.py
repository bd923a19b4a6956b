"""The service as operators run it: a process of its own, started, stopped, killed and restarted.

Holds a directory with the configuration and the state, so that a restart finds what a killed
process left. Invariants: port 0, nothing shared between two instances, every process is ended by
its pid, also when a test fails. The keys below are what every test's requests carry.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from harness_kit import secret_scan
from harness_kit.http_probe import HttpProbe, ProbeError
from harness_kit.response_tap import live_ports
from harness_kit.waiting import wait_until

# A test key per role and tenant; long enough to be redacted, odd enough to be searched for.
DATA_KEY = "data-key-4f1c0e5b"
OTHER_TENANT_KEY = "other-tenant-key-77aa31"
CONTROL_KEY = "control-key-9d2e61"
METRICS_KEY = "metrics-key-c03b58"
ALL_KEY = "every-role-key-51d7f2"
_KEYS = {
    "LLAMA_ORCH_TEST_DATA": ("client", "acme", ["data"], DATA_KEY),
    "LLAMA_ORCH_TEST_OTHER": ("stranger", "zeta", ["data"], OTHER_TENANT_KEY),
    "LLAMA_ORCH_TEST_CONTROL": ("operator", "ops", ["control"], CONTROL_KEY),
    "LLAMA_ORCH_TEST_METRICS": ("scraper", "ops", ["metrics"], METRICS_KEY),
    "LLAMA_ORCH_TEST_ALL": ("everything", "acme", ["data", "control", "metrics"], ALL_KEY),
}
SECRETS = tuple(key for *_, key in _KEYS.values())
secret_scan.learn(SECRETS)

MODEL = "file:/models/fake.gguf"  # never opened: the engines of these pools run elsewhere
POOL = "p0"
# A loaded two-core machine takes a while to import everything and to load the small model.
START_TIMEOUT_S = 60.0


def model_of(pool_id: str) -> str:
    """The model that only this pool serves."""
    return f"file:/models/{pool_id}.gguf"


def external_pool(*urls: str, pool_id: str = POOL, **overrides: Any) -> dict[str, Any]:
    """A pool of engines at `urls`, replicas `r0`, `r1` and so on."""
    pool: dict[str, Any] = {
        "id": pool_id,
        "engine": "llamacpp",
        "model": MODEL,
        "quant": "q4_1",
        "ctx": 8192,
        "sampler_profile_version": "v1",
        "queue": {"capacity": 64, "full_policy": "reject"},
        "timeouts": {"wall_ms": 60_000, "idle_ms": 20_000},
        "replicas": [{"id": f"r{number}", "url": url} for number, url in enumerate(urls)],
    }
    return pool | overrides


def launched_pool(count: int, pool_id: str = POOL, **overrides: Any) -> dict[str, Any]:
    """A pool of `count` real llama.cpp processes with the small model, two slots each."""
    pool: dict[str, Any] = {
        "id": pool_id,
        "engine": "llamacpp",
        "model": "builtin:smollm2",
        "quant": "q4_1",
        "ctx": 1024,
        "sampler_profile_version": "v1",
        "queue": {"capacity": 64, "full_policy": "reject"},
        "timeouts": {"wall_ms": 120_000, "idle_ms": 60_000},
        "launch": {"count": count, "args": ["--parallel", "2"]},
    }
    return pool | overrides


class ServiceProcess:
    """One state directory and, most of the time, one running process on it."""

    def __init__(self, directory: Path, *pools: Mapping[str, Any], **sections: Any) -> None:
        """`sections` replace whole sections of the configuration; `server` is merged."""
        directory.mkdir(parents=True, exist_ok=True)
        self.directory = directory
        self.state_dir = directory / "state"
        self.log_path = directory / "service.log"
        self.config_path = directory / "llama-orch.yaml"
        server = {"host": "127.0.0.1", "port": 0, "state_dir": str(self.state_dir)}
        self.config: dict[str, Any] = {
            "platform": {"cpu_carve_out": True},
            "auth": {
                "keys": [
                    {"id": name, "tenant": tenant, "roles": roles, "key_env": variable}
                    for variable, (name, tenant, roles, _) in _KEYS.items()
                ]
            },
            "catalog": {"trust_policy": {"mode": "permissive"}},
            "sampler_profiles": {"v1": {"temperature": 0.0, "top_p": 1.0, "top_k": 0}},
            **sections,
            "server": server | sections.get("server", {}),
            "pools": list(pools),
        }
        self.environment: dict[str, str] = {}  # added to this process's own
        self.port = 0
        self.control_port: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._scanned_bytes = 0  # of the log, which one process after the other goes on with

    def __enter__(self) -> Self:
        try:
            return self.start()
        except BaseException:
            self.kill()
            raise

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self.running:
            self.stop()

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def start(self, *, until_ready: bool = True) -> Self:
        """Start it and wait until it listens, and until `/readyz` says 200 unless told not to."""
        assert not self.running, "already running"
        self.config_path.write_text(yaml.safe_dump(self.config), encoding="utf-8")
        keys = {name: key for name, (*_, key) in _KEYS.items()}
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "orch_cli.main", "serve", "--config", str(self.config_path)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | keys | self.environment,
            )
        line = self._first_line()
        assert line, f"the service did not start:\n{self.log_text()[-4000:]}"
        said = json.loads(line)
        assert said["event"] == "listening"
        self.port = said["port"]
        self.control_port = said.get("control_port")
        live_ports.update({self.port, self.control_port or self.port})
        if until_ready:
            self.wait_ready()
        return self

    def wait_ready(self) -> None:
        """Wait until `/readyz` says 200."""
        with self.probe(None) as probe:
            wait_until(
                lambda: probe.get("/readyz").status == 200, START_TIMEOUT_S, "a pool is Ready"
            )

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM; returns the exit status. Killed, and a failure, beyond `timeout_s` seconds."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)
        return self.wait_exit(timeout_s)

    def terminate(self) -> None:
        """SIGTERM without waiting; `wait_exit` follows."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait_exit(self, timeout_s: float) -> int:
        """Wait for its end; returns the exit status."""
        assert self._process is not None
        try:
            status = self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(
                f"did not end within {timeout_s} s:\n{self.log_text()[-4000:]}"
            ) from None
        finally:
            self._close_pipe()
        self._scan_log()
        return status

    def kill(self) -> None:
        """SIGKILL, as a crash; nothing happens to one that has ended."""
        if self._process is None:
            return
        self._process.kill()
        self._process.wait()
        self._close_pipe()
        self._scan_log()

    def restart(self) -> Self:
        """Start again on the same state; the port is another one."""
        return self.start()

    def probe(self, key: str | None = DATA_KEY) -> HttpProbe:
        """A client of the running process, with a key or without."""
        return HttpProbe(self.port, key)

    def log_text(self) -> str:
        """Standard error of all processes so far."""
        return self.log_path.read_text(encoding="utf-8") if self.log_path.exists() else ""

    def log_lines(self, event: str | None = None) -> list[dict[str, Any]]:
        """Its whole log lines as JSON, or those of one event."""
        text = self.log_text()
        whole = text[: text.rfind("\n") + 1]
        lines = [json.loads(line) for line in whole.splitlines()]
        return [line for line in lines if event is None or line["event"] == event]

    def wait_log(
        self, event: str, count: int = 1, timeout_s: float = 10.0, **fields: Any
    ) -> list[dict[str, Any]]:
        """Wait until that many lines of an event carry `fields`; lines are written in batches."""
        found: list[dict[str, Any]] = []

        def logged() -> bool:
            lines = self.log_lines(event)
            found[:] = [line for line in lines if fields.items() <= line.items()]
            return len(found) >= count

        wait_until(logged, timeout_s, f"{count} lines {event} {fields or ''}")
        return found

    def engine_pids(self, pool_id: str | None = None) -> dict[str, int]:
        """Pids of the launched engines (of one pool) by replica id, from the manager's ledger."""
        ledger = json.loads((self.state_dir / "engines.json").read_text(encoding="utf-8"))
        return {
            entry["replica_id"]: entry["pid"]
            for entry in ledger["engines"]
            if pool_id in (None, entry["pool_id"])
        }

    def metrics(self) -> str:
        """The exposition text of `/metrics`."""
        with self.probe(METRICS_KEY) as probe:
            answer = probe.get("/metrics")
        assert answer.status == 200
        text = answer.body.decode()
        secret_scan.check("metrics", text, "/metrics")
        return text

    def metric(self, name: str, **labels: str) -> float:
        """The sum of a metric's samples that carry `labels`; 0 where there is none."""
        return metric_in(self.metrics(), name, **labels)

    def wait_metric(self, name: str, value: float, timeout_s: float = 10.0, **labels: str) -> None:
        """Wait until a metric has the value."""
        wait_until(
            lambda: self.metric(name, **labels) == value,
            timeout_s,
            f"{name}{labels or ''} == {value:g} (it is {self.metric(name, **labels):g})",
        )

    def _first_line(self) -> bytes:
        """What it prints first; empty where it ends or says nothing in time."""
        assert self._process is not None
        assert self._process.stdout is not None
        stdout = self._process.stdout
        lines: list[bytes] = []
        reader = threading.Thread(target=lambda: lines.append(stdout.readline()), daemon=True)
        reader.start()
        reader.join(START_TIMEOUT_S)
        return lines[0] if lines else b""

    def _scan_log(self) -> None:
        """Look for secrets in what was logged since the last look."""
        if not self.log_path.exists():
            return
        written = self.log_path.read_bytes()[self._scanned_bytes :]
        self._scanned_bytes += len(written)
        secret_scan.check("log", written.decode(errors="replace"), str(self.log_path))

    def _close_pipe(self) -> None:
        live_ports.difference_update({self.port, self.control_port or self.port})
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()


def metric_in(text: str, name: str, **labels: str) -> float:
    """The sum of a metric's samples with `labels` in an exposition text; 0 where there is none."""
    total = 0.0
    for line in text.splitlines():
        if not line.startswith((f"{name}{{", f"{name} ")):
            continue
        if all(f'{label}="{value}"' in line for label, value in labels.items()):
            total += float(line.rpartition(" ")[2])
    return total


def refused(service: ServiceProcess) -> bool:
    """Whether nobody accepts connections on the service's port."""
    try:
        with service.probe(None) as probe:
            probe.get("/livez")
    except (OSError, ProbeError):
        return True
    return False
