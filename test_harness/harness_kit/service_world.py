"""The whole service without HTTP, processes or a disk: wired as `app` wires it, on virtual time.

One `Life` is what a crash takes away; the `MemoryDisk`, the engines and the clients outlive it.
Engines are the mock adapter's, reported Ready as the pool host would. Invariant: a dead life is
never heard again, its connections and those to the engines are cut. An exception in any callback of
the loop fails the test at the next `settle` or `advance`. Above 400 lines because it repeats the
wiring of the composition root.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

import structlog

from harness_kit.core_builders import T0_MS, make_pool
from harness_kit.service_clients import Connection, StreamClient
from harness_kit.virtual_engines import VirtualEngines
from harness_kit.virtual_time import run_virtual
from orchestrator_core.admission.circuit_breaker import BreakerPolicy
from orchestrator_core.limits import Limits
from orchestrator_core.pool import PoolSpec
from orchestrator_core.scheduler import Scheduler
from orchestratord.infra.memory_journal import MemoryDisk, MemoryJournal
from orchestratord.services import records
from orchestratord.services.admission import AdmissionService, Outcome
from orchestratord.services.breakers import BreakerService
from orchestratord.services.cancellation import CancellationService
from orchestratord.services.dispatch import Dispatcher
from orchestratord.services.drafts import Draft
from orchestratord.services.drains import DrainService
from orchestratord.services.explanations import ExplanationService
from orchestratord.services.jobs import Job, JobTable, Promise
from orchestratord.services.recovery import Recovered, RecoveryService
from orchestratord.services.replicas import PoolTraits, ReplicaDirectory
from orchestratord.services.rollouts import RolloutService
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.sessions import SessionService
from orchestratord.services.slo import Objective, SloService
from orchestratord.services.slot_states import PERIOD_S as SLOTS_PERIOD_S
from orchestratord.services.slot_states import SlotStates
from orchestratord.services.streams import ReaderHub
from orchestratord.services.telemetry import Telemetry
from orchestratord.services.termination import TerminationService
from orchestratord.services.watchdog import PERIOD_S, Watchdog
from worker_adapters.adapter_api.types import (
    Decode,
    DecodeRequest,
    EngineProperties,
    Health,
    Sampling,
    TokenSink,
)
from worker_adapters.mock.client import MockClient
from worker_adapters.mock.engine import LoopScheduler, MockEngine
from worker_adapters.mock.script import MockScript

POOL = "p"
PROFILE = "v1"
PROBE_S = 0.5
# A probe that somebody asked for: its way to the engine and back.
STIRRED_PROBE_S = 0.02
READER_TICK_S = 1.0
# Passes when nothing is ready any more: virtual time moves only then.
SETTLE_S = 1e-6


@dataclass(frozen=True, slots=True)
class Setup:
    """What an operator would configure. `token_ms` is each engine's time per token."""

    engines: Mapping[str, MockScript] = field(
        default_factory=lambda: {"r0": MockScript(slots_total=1, token_delay_ms=10)}
    )
    pool: PoolSpec = field(default_factory=lambda: make_pool(sampler_profile_version=PROFILE))
    profiles: Mapping[str, Sampling] = field(default_factory=lambda: {PROFILE: Sampling()})
    limits: Limits = field(default_factory=lambda: Limits(session_max_turns=10**6))
    retain_s: int = 600
    retain_bytes: int = 1 << 28
    metrics_s: float = 1.0
    wall_ms: int = 60_000
    idle_ms: int = 5_000
    cancel_on_disconnect: bool = False
    objectives: tuple[Objective, ...] = ()
    slo_window_s: int = 10
    breaker: BreakerPolicy | None = None
    exact_counts: bool = False


class Link(MockClient):
    """A connection pool to one engine that dies with the service."""

    def __init__(self, engine: MockEngine, on_decode: Callable[[str], None]) -> None:
        super().__init__(engine, None)
        self._on_decode = on_decode
        self._open: list[Decode] = []
        self._severed = False

    def decode(self, request: DecodeRequest, sink: TokenSink) -> Decode:
        if self._severed:
            return _NoDecode()
        self._on_decode(request.correlation_id)
        decode = super().decode(request, sink)
        self._open.append(decode)
        return decode

    def sever(self) -> None:
        """Every connection closes without a word, as when a process is killed."""
        self._severed = True
        for decode in self._open:
            decode.cancel()


