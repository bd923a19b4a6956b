"""A real llama.cpp server for tests: SmolLM2 under the product's own launcher, as a process.

`with LlamaCppEngine() as engine: … engine.url`. Needs the packages of the `engine` extra and the
model package; without them the tests that use it fail, they are not skipped. Invariant: the
process is ended by its process id when the block is left, however it is left.
"""

from __future__ import annotations

import http.client
import json
import random
import socket
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryFile
from typing import Any, Self

from harness_kit.waiting import wait_until
from pool_managerd.llamacpp_launcher import arguments_of
from pool_managerd.model_files import find_model

MODEL = "builtin:smollm2"
# Seconds: half of one on an idle machine, much more while eight others share two cores.
READY_S = 90.0
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


class LlamaCppEngine:
    """One server process. `ctx` is per slot; `extra` are further options of the launcher."""

    def __init__(self, *, ctx: int = 1024, parallel: int = 2, extra: tuple[str, ...] = ()) -> None:
        self.port = free_port()
        self._options = ["--ctx", str(ctx), "--parallel", str(parallel), *extra]
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
            wait_until(self._is_healthy, READY_S, "the engine's /health")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._log.close()

    def launch(self) -> None:
        """Start the process and return at once, before it listens."""
        command = [sys.executable, "-m", "pool_managerd.llamacpp_launcher"]
        command += ["--port", str(self.port), "--model", MODEL, *self._options]
        self._process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=self._log, stderr=subprocess.STDOUT
        )

    def kill(self) -> None:
        """SIGKILL, as a crash: connections are reset and the port is closed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    @property
    def model_path(self) -> Path:
        """The model file that the server loads."""
        return find_model(MODEL).path

    def settings(self) -> dict[str, Any]:
        """What decides over its bytes, as the running process shows it: its command line, /props,
        and how many tokens of prompts it did not read because they were in a slot's cache."""
        words = Path(f"/proc/{self.pid}/cmdline").read_bytes().decode().split("\0")[:-1]
        options = arguments_of(words[words.index("pool_managerd.llamacpp_launcher") + 1 :])
        figures = self._get("/metrics").decode().splitlines()
        cached = [
            line for line in figures if line.startswith("llamacpp:prompt_tokens_cached_total")
        ]
        return {
            "total_slots": json.loads(self._get("/props"))["total_slots"],
            "cont_batching": not options.no_cont_batching,
            "threads": options.threads,
            "model": options.model,
            "prompt_tokens_cached": int(cached[0].split()[1]),
        }

    def _get(self, path: str) -> bytes:
        with urllib.request.urlopen(f"{self.url}{path}", timeout=READY_S) as answer:
            content: bytes = answer.read()
        return content

    def _is_healthy(self) -> bool:
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
