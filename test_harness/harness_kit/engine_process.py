"""An engine as a process of its own, on a port that it keeps: what real and fake ones share.

`with` starts it and waits until it answers. Invariants: the port stays the same over every
`launch`; the process is ended by its pid when the block is left, however it is left.
"""

from __future__ import annotations

import http.client
import random
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Self

from harness_kit.waiting import wait_until

# Half a second on an idle machine, much more while eight others share two cores.
START_S = 90.0
LOCAL_PORTS = Path("/proc/sys/net/ipv4/ip_local_port_range")
# Below stand the well-known services of a development machine.
FIRST_PORT = 15_000


def free_port() -> int:
    """A port of 127.0.0.1 that was free a moment ago, and that no outgoing connection gets.

    While an engine is down its clients go on trying: a connection to a port of the range for
    outgoing ones may meet itself there, and then the engine cannot have its port back.
    """
    first_outgoing = int(LOCAL_PORTS.read_text(encoding="ascii").split()[0])
    while True:
        port = random.randrange(FIRST_PORT, first_outgoing)
        with socket.socket() as probe, suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port


class EngineProcess:
    """`python -m module --port … options`, with llama.cpp's `/health`."""

    def __init__(self, module: str, options: Sequence[str]) -> None:
        self.port = free_port()
        self._command = [sys.executable, "-m", module, "--port", str(self.port), *options]
        self._process: subprocess.Popen[bytes] | None = None
        self._log = TemporaryFile()  # noqa: SIM115 - closed in __exit__

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def pid(self) -> int:
        assert self._process is not None, "not started"
        return self._process.pid

    def __enter__(self) -> Self:
        self.launch()
        try:
            wait_until(self._answers, START_S, "the engine's /health")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def launch(self) -> None:
        """Start the process and return at once, before it listens."""
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )

    def kill(self) -> None:
        """SIGKILL, as a crash: connections are reset and the port is closed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _answers(self) -> bool:
        assert self._process is not None, "not started"
        if self._process.poll() is not None:
            self._log.seek(0)
            said = self._log.read()[-2000:].decode(errors="replace")
            raise AssertionError(f"the engine exited with {self._process.returncode}: {said}")
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2.0)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except OSError:
            return False
        finally:
            connection.close()
