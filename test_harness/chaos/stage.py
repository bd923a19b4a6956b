"""What a chaos run plays on: one service, its three pools, and everything that can break.

`volume` are fake engines behind fault proxies, for many tasks; `exact` two real llama.cpp processes
behind proxies, whose streams are compared with what the undisturbed engines said; `gpu` launched
engines on GPUs that a script invents. Invariant: everything is ended when the block is left.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest.mock import patch

from chaos.faults import Engine
from chaos.history import Footprint
from harness_kit.fake_engine_process import FakeEngineProcess
from harness_kit.fault_proxy import FaultProxy
from harness_kit.http_probe import ProbeError
from harness_kit.llamacpp_engine import LlamaCppEngine
from harness_kit.nvml_library import Gpu, ScriptedNvml
from harness_kit.service_process import CONTROL_KEY, MODEL, ServiceProcess, external_pool
from harness_kit.state_disk import StateDisk
from harness_kit.waiting import wait_until

GPU_MODEL = "file:/models/on-gpu.gguf"  # never opened: its engines are fakes
EXACT_MODEL = "builtin:smollm2"
REPLICAS = {"volume": 3, "exact": 2, "gpu": 2}
TOKEN_INTERVAL_MS = "15"
ZETA_MAX_CONCURRENT = 5
RETAIN_S = 30  # so that a run of minutes shows whether what is over is forgotten
IDLE_S = 60.0
LANES = 3


@dataclass(frozen=True, slots=True)
class Stage:
    """The running service and what its faults act on."""

    service: ServiceProcess
    engines: dict[str, list[tuple[Engine, FaultProxy]]]
    nvml: ScriptedNvml
    disk: StateDisk
    threads: Executor
    """For what launches processes: they end with the thread that launched them."""

    def port(self) -> int:
        """Where the service listens now."""
        return self.service.port

    def ready(self, *pool_ids: str) -> bool:
        """Whether all replicas of these pools take work; False where nobody answers."""
        try:
            text = self.service.metrics()
        except (OSError, ProbeError, AssertionError):
            return False
        lines = [line for line in text.splitlines() if line.startswith("replica_ready{")]
        return all(
            sum(line.endswith(" 1.0") for line in lines if f'pool_id="{pool_id}"' in line)
            == REPLICAS[pool_id]
            for pool_id in pool_ids
        )

    def serves(self) -> bool:
        """Whether the service is ready: some pool takes work, and promises can be kept."""
        try:
            with self.service.probe(None) as probe:
                return probe.get("/readyz").status == 200
        except (OSError, ProbeError):
            return False

    def wait_idle(self) -> None:
        """Until the service has nothing to do and everything is whole."""
        wait_until(lambda: self.ready(*REPLICAS), IDLE_S, "every replica is Ready")
        for name in ("tasks_running", "queue_depth", "stream_readers"):
            self.service.wait_metric(name, 0, IDLE_S)
        wait_until(self._engines_are_idle, IDLE_S, "the engines have let go of what was broken off")

    def _engines_are_idle(self) -> bool:
        return all(entry["slots_free"] == entry["slots_total"] for entry in self.replica_sets())

    def footprint(self) -> Footprint:
        """Memory and descriptors of the service's process."""
        process = Path(f"/proc/{self.service.pid}")
        pages = int((process / "statm").read_text(encoding="ascii").split()[1])
        return Footprint(pages * os.sysconf("SC_PAGE_SIZE"), len(list((process / "fd").iterdir())))

    def counted(self) -> dict[str, float]:
        """The counters that clients can hold against what they saw."""
        metric = self.service.metric
        finished = {
            outcome: metric("tasks_finished_total", outcome=outcome)
            for outcome in ("completed", "canceled", "dropped", "expired", "failed")
        }
        return {
            "admitted": metric("tasks_enqueued_total"),
            "completed": finished["completed"],
            "canceled": finished["canceled"],
            "failed": finished["failed"] + finished["dropped"] + finished["expired"],
            "rejected": metric("tasks_rejected_total"),
        }

    def replica_sets(self) -> list[Mapping[str, Any]]:
        """`GET /v1/replicasets`."""
        with self.service.probe(CONTROL_KEY) as probe:
            entries: list[Mapping[str, Any]] = probe.get("/v1/replicasets").json()
        return entries


@contextmanager
def stage(directory: Path, nvml_file: Path) -> Iterator[Stage]:
    """Everything started, and every replica Ready."""
    nvml = ScriptedNvml(nvml_file, directory / "gpus.txt")
    nvml.gpus(Gpu(0, {"total_mib": 81920}))
    with ExitStack() as stack:
        stack.enter_context(patch.dict(os.environ, nvml.environment))
        threads = stack.enter_context(ThreadPoolExecutor(LANES))
        disk = stack.enter_context(StateDisk(directory / "service" / "state"))
        options = ("--slots", "4", "--ctx", "8192", "--token-interval-ms", TOKEN_INTERVAL_MS)
        engines: dict[str, list[tuple[Engine, FaultProxy]]] = {"volume": [], "exact": []}
        processes: list[tuple[str, FakeEngineProcess | LlamaCppEngine]] = [
            *(("volume", FakeEngineProcess(*options)) for _ in range(REPLICAS["volume"])),
            *(("exact", LlamaCppEngine(ctx=512)) for _ in range(REPLICAS["exact"])),
        ]
        for pool_id, engine in processes:
            stack.enter_context(engine)
            proxy = stack.enter_context(FaultProxy(engine.port))
            engines[pool_id].append((engine, proxy))
        service = ServiceProcess(
            directory / "service",
            *_pools({name: [proxy.url for _, proxy in pair] for name, pair in engines.items()}),
            platform={"cpu_carve_out": True, "gpu_telemetry_ms": 20},
            streams={"retain_s": RETAIN_S},
            sessions={"max_turns": 1000},
        )
        stack.enter_context(service)
        running = Stage(service, engines, nvml, disk, threads)
        running.wait_idle()
        yield running


def _pools(urls: Mapping[str, list[str]]) -> list[dict[str, Any]]:
    patient: dict[str, Any] = {"timeouts": {"wall_ms": 600_000, "idle_ms": 60_000}}
    fairness = {"tenants": [{"id": "zeta", "max_concurrent": ZETA_MAX_CONCURRENT}]}
    priorities = [
        {"name": "interactive", "queue_capacity": 48, "weight": 8},
        {"name": "batch", "queue_capacity": 48, "weight": 1},
    ]
    volume = external_pool(
        *urls["volume"],
        pool_id="volume",
        model=MODEL,
        admission={"priorities": priorities, "fairness": fairness},
        **patient,
    )
    exact = external_pool(*urls["exact"], pool_id="exact", model=EXACT_MODEL, ctx=512, **patient)
    command = [sys.executable, "-m", "harness_kit.fake_engine", "--port", "{port}", "--ctx", "8192"]
    gpu = {
        "id": "gpu",
        "engine": "llamacpp",
        "model": GPU_MODEL,
        "ctx": 8192,
        "sampler_profile_version": "v1",
        "devices": [0],
        "restarts": {"max_failures": 1000},  # a storm on purpose: the breaker is proven elsewhere
        "launch": {
            "count": REPLICAS["gpu"],
            "command": command,
            "args": ["--token-interval-ms", TOKEN_INTERVAL_MS],
        },
        **patient,
    }
    return [volume, exact, gpu]
