"""The fake engine as a process, to be killed and stopped as a real one is.

Invariants: its port stays the same over every `launch`; the process is ended by its pid when the
block is left, however it is left.
"""

from __future__ import annotations

import http.client
import subprocess
import sys
from typing import Self

from harness_kit.llamacpp_engine import free_port
from harness_kit.waiting import wait_until

START_S = 30.0


class FakeEngineProcess:
    """`with FakeEngineProcess("--slots", "4") as engine`; the options are those of the module."""

    def __init__(self, *options: str) -> None:
        self.port = free_port()
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        self.launch()
        wait_until(self._answers, START_S, "the fake engine answers")
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def launch(self) -> None:
        """Start the process and return at once, before it listens."""
        command = [sys.executable, "-m", "harness_kit.fake_engine", "--port", str(self.port)]
        self._process = subprocess.Popen(
            [*command, *self._options], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )

    def kill(self) -> None:
        """SIGKILL, as a crash: connections are reset and the port is closed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()