class _NoDecode:
    def cancel(self) -> None:
        """Nothing was begun."""


class _Journal(MemoryJournal):
    """After a crash nobody waits for an answer: appends are lost without a sound."""

    dead = False

    def append(self, record: bytes, *, urgent: bool = True) -> asyncio.Future[int]:
        if self.dead:
            return asyncio.get_running_loop().create_future()
        return super().append(record, urgent=urgent)


class Life:
    """One run of the service: what `app.Orchestrator` wires, without server and pool host."""

    def __init__(self, world: ServiceWorld, disk: MemoryDisk) -> None:
        setup, clock = world.setup, world.clock_ms
        self._world = world
        self.journal = _Journal(disk)
        self.telemetry = Telemetry()
        self.jobs = JobTable(setup.retain_s * 1000, setup.retain_bytes)
        self.scheduling = SchedulingService(Scheduler(setup.limits), self.jobs, clock)
        traits = PoolTraits(
            setup.pool, "model", setup.wall_ms, setup.idle_ms, False, setup.breaker, managed=True
        )
        self.replicas = ReplicaDirectory(self.scheduling, self.telemetry, {POOL: traits})
        self.termination = TerminationService(
            self.jobs, self.journal, self.telemetry, clock, lambda job, sha256: None
        )
        self.dispatcher = Dispatcher(
            self.scheduling,
            self.jobs,
            self.replicas,
            self.termination,
            self.journal,
            self.telemetry,
            world.loop.time,
        )
        self.slot_states = SlotStates(self.scheduling, self.replicas, self.telemetry)
        self.hub = ReaderHub(self.scheduling, setup.metrics_s)
        self.cancellation = CancellationService(self.scheduling)
        self.admission = AdmissionService(
            self.scheduling,
            self.jobs,
            self.replicas,
            self.journal,
            self.telemetry,
            setup.profiles,
            exact_counts=setup.exact_counts,
        )
        self.explanations = ExplanationService(self.scheduling, self.jobs, self.admission.refused)
        ttl_ms = setup.limits.session_ttl_ms
        self.sessions = SessionService(
            self.scheduling, self.jobs, self.journal, ttl_ms, budgeted=setup.exact_counts
        )
        self.recovery = RecoveryService(
            self.scheduling,
            self.jobs,
            self.journal,
            self.termination,
            ttl_ms,
            self.replicas.pools,
        )
        self.watchdog = Watchdog(
            self.dispatcher, self.scheduling, self.jobs, self.journal, world.loop.time
        )
        self.slo = SloService(
            setup.objectives,
            setup.slo_window_s,
            self.scheduling,
            world.loop.time,
            None if setup.breaker is None else setup.breaker.open_after_ms / 2000,
        )
        self.breakers = BreakerService(self.slo, self.scheduling, self.replicas, world.loop.time)
        self.dispatcher.on_first_token = self.slo.first_token
        self.termination.on_end = self.slo.ended
        self.scheduling.on_admitted = self.admission.write_down
        self.scheduling.on_dispatch = self.dispatcher.start
        self.scheduling.on_stop = self.dispatcher.stop
        self.scheduling.on_preempt = self.dispatcher.preempt
        self.scheduling.on_moved = self.dispatcher.moved
        self.scheduling.on_ended = self.termination.evict
        self.replicas.report_broken = lambda _pool, replica: world.broken(replica)
        self.replicas.report_doubtful = lambda _pool, replica: world.doubtful(replica)
        self.replicas.on_lost = self.dispatcher.lose_replica
        self.replicas.on_withdrawn = self.dispatcher.evacuate
        self.drains = DrainService(self.scheduling, self.replicas, world.host, self.telemetry)
        self.rollouts = RolloutService(
            self.scheduling, self.replicas, world.host, self.drains, self.telemetry
        )
        self.dispatcher.on_disturbance = self.hub.notice
        if setup.cancel_on_disconnect:
            self.hub.on_abandoned = self.cancellation.request
        self.links: list[Link] = []
        self.dead = False
        self.recovered = Recovered(0, 0, 0, 0)

    def begin(self) -> None:
        """Replay, then tick as the service does."""
        self.replicas.start()
        self.recovered = self.recovery.run()
        self._every(PERIOD_S, self.watchdog.look)
        self._every(SLOTS_PERIOD_S, self.slot_states.look)
        if self._world.setup.objectives:
            self._every(self.slo.look_s, self.look_at_objectives)
        self._every(READER_TICK_S, lambda: self.hub.tick(READER_TICK_S))

    def look_at_objectives(self) -> None:
        """What `app` does once a second."""
        self.breakers.look(attempt.job for attempt in self.dispatcher.running)

    def _every(self, period_s: float, work: Callable[[], None]) -> None:
        def tick() -> None:
            if not self.dead:
                self._world.loop.call_later(period_s, tick)
                work()

        self._world.loop.call_later(period_s, tick)


