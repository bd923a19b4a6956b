"""A real Prometheus (Debian package `prometheus`) as operators run it: it scrapes a service with a
key, evaluates the generated rules, and answers queries.

Invariants as those of `service_process`: a directory and a port of its own, ended by its pid.
"""

from __future__ import annotations

import json
import math
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from harness_kit.waiting import wait_until

START_S = 30.0
QUERY_S = 30.0


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a graph: its labels, and (seconds, value) in the order of time."""

    labels: dict[str, str]
    points: tuple[tuple[float, float], ...]


class PrometheusProcess:
    """Runs while its `with` block lasts."""

    def __init__(
        self, directory: Path, target_port: int, key: str, rules: Path, job: str, interval_ms: int
    ) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self._directory = directory
        self._port = _free_port()
        interval = f"{interval_ms}ms"
        config = {
            "global": {
                "scrape_interval": interval,
                "scrape_timeout": interval,
                "evaluation_interval": interval,
            },
            "rule_files": [str(rules)],
            "scrape_configs": [
                {
                    "job_name": job,
                    "authorization": {"credentials": key},
                    "static_configs": [{"targets": [f"127.0.0.1:{target_port}"]}],
                }
            ],
        }
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        self._process: subprocess.Popen[bytes] | None = None

    def __enter__(self) -> Self:
        program = shutil.which("prometheus")
        assert program is not None, "prometheus is missing: apt-get install prometheus"
        with (self._directory / "prometheus.log").open("ab") as log:
            self._process = subprocess.Popen(
                [
                    program,
                    f"--config.file={self._directory / 'prometheus.yaml'}",
                    f"--storage.tsdb.path={self._directory / 'data'}",
                    f"--web.listen-address=127.0.0.1:{self._port}",
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        wait_until(self._ready, START_S, "Prometheus is ready")
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._process is not None
        self._process.terminate()
        try:
            self._process.wait(START_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def wait_scrape(self) -> None:
        """Wait until a scrape that begins from now on is stored."""
        called_s = time.time()

        def scraped() -> bool:
            found = self._ask("query", query="timestamp(up)")
            return bool(found) and float(found[0]["value"][1]) > called_s

        wait_until(scraped, QUERY_S, "Prometheus scrapes")

    def graph(self, query: str, start_s: float, end_s: float, step_s: float) -> list[Series]:
        """The series of a query over a time; values that are no finite number are left out."""
        found = self._ask(
            "query_range", query=query, start=f"{start_s}", end=f"{end_s}", step=f"{step_s}"
        )
        lines = []
        for each in found:
            points = [(float(at), float(value)) for at, value in each["values"]]
            finite = tuple(point for point in points if math.isfinite(point[1]))
            if finite:
                lines.append(Series(each["metric"], finite))
        return lines

    def _ask(self, path: str, **parameters: str) -> list[dict[str, Any]]:
        query = urllib.parse.urlencode(parameters)
        url = f"http://127.0.0.1:{self._port}/api/v1/{path}"
        try:
            with urllib.request.urlopen(url, query.encode(), timeout=QUERY_S) as answer:
                document = json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                raise AssertionError(f"{parameters}: {error.read().decode()}") from None
        result: list[dict[str, Any]] = document["data"]["result"]
        return result

    def _ready(self) -> bool:
        assert self._process is not None
        assert self._process.poll() is None, (self._directory / "prometheus.log").read_text()
        try:
            with urllib.request.urlopen(
                f"http://127.0.0.1:{self._port}/-/ready", timeout=QUERY_S
            ) as answer:
                return bool(answer.status == 200)
        except OSError:
            return False


def _free_port() -> int:
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        port: int = held.getsockname()[1]
        return port
