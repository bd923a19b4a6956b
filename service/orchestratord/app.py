"""The composition root: configuration in, a running service out, and back to nothing.

Only this module knows which implementation stands behind a port and which adapters exist; beside
it `reconfiguration` and `pool_health` alone reach the pool host. Order of a start: own the state
directory, replay the journal, preload pools, listen. Order of a stop: no new work, running tasks
finish until `server.shutdown_ms`, what still waits ends without a terminal event and comes back
with the next start (ORCH-3203).

Above 400 lines because the order of a start and that of a stop mirror each other, and are read and
changed as one.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import gc
import json
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import structlog
import uvloop

import orchcontrol_v1
from orch_config import Config
from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.events import PoolDraining
from orchestrator_core.scheduler import Scheduler
from orchestratord.api.config_orders import ConfigOrders
from orchestratord.api.control_plane import ControlApp, ControlPlane
from orchestratord.api.data_plane import DataPlane
from orchestratord.api.gate import Gate
from orchestratord.api.http_server import HttpServer
from orchestratord.api.pool_manager_orders import PoolManagerOrders
from orchestratord.api.pool_orders import PoolOrders
from orchestratord.api.public_pages import PublicPages
from orchestratord.configuration import LoadedConfig, ReloadRefused, load_config
from orchestratord.hot_reload import HotReload
from orchestratord.infra.local_coordinator import LocalCoordinator
from orchestratord.infra.logging import LineBuffer, configure_logging
from orchestratord.infra.sqlite_journal import SqliteJournal
from orchestratord.installation import InstalledAdapters, this_host
from orchestratord.pool_health import PoolHealthView
from orchestratord.ports.coordinator import Coordinator, Lease
from orchestratord.ports.journal import Journal
from orchestratord.reconfiguration import Reconfiguration
from orchestratord.services.admission import AdmissionService
from orchestratord.services.breakers import BreakerService
from orchestratord.services.cancellation import CancellationService
from orchestratord.services.determinism import DeterminismService, determinism_record
from orchestratord.services.devices import DeviceService
from orchestratord.services.dispatch import Dispatcher
from orchestratord.services.drains import DrainService
from orchestratord.services.explanations import ExplanationService
from orchestratord.services.jobs import Job, JobTable
from orchestratord.services.model_store_size import ModelStoreSize
from orchestratord.services.overview import OverviewService
from orchestratord.services.pool_managers import PoolManagerService
from orchestratord.services.recovery import RecoveryService
from orchestratord.services.replicas import ReplicaDirectory
from orchestratord.services.rollouts import RolloutService
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.sessions import SessionService
from orchestratord.services.slo import SloService
from orchestratord.services.slot_states import PERIOD_S as SLOTS_PERIOD_S
from orchestratord.services.slot_states import SlotStates
from orchestratord.services.streams import ReaderHub
from orchestratord.services.telemetry import Telemetry
from orchestratord.services.termination import TerminationService
from orchestratord.services.watchdog import PERIOD_S, Watchdog
from orchestratord.settings import (
    has_budget,
    key_ring,
    limits,
    log_fields,
    model_store,
    pool_settings,
    pool_traits,
    sampler_profiles,
    secret_values,
    slo_notice_s,
    slo_objectives,
    task_traces,
)
from pool_managerd.gpu_watch import GpuWatch
from pool_managerd.model_store_errors import ModelStoreError
from pool_managerd.pool_host import PoolHost
from worker_adapters.adapter_api.types import EngineAdapter

log = structlog.get_logger("orchestratord.app")

READER_TICK_S = 1.0
LOG_FLUSH_S = 0.25
# Part of `server.shutdown_ms` kept for closing journal and engines after running tasks had theirs.
SHUTDOWN_RESERVE_S = 2.0
# Objects here are freed by reference counts; cycles are rare, so look for them rarely. A task
# leaves seven objects: a look comes every 1400 tasks and stops the event loop for about 2 ms.
GC_THRESHOLDS = (10_000, 10, 50)
# The journal's thread waits this long for the interpreter lock while the event loop is busy, and
# every 202 waits for the journal. Python's default is 5 ms.
SWITCH_INTERVAL_S = 0.0005
OWNER_LEASE = "state-dir"


def wall_clock_ms() -> int:
    return time.time_ns() // 1_000_000


class Orchestrator:
    """Everything that runs in one process, wired."""

    def __init__(
        self,
        loaded: LoadedConfig,
        journal: Journal,
        telemetry: Telemetry,
        adapters: Mapping[str, EngineAdapter],
        reload_file: Callable[[], LoadedConfig],
    ) -> None:
        """`reload_file` reads the configuration once more; raises `ConfigError`."""
        config = loaded.config
        self.config = config
        self.journal = journal
        self.telemetry = telemetry
        self.jobs = JobTable(
            retain_ms=config.streams.retain_s * 1000, retain_bytes=config.streams.retain_bytes
        )
        self.scheduling = SchedulingService(Scheduler(limits(config)), self.jobs, wall_clock_ms)
        self.replicas = ReplicaDirectory(
            self.scheduling, self.telemetry, {p.id: pool_traits(config, p) for p in config.pools}
        )
        self.termination = TerminationService(
            self.jobs, journal, self.telemetry, wall_clock_ms, determinism_record
        )
        self.dispatcher = Dispatcher(
            self.scheduling,
            self.jobs,
            self.replicas,
            self.termination,
            journal,
            self.telemetry,
            time.monotonic,
        )
        self.hub = ReaderHub(self.scheduling, config.streams.metrics_ms / 1000)
        self.cancellation = CancellationService(self.scheduling)
        self.admission = AdmissionService(
            self.scheduling,
            self.jobs,
            self.replicas,
            journal,
            self.telemetry,
            sampler_profiles(config),
            exact_counts=has_budget(config),
        )
        self.explanations = ExplanationService(self.scheduling, self.jobs, self.admission.refused)
        self.sessions = SessionService(
            self.scheduling,
            self.jobs,
            journal,
            config.sessions.ttl_ms,
            budgeted=has_budget(config),
        )
        self.recovery = RecoveryService(
            self.scheduling,
            self.jobs,
            journal,
            self.termination,
            config.sessions.ttl_ms,
            self.replicas.pools,
        )
        self.watchdog = Watchdog(
            self.dispatcher, self.scheduling, self.jobs, journal, time.monotonic
        )
        self.slo = SloService(
            slo_objectives(config),
            config.slos.window_s,
            self.scheduling,
            time.monotonic,
            slo_notice_s(config),
        )
        self.breakers = BreakerService(self.slo, self.scheduling, self.replicas, time.monotonic)
        self.slot_states = SlotStates(self.scheduling, self.replicas, self.telemetry)
        self.models = model_store(config)
        self.store_size = ModelStoreSize(
            self._store_bytes, self.telemetry.metrics.model_store_bytes
        )
        self.pool_host = PoolHost(
            [pool_settings(p) for p in config.pools],
            adapters,
            self.replicas,
            cpu_carve_out=config.platform.cpu_carve_out,
            run_dir=Path(config.server.state_dir),
            clock=wall_clock_ms,
            jitter=random.random,
            gpus=GpuWatch(config.platform.gpu_telemetry_ms),
            models=self.models,
        )
        self.drains = DrainService(self.scheduling, self.replicas, self.pool_host, self.telemetry)
        self.rollouts = RolloutService(
            self.scheduling, self.replicas, self.pool_host, self.drains, self.telemetry
        )
        self.managers = PoolManagerService(self.replicas, self.pool_host, self.drains)
        self.devices = DeviceService(self.pool_host.gpus, self.replicas, self.telemetry.metrics)
        self.health = PoolHealthView(
            self.pool_host,
            self.replicas,
            self.drains,
            self.rollouts,
            self.dispatcher,
            self.managers,
        )
        self.overview = OverviewService(
            self.scheduling,
            self.replicas,
            self.health,
            self.pool_figures,
            self.slo.snapshot,
            orchcontrol_v1.VERSION,
            config.platform.cpu_carve_out,
        )
        self.scheduling.on_admitted = self.admission.write_down
        self.scheduling.on_dispatch = self.dispatcher.start
        self.scheduling.on_stop = self.dispatcher.stop
        self.scheduling.on_preempt = self.dispatcher.preempt
        self.scheduling.on_moved = self.dispatcher.moved
        self.scheduling.on_ended = self.termination.evict
        self.replicas.report_broken = self.pool_host.report_broken
        self.replicas.report_doubtful = self.pool_host.report_doubtful
        self.replicas.on_lost = self.dispatcher.lose_replica
        self.replicas.on_withdrawn = self.dispatcher.evacuate
        self.dispatcher.on_disturbance = self.hub.notice
        self.dispatcher.on_first_token = self.slo.first_token
        self.termination.on_end = self._ended
        self.traces = task_traces(config.tracing)
        if self.traces is not None:
            self.dispatcher.traceparent_of = self.traces.traceparent
        self.slo.on_judged = self.telemetry.slo_judged
        if config.streams.on_disconnect == "cancel":
            self.hub.on_abandoned = self.cancellation.request
        for pool in config.pools:
            self.telemetry.pool_added(
                self.replicas.pools[pool.id].spec,
                log_fields(pool),
            )
        self.reconfiguration = Reconfiguration(
            jobs=self.jobs,
            hub=self.hub,
            scheduling=self.scheduling,
            admission=self.admission,
            cancellation=self.cancellation,
            sessions=self.sessions,
            slo=self.slo,
            replicas=self.replicas,
            telemetry=self.telemetry,
            pool_host=self.pool_host,
            drains=self.drains,
            rollouts=self.rollouts,
            took_over=self._take_over,
        )
        self.hot_reload = HotReload(
            loaded, reload_file, self.reconfiguration, self.telemetry.config_reloaded
        )
        self.telemetry.deployment(version("llama-orch"), config.platform.cpu_carve_out)

    def _ended(self, job: Job, outcome: str, code: Code | None) -> None:
        self.slo.ended(job, outcome, code)
        if self.traces is not None:
            self.traces.ended(job, outcome, code)

    def _take_over(self, config: Config) -> None:
        self.config = config

    def pool_figures(self, pool_id: str) -> dict[str, float]:
        return self.overview.pool_snapshot(pool_id)

    def ready(self) -> tuple[bool, str]:
        """Whether some pool takes work and promises can be kept; else what is missing."""
        if self.journal.failing:
            return False, "the journal cannot be written"
        if any(True for _ in self.replicas.ready()):
            return True, ""
        states = ", ".join(
            f"{p}: {self.health.pool_health(p)['state']}" for p in self.replicas.pools
        )
        return False, f"no pool is Ready ({states})"

    def look_at_objectives(self) -> None:
        """Measure what runs, judge it, and let the circuit breakers act."""
        self.breakers.look(attempt.job for attempt in self.dispatcher.running)

    def gate(self, *, data: bool, control: bool) -> Gate:
        """An ASGI app for one port."""
        config = self.config
        data_plane = DataPlane(
            self.jobs,
            self.admission,
            self.cancellation,
            self.sessions,
            self.hub,
            DeterminismService(self.journal),
            self.explanations,
        )
        return Gate(
            data_plane if data else None,
            ControlApp(
                ControlPlane(
                    self.overview,
                    self.devices,
                    PoolOrders(self.overview, self.drains, self.rollouts),
                    ConfigOrders(self.hot_reload),
                    PoolManagerOrders(self.managers),
                ),
                orchcontrol_v1.contract_text(),
            )
            if control
            else None,
            PublicPages(self.ready, self.render_metrics),
            key_ring(config),
            self.telemetry,
            config.server.max_body_bytes,
            config.server.metrics_public,
        )

    def server(self, *, data: bool, control: bool) -> HttpServer:
        """A server for one port."""
        gate = self.gate(data=data, control=control)
        server = HttpServer(gate, self.config.server.max_body_bytes, time.monotonic)
        self.reconfiguration.ports.append((gate, server))
        return server

    def _store_bytes(self) -> int | None:
        try:
            return self.models.total_bytes()
        except ModelStoreError:  # a folder that cannot be read has no size
            return None

    def render_metrics(self) -> bytes:
        """All metrics, gauges brought up to date first."""
        self.telemetry.pool_gauges(
            self.scheduling.scheduler,
            (
                (
                    traits.spec,
                    list(self.replicas.ready(pool_id)),
                    [a.job for a in self.dispatcher.running if a.job.pool_id == pool_id],
                )
                for pool_id, traits in self.replicas.pools.items()
            ),
        )
        self.telemetry.slo_gauges(
            (traits.spec, self.slo.measures([pool_id]), self.breakers.shed(pool_id))
            for pool_id, traits in self.replicas.pools.items()
        )
        self.telemetry.process_gauges(
            len(self.hub), self.jobs.ended_bytes, self.scheduling.scheduler.session_count
        )
        self.devices.set_gauges()
        self.telemetry.metrics.pool_managers_registered.set(len(self.managers))
        self.telemetry.metrics.journal_failing.set(self.journal.failing)
        shares = self.scheduling.scheduler.shares(self.scheduling.clock_ms())
        self.telemetry.share_gauges(shares)
        return self.telemetry.render()

    async def drain(self, deadline_s: float) -> None:
        """Take no more, let running tasks finish until the deadline; the journal has the rest."""
        self.admission.closed = Refusal(
            Code.POOL_UNREADY,
            Reason.DRAINING,
            "the service is shutting down",
            retriable=True,
            retry_after_ms=1000,
        )
        for pool_id in self.replicas.pools:
            self.scheduling.step(PoolDraining(pool_id, in_place=True))
        self.hub.close_all(waiting_only=True)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.dispatcher.idle.wait(), deadline_s)
        self.dispatcher.abandon()
        self.hub.close_all(waiting_only=False)


async def _run(
    loaded: LoadedConfig, config_path: Path, host: str, port: int, logs: LineBuffer
) -> int:
    config = loaded.config
    state_dir = Path(config.server.state_dir)
    coordinator: Coordinator = LocalCoordinator(state_dir)
    lease: Lease = await coordinator.acquire(OWNER_LEASE, f"pid {os.getpid()}")
    telemetry = Telemetry(logs.write)
    journal = SqliteJournal(
        state_dir / "journal.sqlite3", config.journal.sync, on_commit=telemetry.journal_commit
    )
    telemetry.journal_bytes = lambda: journal.stats().bytes_on_disk

    def reload_file() -> LoadedConfig:
        return load_config(config_path, host=this_host())

    orchestrator = Orchestrator(loaded, journal, telemetry, InstalledAdapters(), reload_file)
    try:
        return await _serve(orchestrator, host, port, logs)
    finally:
        await journal.close()
        await coordinator.release(lease)
        await coordinator.close()
        logs.flush()


async def _serve(orchestrator: Orchestrator, host: str, port: int, logs: LineBuffer) -> int:
    config = orchestrator.config
    loop = asyncio.get_running_loop()
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    loop.set_exception_handler(_log_unhandled)
    reloads: set[asyncio.Task[None]] = set()

    def reload() -> None:
        work = asyncio.create_task(_reload(orchestrator))
        reloads.add(work)
        work.add_done_callback(reloads.discard)

    loop.add_signal_handler(signal.SIGHUP, reload)
    orchestrator.reconfiguration.logs = logs
    gc.set_threshold(*GC_THRESHOLDS)  # a replay makes a great many objects
    orchestrator.replicas.start()
    orchestrator.recovery.run()
    control_port = config.server.control_port
    servers = [
        (
            orchestrator.server(data=True, control=control_port is None),
            _listen(host, port, "server.port"),
        ),
    ]
    if control_port is not None:
        servers.append(
            (
                orchestrator.server(data=False, control=True),
                _listen(host, control_port, "server.control_port"),
            )
        )
    reader_tick_s = min(READER_TICK_S, config.streams.metrics_ms / 1000)
    ticks = [
        asyncio.create_task(_every(PERIOD_S, lambda _: orchestrator.watchdog.look())),
        asyncio.create_task(_every(reader_tick_s, orchestrator.hub.tick)),
        asyncio.create_task(_every(SLOTS_PERIOD_S, lambda _: orchestrator.slot_states.look())),
        asyncio.create_task(
            _every(orchestrator.slo.look_s, lambda _: orchestrator.look_at_objectives())
        ),
        asyncio.create_task(_every(LOG_FLUSH_S, lambda _: logs.flush())),
        asyncio.create_task(orchestrator.store_size.run()),
    ]
    await orchestrator.pool_host.start()
    for server, sock in servers:
        await server.start(sock)
    # What exists now lives as long as the process: the collector need not walk it again and again.
    gc.collect()
    gc.freeze()
    sys.setswitchinterval(SWITCH_INTERVAL_S)
    _announce([sock for _, sock in servers], host)
    await stop.wait()
    budget_s = orchestrator.config.server.shutdown_ms / 1000
    reserve_s = min(SHUTDOWN_RESERVE_S, budget_s / 2)
    await orchestrator.drain(budget_s - reserve_s)
    await asyncio.gather(
        *(server.stop(reserve_s / 2) for server, _ in servers),
        orchestrator.pool_host.stop(reserve_s * 0.75),
        orchestrator.reconfiguration.close(),
        orchestrator.managers.close(),
        orchestrator.rollouts.close(),
        orchestrator.drains.close(),
    )
    for tick in ticks:
        tick.cancel()
    if orchestrator.traces is not None:
        await asyncio.to_thread(orchestrator.traces.close)
    return 0


class CannotListen(Exception):
    """The key of the configuration that is to blame, its value, and why it cannot be used."""

    def __init__(self, key: str, value: str | int, cause: str) -> None:
        super().__init__(f"{key} = {value}: {cause}")
        self.key = key
        self.value = value
        self.cause = cause


def _listen(host: str, port: int, port_key: str) -> socket.socket:
    """A listening socket; port 0 picks a free one. Raises `CannotListen`."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    sock = socket.socket(family)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        sock.bind((host, port))
    except (OSError, TypeError) as error:  # TypeError: no host name at all
        sock.close()
        cause = getattr(error, "strerror", None) or "is not the name or address of a host"
        # The port is to blame where it is taken or forbidden, the host in all other cases: not an
        # address of this machine, not to be resolved, not a name at all.
        if isinstance(error, OSError) and error.errno in {errno.EADDRINUSE, errno.EACCES}:
            raise CannotListen(port_key, port, cause) from None
        raise CannotListen("server.host", host, cause) from None
    return sock