@dataclass(slots=True)
class Submission:
    """One POST: what was asked and, once answered, what the client was told."""

    draft: Draft
    outcome: Outcome | None = None
    promise: Promise | None = None
    on_disk: bool = False

    @property
    def admitted(self) -> bool:
        return isinstance(self.outcome, Job)


@dataclass(slots=True)
class Cancellation:
    """One DELETE: `acknowledged` with the number of tokens in the log at that instant."""

    draft: Draft
    acknowledged: bool = False
    tokens: int = 0
    unaware: list[StreamClient] = field(default_factory=list)


class ServiceWorld:
    """Make it inside a running virtual-time loop; then `await start()`."""

    def __init__(self, setup: Setup | None = None) -> None:
        self.setup = setup or Setup()
        self.loop = asyncio.get_running_loop()
        self.loop.set_exception_handler(self._note_failure)
        self.disk = MemoryDisk()
        self.engines = {
            name: MockEngine(script, LoopScheduler()) for name, script in self.setup.engines.items()
        }
        self.clients: list[StreamClient] = []
        self.decodes: list[str] = []  # correlation ids, in the order the engines were asked
        self.on_decode: Callable[[str], None] = self.decodes.append
        self.failures: list[BaseException | str] = []
        self.crashes = 0
        self.clock_step_ms = 0  # somebody set the wall clock
        self.properties: dict[str, EngineProperties] = {}
        self._work: set[asyncio.Task[None]] = set()
        self.host = VirtualEngines(self, POOL)
        self.life: Life

    @property
    def now_s(self) -> float:
        return self.loop.time()

    def clock_ms(self) -> int:
        return T0_MS + round(self.loop.time() * 1000) + self.clock_step_ms

    # --- the process -------------------------------------------------------------------------

    async def start(self, *, ready: bool = True) -> None:
        """A first life; `ready`: its engines take work from the start."""
        for name, engine in self.engines.items():
            self.properties[name] = await MockClient(engine, None).properties()
        self._live(self.disk, ready)

    def crash(self) -> None:
        """The process dies at this instant; only disk, engines and clients are left."""
        life = self.life
        life.dead = True
        life.journal.dead = True
        self.disk = life.journal.crash()
        for link in life.links:
            link.sever()
        for client in self.clients:
            reader = client.reader
            if reader is not None and isinstance(reader.writer, Connection):
                reader.writer.cut = True
            client.lose()
        for work in tuple(self._work):
            work.cancel()
        self.crashes += 1

    def restart(self, *, ready: bool = True) -> None:
        """A new life on what the disk has; engines are Ready at once, or after a probe."""
        self._live(self.disk, ready)

    def _live(self, disk: MemoryDisk, ready: bool) -> None:
        self.life = Life(self, disk)
        self.life.begin()
        for name in self.engines:
            if ready:
                self.probe(name)
            else:
                self.probe_later(name)

    # --- engines -----------------------------------------------------------------------------

    def probe(self, name: str) -> None:
        """What the pool host does: tell the directory how the engine is."""
        engine, replicas = self.engines[name], self.life.replicas
        known = replicas.get(replicas.home(POOL, name), name)
        if engine.health is Health.OK and known is None:
            link = Link(engine, lambda correlation_id: self.on_decode(correlation_id))
            self.life.links.append(link)
            replicas.replica_ready(POOL, name, link, self.properties[name], ())
        elif engine.health is not Health.OK and known is not None:
            replicas.replica_lost(POOL, name, _Cause("probe", "no answer"))

    def broken(self, name: str) -> None:
        """What the pool host does with that report: the replica is lost, and probed at once."""
        cause = _Cause("connection", "a task's connection broke")
        self.life.replicas.replica_lost(POOL, name, cause)
        self.probe_later(name, STIRRED_PROBE_S)

    def doubtful(self, name: str) -> None:
        """What the pool host does with that report: a probe at once decides."""
        self.probe_later(name, STIRRED_PROBE_S)

    def probe_later(self, name: str, after_s: float = PROBE_S) -> None:
        life = self.life

        def probe() -> None:
            if not life.dead and self.host.states.get(name) in ("Ready", "Draining"):
                self.probe(name)

        self.loop.call_later(after_s, probe)

    def kill(self, name: str) -> None:
        """The engine dies; an idle one is found out by the next probe."""
        self.engines[name].kill()
        self.probe_later(name)

    def revive(self, name: str) -> None:
        self.engines[name].revive()
        self.probe_later(name)

    # --- clients -----------------------------------------------------------------------------

    def submit(self, of: Draft) -> Submission:
        """Ask; the answer comes with a later `settle`, if it comes."""
        submission, life = Submission(of), self.life

        def answer(outcome: Outcome) -> None:
            if life.dead:
                return
            assert submission.outcome is None, "a request is answered once"
            submission.outcome = outcome
            if isinstance(outcome, Job):
                submission.promise = outcome.promise
                submission.on_disk = self.is_admitted_on_disk(of)

        life.admission.submit(of, answer)
        return submission

    def read(self, of: Draft, last_event_id: int = 0) -> StreamClient:
        """A new client of a task that is known."""
        client = StreamClient(self, of)
        self.clients.append(client)
        assert client.connect(last_event_id), "no such task"
        return client

    def cancel(self, of: Draft) -> Cancellation:
        """Ask to end it; acknowledged with a later `settle`."""
        asked = Cancellation(of)
        job = self.life.jobs.get(of.key)
        assert job is not None, "no such task"

        async def work() -> None:
            await self.life.cancellation.cancel(job)
            asked.acknowledged = True
            asked.tokens = job.log.tokens
            asked.unaware = [
                client
                for client in self.clients
                if client.draft.key == of.key
                and client.connected
                and not client.congested
                and client.terminal is None
            ]

        self.keep(self.loop.create_task(work()))
        return asked

    def keep(self, work: asyncio.Task[None]) -> None:
        """Work of this life; a crash ends it."""
        self._work.add(work)
        work.add_done_callback(self._work.discard)

    # --- time and disk -----------------------------------------------------------------------

    async def admit(self, of: Draft) -> Submission:
        """Submit and wait for the 202."""
        submission = self.submit(of)
        await self.settle()
        assert submission.admitted, submission.outcome
        return submission

    async def settle(self) -> None:
        """Let everything happen that needs no time."""
        await self.advance(SETTLE_S)

    async def advance(self, seconds: float) -> None:
        """Let time pass. Raises what a callback raised meanwhile."""
        await asyncio.sleep(seconds)
        assert not self.failures, self.failures

    def disk_records(self) -> list[records.Record]:
        """Everything durable, in order."""
        rows = self.disk.rows
        return [records.decode(data) for row in sorted(rows) for data in rows[row]]

    def is_admitted_on_disk(self, of: Draft) -> bool:
        """Whether a restart would know the task."""
        return any(
            isinstance(r, records.TaskAdmitted) and (r.tenant, r.task_id) == (of.tenant, of.task_id)
            for r in self.disk_records()
        )

    def has_on_disk(self, of: Draft, event: str, data: bytes) -> bool:
        """Whether a restart would show exactly this terminal event."""
        return any(
            isinstance(r, records.TaskEnded)
            and (r.tenant, r.task_id, r.event, r.data) == (of.tenant, of.task_id, event, data)
            for r in self.disk_records()
        )

    def metric(self, name: str, **labels: str) -> float:
        """A sample of this life's registry, 0 where there is none."""
        self.life.telemetry.render()
        return self.life.telemetry.registry.get_sample_value(name, labels) or 0.0

    def _note_failure(self, _loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        self.failures.append(context.get("exception") or str(context["message"]))


@dataclass(frozen=True, slots=True)
class _Cause:
    code: str
    message: str


def run_world(
    scenario: Callable[[ServiceWorld], Awaitable[None]], setup: Setup | None = None
) -> list[MutableMapping[str, Any]]:
    """Run a scenario in a started world, on virtual time; returns what was logged."""

    async def main() -> None:
        world = ServiceWorld(setup)
        await world.start()
        await scenario(world)
        await world.settle()

    with structlog.testing.capture_logs() as logs:
        run_virtual(main())
    return logs
