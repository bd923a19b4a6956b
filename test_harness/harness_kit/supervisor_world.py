"""One launched replica on virtual time: its engine is a script, its process only a number.

The supervisor, its replica, state machine, backoff and circuit breaker are the product's own. What
blocks elsewhere (finding the model, in a thread) runs in place, so that the same course is taken
every time. Invariant, checked at each start: the engine before it is gone.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from gpu_telemetry.snapshot import HostGpus
from harness_kit.scripted_engine import ReplicaRecorder, ScriptedAdapter, ScriptedEngine
from harness_kit.virtual_time import VirtualTimeLoop
from pool_managerd.backoff import Backoff
from pool_managerd.engine_ledger import EngineLedger
from pool_managerd.engine_output import EngineOutput
from pool_managerd.engine_process import EngineProcess
from pool_managerd.launched_replica import LaunchedSupervisor
from pool_managerd.preload_check import PreloadCheck
from pool_managerd.replica import Replica
from pool_managerd.settings import LaunchSettings, PoolSettings, RestartSettings

# Above the kernel's largest pid: nobody is ever looked at or signalled by mistake.
FIRST_PID = 1 << 23
NOWHERE = Path("/dev/null/none")


class InPlace(ThreadPoolExecutor):
    """Runs what it is given before it returns."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:  # noqa: BLE001 - whoever awaits it sees it
            future.set_exception(error)
        return future


class ScriptedProcess(EngineProcess):
    """An engine's process without a process; it lives until it is told to end."""

    def __init__(self, number: int, output: EngineOutput, on_exit: Callable[[], None]) -> None:
        self._number = number
        self._output = output
        self._on_exit = on_exit
        self._code: int | None = None
        self.exited = asyncio.Event()
        output.begin()

    @property
    def pid(self) -> int:
        return FIRST_PID + self._number

    @property
    def exit_code(self) -> int | None:
        return self._code

    @property
    def status(self) -> str:
        return "still runs" if self._code is None else f"exited with status {self._code}"

    def print(self, text: str) -> None:
        """It prints a line."""
        self._output.write(text.encode() + b"\n")

    def exit(self, code: int, words: str = "") -> None:
        """It ends, with last words."""
        if self._code is None:
            if words:
                self.print(words)
            self._code = code
            self.exited.set()
            self._on_exit()

    async def stop(self, grace_s: float) -> None:
        self.exit(-15)


class SupervisorWorld:
    """Advance time with `pass_s`; look at `recorder`, `replica` and `starts_s`."""

    def __init__(
        self,
        *,
        restarts: RestartSettings | None = None,
        preload_ms: int = 120_000,
        jitter: float = 1.0,
    ) -> None:
        self.loop = VirtualTimeLoop()
        self.loop.set_default_executor(InPlace())
        self.engine = ScriptedEngine()
        self.recorder = ReplicaRecorder()
        self.processes: list[ScriptedProcess] = []
        self.starts_s: list[float] = []
        pool = PoolSettings(
            "p",
            "llamacpp",
            "m",
            launch=LaunchSettings(1, ("engine",)),
            restarts=restarts or RestartSettings(),
            preload_ms=preload_ms,
        )
        assert pool.launch is not None
        self.replica = Replica("p", "p-0", (), self.recorder, lambda: int(self.now_s * 1000))
        self.supervisor = LaunchedSupervisor(
            self.replica,
            pool,
            pool.launch,
            ScriptedAdapter(anywhere=self.engine),
            lambda: int(self.now_s * 1000),
            marker="0" * 32,
            ledger=EngineLedger(NOWHERE, "0" * 32),
            output=EngineOutput(NOWHERE),
            backoff=Backoff(lambda: jitter),
            preload=PreloadCheck(HostGpus, lambda: None),
            spawn=self._spawn,
        )
        self._task = self.loop.create_task(self.supervisor.run())

    @property
    def now_s(self) -> float:
        return self.loop.time()

    @property
    def process(self) -> ScriptedProcess | None:
        """The engine that runs."""
        last = self.processes[-1] if self.processes else None
        return last if last is not None and last.exit_code is None else None

    def pass_s(self, seconds: float) -> None:
        """Let time pass."""
        self._run(asyncio.sleep(seconds))
        assert not self._task.done(), "the supervisor ended by itself"

    def until(self, state: str, limit_s: float = 600.0) -> None:
        """Let time pass until the replica stands there."""
        end_s = self.now_s + limit_s
        while str(self.replica.state) != state:
            assert self.now_s < end_s, f"{self.replica.state} and not {state} after {limit_s} s"
            self.pass_s(0.05)

    def close(self) -> None:
        """Stop the replica as the service does."""
        if self.loop.is_closed():
            return
        self._task.cancel()
        self._run(asyncio.wait([self._task]))
        self._run(self.supervisor.stop(1.0))
        self.loop.close()
        assert self.engine.open_clients == 0

    def _run(self, work: Coroutine[Any, Any, object]) -> None:
        self.loop.run_until_complete(work)

    def _spawn(
        self,
        command: Sequence[str],
        environment: Mapping[str, str],
        marker: str,
        output: EngineOutput,
        on_exit: Callable[[], None],
    ) -> EngineProcess:
        assert self.process is None, "two engines at once"
        self.starts_s.append(self.now_s)
        process = ScriptedProcess(len(self.processes), output, on_exit)
        self.processes.append(process)
        return process
