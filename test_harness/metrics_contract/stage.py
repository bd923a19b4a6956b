"""One live service on which everything happens that a metric tells of, once, under load.

Pools of engines that a test holds, one of launched engine processes on scripted GPUs, a real
Prometheus beside it, and a client that goes on submitting to a pool of its own. `perform` does each
deed of `deeds` and keeps what `/metrics` said right before and at its height; the tests only read
that. Invariant: a deed waits for what it causes and leaves its pools idle.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness_kit.contract_files import CONTRACTS
from harness_kit.fake_engine import FakeEngine
from harness_kit.fake_engine_script import FakeScript
from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import HttpProbe, task
from harness_kit.nvml_library import Gpu, ScriptedNvml
from harness_kit.prometheus_process import PrometheusProcess
from harness_kit.service_process import (
    DATA_KEY,
    METRICS_KEY,
    OTHER_TENANT_KEY,
    ServiceProcess,
    external_pool,
    model_of,
)
from orch_tools.codegen_alerts import ALERTS_PATH

WAIT_S = 60.0
SCRAPE_MS = 250

# At SIGUSR1 it ends for want of GPU memory.
ENGINE = [sys.executable, "-m", "harness_kit.fake_engine", "--port", "{port}", "--ctx", "8192"]


@dataclass(frozen=True, slots=True)
class Seen:
    """What `/metrics` said before a deed, and when it was done."""

    before: str
    after: str


@dataclass(slots=True)
class Stage:
    """The service and everything around it."""

    service: ServiceProcess
    gpus: ScriptedNvml
    prometheus: PrometheusProcess
    work: GatedEngine
    urgent: GatedEngine
    slow: GatedEngine
    pair: tuple[GatedEngine, GatedEngine]
    began_s: float
    seen: dict[str, Seen] = field(default_factory=dict)
    ended_s: float = 0.0

    def perform(self, deeds: dict[str, Deed]) -> None:
        """Each deed, and what was seen before it and at its height: what the deed says it saw, or
        else the scrape after it."""
        for name, deed in deeds.items():
            before = self.service.metrics()
            with deed(self) as scrape:
                self.seen[name] = Seen(before, scrape or self.service.metrics())
                self.prometheus.wait_scrape()

    def admit(self, probe: HttpProbe, pool_id: str, **fields: Any) -> str:
        """A task of the pool was admitted; its id."""
        document = task(model_of(pool_id), **fields)
        answer = probe.post("/v1/tasks", document)
        assert answer.status == 202, answer
        return str(document["task_id"])


Deed = Callable[[Stage], AbstractContextManager[str | None]]


def launched() -> dict[str, Any]:
    """A pool of one engine process on GPU 0."""
    pool = {
        "id": "gpu",
        "engine": "llamacpp",
        "model": model_of("gpu"),
        "ctx": 8192,
        "sampler_profile_version": "v1",
        "devices": [0],
    }
    return pool | {"launch": {"command": ENGINE, "args": ["--token-interval-ms", "20"]}}


@contextmanager
def standing(directory: Path, nvml: ScriptedNvml) -> Iterator[Stage]:
    """A stage whose pools are all Ready."""
    hard = {"mode": "hard", "hard_requirements": {}}
    breaker = {"enabled": True, "open_after_s": 2, "close_after_s": 600}
    with ExitStack() as stack:
        work, urgent = (stack.enter_context(GatedEngine(slots=1)) for _ in range(2))
        slow = stack.enter_context(GatedEngine(slots=8))
        first, second = (stack.enter_context(GatedEngine(slots=2)) for _ in range(2))
        steady = stack.enter_context(FakeEngine(FakeScript(slots_total=4, token_interval_s=0.01)))
        nvml.gpus(Gpu(0), Gpu(1))
        queue = {"capacity": 2, "full_policy": "reject"}
        pools = [
            external_pool(work.url, pool_id="work", model=model_of("work"), queue=queue),
            external_pool(urgent.url, pool_id="urgent", model=model_of("urgent"), preemption=hard),
            external_pool(
                slow.url,
                pool_id="slow",
                model=model_of("slow"),
                admission={"circuit_breaker": breaker},
            ),
            external_pool(first.url, second.url, pool_id="pair", model=model_of("pair")),
            external_pool(steady.url, pool_id="steady", model=model_of("steady"), ctx=4096),
            launched(),
            external_pool(pool_id="hosted", model=model_of("hosted"), managed=True),
        ]
        service = ServiceProcess(
            directory / "service",
            *pools,
            slos={"window_s": 10, "interactive": {"first_token_p95_ms": 1}},
            platform={"cpu_carve_out": True, "gpu_telemetry_ms": 20},
        )
        began_s = time.time()
        stack.enter_context(service)
        service.wait_metric("replica_ready", 7, WAIT_S)
        rules = CONTRACTS.parent / ALERTS_PATH
        prometheus = stack.enter_context(
            PrometheusProcess(
                directory / "prometheus",
                service.port,
                METRICS_KEY,
                rules,
                "llama-orch",
                SCRAPE_MS,
            )
        )
        prometheus.wait_scrape()
        stage = Stage(service, nvml, prometheus, work, urgent, slow, (first, second), began_s)
        stage.seen["start"] = Seen("", service.metrics())
        yield stage


@contextmanager
def load(service: ServiceProcess) -> Iterator[None]:
    """Two tenants whose clients each have a task at a time, one after the other."""
    over = threading.Event()
    failures: list[BaseException] = []

    def client(key: str, priority: str) -> None:
        try:
            with service.probe(key) as probe:
                while not over.is_set():
                    document = task(
                        model_of("steady"), priority=priority, max_tokens=32, prompt="load"
                    )
                    assert probe.post("/v1/tasks", document).status == 202
                    assert probe.stream(document["task_id"]).rest()[-1].name == "end"
        except BaseException as error:  # noqa: BLE001 - told below, by the test's own thread
            failures.append(error)

    clients = [
        threading.Thread(target=client, args=(key, priority), daemon=True)
        for key in (DATA_KEY, OTHER_TENANT_KEY)
        for priority in ("interactive", "batch")
    ]
    for each in clients:
        each.start()
    try:
        yield
    finally:
        over.set()
        for each in clients:
            each.join(WAIT_S)
    assert failures == []
