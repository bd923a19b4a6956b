"""`llama-orch pool-managerd` as operators run it: a process of its own, started, stopped, killed.

Invariants as those of `service_process`: nothing shared between two instances, every process is
ended by its pid, also when a test fails.
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
from harness_kit.service_process import CONTROL_KEY, START_TIMEOUT_S
from harness_kit.waiting import wait_until


class ManagerProcess:
    """One pool manager; `with` starts it, and kills it unless it has been stopped."""

    def __init__(
        self,
        directory: Path,
        url: str,
        *pools: Mapping[str, Any],
        name: str = "m0",
        key: str = CONTROL_KEY,
        lease_ms: int = 15_000,
        shutdown_ms: int = 30_000,
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.name = name
        self.log_path = directory / "manager.log"
        self._state_dir = directory / "state"
        self._key = key
        config = {
            "platform": {"cpu_carve_out": True},
            "auth": {"enabled": False},
            "server": {"state_dir": str(self._state_dir), "shutdown_ms": shutdown_ms},
            "pools": list(pools),
        }
        self._config_path = directory / "manager.yaml"
        self._config_path.write_text(yaml.safe_dump(config), encoding="utf-8")
        self._command = [
            *(sys.executable, "-m", "orch_cli.main", "pool-managerd"),
            *("--config", str(self._config_path), "--url", url, "--id", name),
            *("--lease-ms", str(lease_ms)),
        ]
        self._process: subprocess.Popen[bytes] | None = None
        self._lines: list[dict[str, Any]] = []

    def __enter__(self) -> Self:
        with self.log_path.open("ab") as log:
            self._process = subprocess.Popen(
                self._command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=os.environ | {"LLAMA_ORCH_API_KEY": self._key},
            )
        threading.Thread(target=self._read, args=(self._process,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.kill()
        process = self._process
        if process is not None and process.stdout is not None:
            process.stdout.close()
        secret_scan.check("log", self.log_text(), str(self.log_path))

    def wait_managing(self) -> dict[str, Any]:
        """The line that says that it is registered."""
        wait_until(lambda: bool(self._lines), START_TIMEOUT_S, "the manager is registered")
        return self._lines[0]

    def engine_pids(self) -> dict[str, int]:
        """Pids of its engines by replica id; none once it has ended in peace."""
        path = self._state_dir / "pool-managerd" / "engines.json"
        if not path.exists():
            return {}
        ledger = json.loads(path.read_text(encoding="utf-8"))
        return {entry["replica_id"]: entry["pid"] for entry in ledger["engines"]}

    def kill(self) -> None:
        """SIGKILL, as a crash; nothing happens to one that has ended."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def terminate(self) -> None:
        """SIGTERM without waiting; `wait_exit` follows."""
        assert self._process is not None
        self._process.send_signal(signal.SIGTERM)

    def wait_exit(self, timeout_s: float) -> int:
        """Wait for its end; returns the exit status."""
        assert self._process is not None
        return self._process.wait(timeout_s)

    def log_text(self) -> str:
        """Its standard error."""
        return self.log_path.read_text(encoding="utf-8")

    def _read(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        for line in process.stdout:
            self._lines.append(json.loads(line))
