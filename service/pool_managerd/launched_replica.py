"""Runs an engine of our own: starts it, tests it, keeps it Ready, and starts it again when it ends.

Invariants: never more than one engine process per replica; an engine that died, hangs, does not
fit, fails its self-test or lost its GPU is gone, with all it started, before the next one starts;
restarts are spaced by `Backoff` and bounded by `RestartBreaker`; each life of an engine passes one
self-test before its first Ready. Requirements: ORCH-3001, ORCH-3002, ORCH-3038, ORCH-3039,
ORCH-3049, ORCH-3053, OC-POOL-3001, OC-POOL-3002, OC-POOL-3003, OC-POOL-3010, OC-POOL-3011.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace

import structlog

from pool_managerd.backoff import HEALTHY_RESET_S, Backoff
from pool_managerd.device_masks import DeviceGone
from pool_managerd.engine_ledger import EngineLedger
from pool_managerd.engine_output import EngineOutput, last_words
from pool_managerd.engine_probe import PROBE_PERIOD_S, EngineProbe, NotReady
from pool_managerd.engine_process import EngineProcess
from pool_managerd.failure_classes import ExitEvidence, Failure, classify_exit
from pool_managerd.kernel_evidence import KernelLog, MemoryKills
from pool_managerd.launch_command import engine_command, engine_environment, profile_environment
from pool_managerd.launch_profiles import LaunchRefused
from pool_managerd.listen_port import PORT_ATTEMPTS, free_port, says_port_taken
from pool_managerd.model_files import ModelUnavailable
from pool_managerd.model_store import ModelStore, ModelUse
from pool_managerd.model_use import use_models
from pool_managerd.observer import DEVICE_FAULTS, NOT_STARTED, Cause, CauseCode, DeviceFault
from pool_managerd.preload_check import DoesNotFit, LaunchPlan, MemoryHold, PreloadCheck
from pool_managerd.processes import started_by
from pool_managerd.replica import Replica
from pool_managerd.replica_state import ReplicaState
from pool_managerd.restart_breaker import RestartBreaker
from pool_managerd.self_test import SelfTestFailed, self_test
from pool_managerd.settings import LaunchSettings, PoolSettings
from worker_adapters.adapter_api.types import (
    EngineAdapter,
    EngineClient,
    EngineFault,
    EngineProperties,
)

PRELOAD_PROBE_S = 0.1  # a small model is there in half a second; do not add as much again
# An engine of ours that hangs is given this long to come back, then it is ended and restarted.
HANG_S = 10.0
KILL_GRACE_S = 2.0
# A call that a dying engine cut: its exit, which says more, follows at once.
EXIT_FOLLOWS_S = 1.0

_FAULT_CODES = {fault: code for code, fault in DEVICE_FAULTS.items()}
_log = structlog.get_logger(__name__)


# How an engine is started; as `EngineProcess`.
Spawn = Callable[
    [Sequence[str], Mapping[str, str], str, EngineOutput, Callable[[], None]], EngineProcess
]


@dataclass(frozen=True, slots=True)
class _Prepared:
    """What one life of an engine is started by. It owns what it holds: one that nobody takes,
    because its start was called off meanwhile, lets go of it."""

    command: list[str]
    environment: dict[str, str]
    pool: PoolSettings  # as this engine serves it
    plan: LaunchPlan
    memory: MemoryHold
    uses: tuple[ModelUse, ...]
    memory_kills: int  # the kernel's count before the engine's start


class LaunchedSupervisor:
    """The `run` of one launched replica."""

    def __init__(
        self,
        replica: Replica,
        pool: PoolSettings,
        launch: LaunchSettings,
        adapter: EngineAdapter,
        clock: Callable[[], int],
        *,
        marker: str,
        ledger: EngineLedger,
        output: EngineOutput,
        backoff: Backoff,
        preload: PreloadCheck,
        models: ModelStore | None = None,
        spawn: Spawn = EngineProcess,
    ) -> None:
        self.replica = replica
        self._pool = pool
        self._launch = launch
        self._adapter = adapter
        self._clock = clock
        self._marker = marker
        self._ledger = ledger
        self._output = output
        self._backoff = backoff
        self._preload = preload
        self._models = models
        self._spawn = spawn
        self._start: _Prepared | None = None  # what this life's engine was started by
        restarts = pool.restarts
        self._breaker = RestartBreaker(
            restarts.max_failures, restarts.window_s, restarts.broken_s, HEALTHY_RESET_S
        )
        # Near the pool's devices, where that is known; the pool host says so before `run`.
        self.cpus: tuple[int, ...] = ()
        self._kernel_log = KernelLog()
        self._memory_kills = MemoryKills()
        self._memory_kills_before = 0
        # Of this life: it is over (its process ended, or a fault ended it), and the fault.
        self._over = asyncio.Event()
        self._fault: Cause | None = None
        output.on_fault = self._printed_fault
        self._engine: EngineProcess | None = None
        self._client: EngineClient | None = None
        self._ready_since_s: float | None = None

    async def run(self) -> None:
        """Keep an engine running until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            self.replica.start()
            try:
                cause = await self._live_on_a_port()
            except Exception as error:  # noqa: BLE001
                # A defect here must cost one life of the engine, and be seen.
                _log.exception("replica.supervision_failed", replica_id=self.replica.id)
                cause = self.replica.cause(CauseCode.INTERNAL, repr(error))
            self.replica.fail(cause)
            if cause.code is CauseCode.VRAM_OOM and self._start is not None:
                self._preload.exhausted(self.replica.pool_id, self._start.plan.estimate)
            await self._end_engine(KILL_GRACE_S)
            since_s = self._ready_since_s
            healthy_s = 0.0 if since_s is None else loop.time() - since_s
            if cause.code not in NOT_STARTED and (
                rest_s := self._breaker.after_failure(loop.time(), healthy_s)
            ):
                delay_s = rest_s
                self.replica.rest(rest_s)
            else:
                delay_s = self._backoff.after_failure(healthy_s)
                self.replica.wait_for_restart(delay_s)
            await asyncio.sleep(delay_s)
            await self._close_client()
            self.replica.restarted()

    def broken(self, cause: Cause) -> None:
        """A task's connection broke: no more work until it has answered a probe."""
        self.replica.lose(cause)
        self.replica.stir()

    def device_fault(self, fault: DeviceFault, message: str) -> None:
        """Its GPU or driver failed, as NVML or the engine says: what runs on it goes elsewhere, and
        its engine is ended and started again with backoff. Nothing happens while none runs."""
        if self._engine is None or self._over.is_set():
            return
        self._fault = self.replica.cause(_FAULT_CODES[fault], message)
        self.replica.lose(self._fault)
        self._over.set()
        self.replica.stir()

    async def stop(self, grace_s: float) -> None:
        """End the engine, gently for `grace_s` seconds; after `run` was cancelled."""
        self.replica.stopped()
        await self._end_engine(grace_s)
        await self._close_client()
        self._output.close()
        self._kernel_log.close()

    async def _live_on_a_port(self) -> Cause:
        """One life of the engine; it begins again, on another port and still the same preload,
        while somebody is quicker to take the port that was free. Returns why it is over."""
        for attempt in range(1, PORT_ATTEMPTS + 1):
            cause = await self._live()
            taken = (
                cause.code is CauseCode.EXITED
                and self.replica.state is ReplicaState.PRELOADING
                and says_port_taken(self._output.tail())
            )
            if not taken or attempt == PORT_ATTEMPTS:
                break
            _log.warning("replica.port_taken", replica_id=self.replica.id, cause=cause.message)
            await self._end_engine(KILL_GRACE_S)
            await self._close_client()
        return cause

    async def _live(self) -> Cause:
        """One life of the engine, from its start; returns why it is over."""
        self._ready_since_s = None
        self._fault = None
        self._over.clear()
        replica = self.replica
        port = free_port()
        try:
            # Finding the model may read all of it, to verify it. A stop does not wait for that.
            self._start = start = await asyncio.to_thread(self._prepare, port)
            self._memory_kills_before = start.memory_kills
            engine = self._spawn(
                start.command, start.environment, self._marker, self._output, self._engine_exited
            )
        except DoesNotFit as error:
            return replica.cause(CauseCode.MEMORY, str(error))
        except DeviceGone as error:
            return replica.cause(CauseCode.DEVICE, f"{error}; no engine is started on another one")
        except ModelUnavailable as error:
            return replica.cause(CauseCode.MODEL, str(error))
        except (LaunchRefused, OSError, ValueError) as error:
            return replica.cause(CauseCode.SPAWN, f"cannot start the engine: {error}")
        self._engine = engine
        self._kernel_log.lines()  # what was said before it started does not concern it
        replica.pid = engine.pid
        replica.url = f"http://{self._pool.host}:{port}"
        self._ledger.add(replica.pool_id, replica.id, engine.pid)
        self._client = self._adapter.connect(replica.url)
        probe = EngineProbe(start.pool, replica.url, self._client, self._clock)
        return await self._watch(engine, self._client, probe, start)

    def _prepare(self, port: int) -> _Prepared:
        """In a thread, and to its end though nobody waits for it any more: what it holds is held
        by what it returns, and by nothing of this object."""
        with ExitStack() as undo:
            pool, launch, uses = use_models(self._pool, self._launch, self._models)
            for use in uses:
                undo.callback(use.release)
            plan, memory = self._preload.admit(pool, launch)
            undo.callback(memory.release)
            command = engine_command(
                pool, launch, self.replica.id, port, plan, second_port=free_port(), cpus=self.cpus
            )
            profiled = profile_environment(pool, launch, plan)
            masked = replace(pool, devices=plan.mask)
            environment = engine_environment(masked, launch, self._marker, os.environ, profiled)
            # With as much context as there is memory for.
            prepared = _Prepared(
                command,
                environment,
                replace(pool, ctx=plan.ctx),
                plan,
                memory,
                uses,
                self._memory_kills.count(),
            )
            undo.pop_all()
            return prepared

    async def _watch(
        self, engine: EngineProcess, client: EngineClient, probe: EngineProbe, start: _Prepared
    ) -> Cause:
        loop = asyncio.get_running_loop()
        replica = self.replica
        preload_s = self._pool.preload_ms / 1000
        deadline_s = loop.time() + preload_s
        tested = self._pool.self_test == "never"
        while not self._over.is_set():
            asked_s = loop.time()
            if replica.serves:
                cause = await probe.liveness()
                if cause is None:
                    await replica.pause(max(0.0, PROBE_PERIOD_S - (loop.time() - asked_s)))
                else:
                    replica.lose(cause)
                if not replica.serves:
                    deadline_s = loop.time() + HANG_S
                continue
            verdict = await probe.readiness()
            if self._over.is_set():
                break
            if not isinstance(verdict, NotReady):
                if not tested:
                    failure = await self._self_test(client, verdict, deadline_s)
                    if self._over.is_set():
                        break
                    if failure is not None:
                        return failure
                    tested = True
                self._ready_since_s = loop.time()
                start.memory.release()  # what it takes is taken
                started = await asyncio.to_thread(started_by, engine.pid)
                self._ledger.note_workers(engine.pid, started)
                if self._over.is_set():
                    break
                if (estimate := start.plan.estimate) is not None:
                    verdict = replace(verdict, kv_bytes_per_token=estimate.task_token_bytes)
                replica.ready(client, verdict)
                self._used(start)
                continue
            if verdict.misfit:
                return verdict.cause
            # Not noted as an error: an engine that has just been started is not there yet.
            if loop.time() > deadline_s:
                if self._ready_since_s is not None:
                    return verdict.cause
                return replica.cause(
                    CauseCode.PRELOAD_TIMEOUT,
                    f"not Ready {preload_s:g} s after its start: {verdict.cause.message}",
                )
            await replica.pause(max(0.0, PRELOAD_PROBE_S - (loop.time() - asked_s)))
        return self._fault or self._exit_cause(engine)

    async def _self_test(
        self, client: EngineClient, properties: EngineProperties, deadline_s: float
    ) -> Cause | None:
        """Why it failed; None where it passed, or where the engine's life ended during it."""
        replica = self.replica
        replica.testing()
        test = asyncio.ensure_future(self_test(client, properties))
        over = asyncio.ensure_future(self._over.wait())
        try:
            async with asyncio.timeout_at(deadline_s):
                await asyncio.wait((test, over), return_when=asyncio.FIRST_COMPLETED)
            if not test.done():
                return None  # its engine ended or lost its GPU: that is the cause
            test.result()
        except TimeoutError:
            cause = replica.cause(
                CauseCode.PRELOAD_TIMEOUT,
                f"its self-test was not over {self._pool.preload_ms / 1000:g} s after its start",
            )
        except SelfTestFailed as failure:
            if failure.fault is EngineFault.RESET:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._over.wait(), EXIT_FOLLOWS_S)
            cause = replica.cause(CauseCode.SELF_TEST, f"its self-test failed at {failure}")
        else:
            replica.self_tested(ok=True)
            return None
        finally:
            for task in (test, over):
                task.cancel()
            await asyncio.gather(test, over, return_exceptions=True)
        replica.self_tested(ok=False)
        return cause

    def _engine_exited(self) -> None:
        """From the event loop, at the instant of the exit."""
        if self._engine is not None:
            self._fault = self._fault or self._exit_cause(self._engine)
            self.replica.lose(self._fault)
        self._over.set()
        self.replica.stir()

    def _printed_fault(self, failure: Failure) -> None:
        """From the event loop, with the line that the engine just printed."""
        self.device_fault(DEVICE_FAULTS[failure.code], f"the engine printed: {failure.evidence}")

    def _exit_cause(self, engine: EngineProcess) -> Cause:
        output = self._output.tail()
        failure = classify_exit(
            ExitEvidence(
                engine.pid,
                engine.exit_code or 0,
                output,
                memory_killed=self._memory_kills.count() > self._memory_kills_before,
                kernel_lines=self._kernel_log.lines(),
            )
        )
        code = CauseCode.EXITED if failure is None else failure.code
        words = last_words(output) if failure is None else failure.evidence
        return self.replica.cause(code, f"the engine (pid {engine.pid}) {engine.status}: {words}")

    def _used(self, start: _Prepared) -> None:
        """Its models are evicted after all that were used before."""
        for use in start.uses:
            if self._models is not None and use.file.sha256 is not None:
                self._models.used(use.file.sha256)

    async def _end_engine(self, grace_s: float) -> None:
        try:
            await self._end_process(grace_s)
        finally:
            start, self._start = self._start, None
            if start is not None:
                start.memory.release()
                for use in start.uses:
                    use.release()

    async def _end_process(self, grace_s: float) -> None:
        engine = self._engine
        if engine is None:
            return
        await engine.stop(grace_s)
        self._engine = None
        self.replica.pid = None
        self._ledger.remove(engine.pid)

    async def _close_client(self) -> None:
        client, self._client = self._client, None
        if client is not None:
            await client.close()
