"""The service of the demo: `llama-orch serve` as a process of its own, and its end.

Everything lives in one temporary folder. Invariant: whatever happens to the demo, no process of it
stays: each carries a random mark in its environment, by which leftovers are found and ended.
"""

from __future__ import annotations

import json
import os
import secrets
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from orch_cli.exit_codes import CliError, ExitCode
from orch_cli.profiles import KEY_VARIABLE, URL_VARIABLE, Connection
from orchqueue_v1.transport import Endpoint, OrchError, Request, SyncTransport

MARK_VARIABLE = "LLAMA_ORCH_DEMO_MARK"
# Two engines with one slot each: the third task already waits, and one engine can die.
_CONFIGURATION = """\
server: {{ host: 127.0.0.1, port: 0, state_dir: "{state_dir}", shutdown_ms: 10000 }}
platform: {{ cpu_carve_out: true }}   # a demo may run without a GPU (ORCH-1101)
auth:
  keys:
    - {{ id: demo, tenant: demo, roles: [data, control, metrics], key_env: LLAMA_ORCH_API_KEY }}
catalog:
  trust_policy: {{ mode: permissive }}   # the built-in model is in no catalog
streams: {{ metrics_ms: 500 }}
pools:
  - id: demo
    engine: llamacpp
    model: builtin:smollm2
    quant: q4_1
    ctx: 2048
    queue: {{ capacity: 3, full_policy: reject }}
    admission:
      priorities:
        - {{ name: interactive, queue_capacity: 3, weight: 8 }}
        - {{ name: batch, queue_capacity: 3, weight: 1 }}
    timeouts: {{ wall_ms: 120000, idle_ms: 30000 }}
    launch:
      count: 2
      args: ["--parallel", "1"]
      env: {{ {mark_variable}: "{mark}" }}
"""
# The model loads in about two seconds; a machine that is busy elsewhere takes much longer.
_LISTEN_TIMEOUT_S = 60.0
_READY_TIMEOUT_S = 180.0
_POLL_S = 0.1
# server.shutdown_ms and something for Python's own end.
_STOP_TIMEOUT_S = 15.0
_LOG_LINES_SHOWN = 15


class DemoService:
    """Starts with the `with` block and is gone after it, folder included."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="llama-orch-demo-"))
        self.configuration = self.folder / "llama-orch.yaml"
        self.log = self.folder / "service.log"
        self._mark = secrets.token_hex(16)
        self._key = secrets.token_urlsafe(32)
        self._process: subprocess.Popen[str] | None = None
        self.url = ""

    @property
    def connection(self) -> Connection:
        """Where the service is, with its key."""
        return Connection(self.url, self._key, "demo")

    def environment(self) -> dict[str, str]:
        """The environment of the demo's own processes: where the service is, and its key."""
        own = {KEY_VARIABLE: self._key, URL_VARIABLE: self.url, MARK_VARIABLE: self._mark}
        return {**os.environ, **own}

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            if self._process is not None and self._process.poll() is None:
                self.stop()
        finally:
            for pid in self.leftovers():
                os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self.folder, ignore_errors=True)

    def start(self) -> None:
        """Start the service and wait until it accepts requests. Raises `CliError`."""
        self.configuration.write_text(
            _CONFIGURATION.format(
                state_dir=self.folder / "state", mark=self._mark, mark_variable=MARK_VARIABLE
            ),
            "utf-8",
        )
        command = [sys.executable, "-m", "orch_cli.main", "serve", "--config"]
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                [*command, str(self.configuration)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env=self.environment(),
                # Ctrl-C is for the demo, which then stops the service in order.
                start_new_session=True,
            )
        stdout = self._process.stdout
        assert stdout is not None
        readable, _, _ = select.select([stdout], [], [], _LISTEN_TIMEOUT_S)
        line = stdout.readline() if readable else ""
        if not line:
            raise self._failure("the service did not start")
        announced = json.loads(line)
        self.url = f"http://{announced['host']}:{announced['port']}"

    def wait_ready(self, show: Callable[[float], None]) -> float:
        """Wait until a pool is Ready; `show` gets the seconds so far. Raises `CliError`."""
        begun_s = time.monotonic()
        transport = SyncTransport(Endpoint(self.url), 5.0, None)
        while (waited_s := time.monotonic() - begun_s) < _READY_TIMEOUT_S:
            if self._process is None or self._process.poll() is not None:
                raise self._failure("the service ended while it was loading the model")
            try:
                transport.send(Request("GET", "/readyz"))
                return waited_s
            except OrchError:
                show(waited_s)
            time.sleep(_POLL_S)
        raise self._failure(f"no engine was ready after {_READY_TIMEOUT_S:.0f} s")

    def engine_pid(self, replica_id: str) -> int:
        """Return the process that is this replica, as the service recorded it.

        Raises `CliError`.
        """
        ledger = json.loads((self.folder / "state" / "engines.json").read_bytes())
        for entry in ledger["engines"]:
            if entry["replica_id"] == replica_id:
                return int(entry["pid"])
        raise CliError(f"no engine process for {replica_id}", exit_code=ExitCode.TASK_FAILED)

    def stop(self) -> int:
        """Send SIGTERM and return the service's exit status; a hanging one is killed (-9)."""
        if self._process is None:
            raise CliError("the service was not started")
        self._process.terminate()
        try:
            return self._process.wait(_STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            return self._process.wait()
        finally:
            if self._process.stdout is not None:
                self._process.stdout.close()

    def leftovers(self) -> list[int]:
        """Return the processes that carry the demo's mark, without this one."""
        wanted = f"{MARK_VARIABLE}={self._mark}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                variables = (entry / "environ").read_bytes().split(b"\0")
            except OSError:
                continue  # gone, or somebody else's
            if wanted in variables:
                found.append(int(entry.name))
        return found

    def _failure(self, message: str) -> CliError:
        lines = self.log.read_text("utf-8", "replace").splitlines() if self.log.exists() else []
        tail = "".join(f"\n  {line}" for line in lines[-_LOG_LINES_SHOWN:])
        return CliError(f"{message}; its log ends with:{tail}", exit_code=ExitCode.TASK_FAILED)