def _announce(sockets: list[socket.socket], host: str) -> None:
    line: dict[str, Any] = {
        "event": "listening",
        "host": host,
        "port": sockets[0].getsockname()[1],
        "pid": os.getpid(),
    }
    if len(sockets) > 1:
        line["control_port"] = sockets[1].getsockname()[1]
    print(json.dumps(line), flush=True)
    log.info("service.listening", **{k: v for k, v in line.items() if k != "event"})


async def _reload(orchestrator: Orchestrator) -> None:
    """SIGHUP: whoever sent it reads the outcome in the log."""
    with contextlib.suppress(ReloadRefused):
        await orchestrator.hot_reload.reload()


def _log_unhandled(_: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """What nobody awaits or catches is a line of the log like any other (ORCH-3027)."""
    log.error(
        "loop.unhandled",
        cause=str(context.get("message")),
        exc_info=context.get("exception"),
    )


async def _every(period_s: float, work: Any) -> None:
    """Call `work(elapsed_s)` again and again; one failure does not end it."""
    before_s = time.monotonic()
    while True:
        await asyncio.sleep(period_s)
        now_s = time.monotonic()
        elapsed_s, before_s = now_s - before_s, now_s
        try:
            work(elapsed_s)
        except Exception:
            log.exception("tick.failed", work=str(work))


def serve(config_path: Path, host: str | None = None, port: int | None = None) -> int:
    """Run the service until SIGTERM; returns its exit status.

    Raises `ConfigError` for a bad configuration, `LeaseHeld` when another process owns the state
    directory, `JournalError` when the journal cannot be read, `CannotListen` when host or port
    cannot be had, `OSError` when the state directory cannot be written.
    """
    loaded = load_config(config_path, host=this_host())
    logs = configure_logging(secret_values(loaded.config), sys.stderr.buffer)
    for warning in loaded.warnings:
        log.warning("config.warning", message=warning)
    server = loaded.config.server
    Path(server.state_dir).mkdir(parents=True, exist_ok=True)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(
            _run(
                loaded,
                config_path,
                server.host if host is None else host,
                server.port if port is None else port,
                logs,
            )
        )
