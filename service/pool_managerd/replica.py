"""One replica as the pool host knows it: its state, its causes, and who is told.

Between the supervisors, which find out, and the observer, which acts. Invariants: the observer
hears Ready and lost in turns, each at the instant of the transition; every transition is logged
with its cause and told to the observer; a replica that is Ready has a client. Requirements:
ORCH-3002, ORCH-3010, ORCH-3027, ORCH-3032, ORCH-3038, ORCH-3039, ORCH-3053, OC-POOL-3001,
OC-POOL-3003, OC-POOL-3030.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

import structlog

from pool_managerd.observer import (
    DEVICE_FAULTS,
    MEMORY_KINDS,
    Cause,
    CauseCode,
    ReplicaObserver,
)
from pool_managerd.replica_state import ReplicaState, Signal, transition
from worker_adapters.adapter_api.types import EngineClient, EngineProperties

_log = structlog.get_logger(__name__)

# It has a client, and what runs on it goes on.
_SERVES = frozenset({ReplicaState.READY, ReplicaState.DRAINING})


@dataclass(frozen=True, slots=True)
class ReplicaView:
    """A replica as it is now; `properties` are those of its last Ready, `pid` of its engine."""

    id: str
    url: str
    state: ReplicaState
    pid: int | None
    restarts: int
    oom_events: int
    driver_reset_events: int
    properties: EngineProperties | None
    labels: tuple[tuple[str, str], ...]
    last_error: Cause | None


class Replica:
    """State and reports of one replica; all methods are called from the event loop."""

    def __init__(
        self,
        pool_id: str,
        replica_id: str,
        labels: tuple[tuple[str, str], ...],
        observer: ReplicaObserver,
        clock: Callable[[], int],
    ) -> None:
        self.pool_id = pool_id
        self.id = replica_id
        self.url = ""
        self.pid: int | None = None
        self.restarts = 0
        self.oom_events = 0
        self.driver_reset_events = 0
        self.state = ReplicaState.UNLOADED
        self._labels = labels
        self._observer = observer
        self._clock = clock
        self._properties: EngineProperties | None = None
        self._last_error: Cause | None = None
        # What the observer was last told of a preload; None: nothing since the last start.
        self._preload_ok: bool | None = None
        # Memory and driver failures are counted once per life of the engine.
        self._fault_counted = False
        self._stirred = asyncio.Event()
        self.first_outcome = asyncio.Event()

    @property
    def is_ready(self) -> bool:
        return self.state is ReplicaState.READY

    @property
    def serves(self) -> bool:
        """Ready, or Draining: what runs on it goes on."""
        return self.state in _SERVES

    def cause(self, code: CauseCode, message: str) -> Cause:
        """A cause as of now."""
        return Cause(code, message, self._clock())

    def placed(self, labels: tuple[tuple[str, str], ...]) -> None:
        """Where its devices are, for placement; labels that it has already win."""
        self._labels = tuple(sorted((dict(labels) | dict(self._labels)).items()))

    def start(self) -> None:
        """Its preload begins (again)."""
        self._preload_ok = None
        self._fault_counted = False
        self._move(Signal.START)

    def restarted(self) -> None:
        """Its engine is about to be started again."""
        self.restarts += 1
        self._observer.restarted(self.pool_id, self.id)

    def testing(self) -> None:
        """It is healthy and fits; its self-test begins."""
        self._move(Signal.TEST)

    def self_tested(self, ok: bool) -> None:
        """Its self-test ended."""
        self._observer.self_tested(self.pool_id, self.id, ok)

    def ready(self, client: EngineClient, properties: EngineProperties) -> None:
        """It is healthy, fits and works: it takes work."""
        self._properties = properties
        self._move(Signal.HEALTHY)
        self._preload_is(True, None)
        self._observer.replica_ready(self.pool_id, self.id, client, properties, self._labels)

    def fail(self, cause: Cause) -> None:
        """It cannot become Ready, or not now; one that serves is lost."""
        if self.serves:
            self.lose(cause)
            return
        last, self._last_error = self._last_error, cause
        self._count_fault(cause)
        if self.state is not ReplicaState.UNREADY:
            self._move(Signal.FAIL, cause)
            self._preload_is(False, cause)
        elif last is None or last.code is not cause.code:
            _log.warning(
                "replica.unready",
                pool_id=self.pool_id,
                replica_id=self.id,
                code=str(cause.code),
                cause=cause.message,
            )

    def lose(self, cause: Cause) -> None:
        """It serves no more; nothing happens to one that did not."""
        if not self.serves:
            return
        self._last_error = cause
        self._count_fault(cause)
        self._move(Signal.LOSE, cause)
        self._observer.replica_lost(self.pool_id, self.id, cause)

    def wait_for_restart(self, delay_s: float) -> None:
        """It waits before it is started again."""
        self._move(Signal.WAIT, self._last_error, delay_s=round(delay_s, 3))

    def rest(self, rest_s: float) -> None:
        """The restart circuit opened: it is not started for so long."""
        self._move(Signal.BREAK, self._last_error, rest_s=round(rest_s, 3))

    def drain(self) -> bool:
        """Take no more work and finish what runs; False where it was not Ready."""
        if not self.is_ready:
            return False
        self._move(Signal.DRAIN)
        return True

    def lift(self) -> bool:
        """End a drain: take work again; False where it was not Draining."""
        if self.state is not ReplicaState.DRAINING:
            return False
        self._move(Signal.LIFT)
        return True

    def drained(self, cause: Cause) -> None:
        """Its drain is over and its engine will be ended: what still runs on it goes elsewhere."""
        served = self.serves
        if self.state is not ReplicaState.STOPPED:
            self._move(Signal.STOP, cause)
        if served:
            self._observer.replica_lost(self.pool_id, self.id, cause)
        self.first_outcome.set()

    def stopped(self) -> None:
        """The service stops; the observer, which stops too, is not told that it is lost."""
        if self.state is not ReplicaState.STOPPED:
            self._move(Signal.STOP)
        self.first_outcome.set()

    def stir(self) -> None:
        """Somebody noticed something: end the supervisor's pause."""
        self._stirred.set()

    async def pause(self, seconds: float) -> None:
        """Until `stir`, at most so long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._stirred.wait()
        self._stirred.clear()

    def view(self) -> ReplicaView:
        """The replica as it is now."""
        return ReplicaView(
            id=self.id,
            url=self.url,
            state=self.state,
            pid=self.pid,
            restarts=self.restarts,
            oom_events=self.oom_events,
            driver_reset_events=self.driver_reset_events,
            properties=self._properties,
            labels=self._labels,
            last_error=self._last_error,
        )

    def _preload_is(self, ok: bool, cause: Cause | None) -> None:
        if self._preload_ok is not ok:
            self._preload_ok = ok
            self._observer.preload_outcome(self.pool_id, self.id, ok, cause)
        self.first_outcome.set()

    def _count_fault(self, cause: Cause) -> None:
        if self._fault_counted:
            return
        memory, fault = MEMORY_KINDS.get(cause.code), DEVICE_FAULTS.get(cause.code)
        if memory is not None:
            self.oom_events += 1
            self._observer.out_of_memory(self.pool_id, self.id, memory)
        if fault is not None:
            self.driver_reset_events += 1
            self._observer.device_error(self.pool_id, self.id, fault)
        self._fault_counted = memory is not None or fault is not None

    def _move(self, signal: Signal, cause: Cause | None = None, **details: object) -> None:
        before, self.state = self.state, transition(self.state, signal)
        if cause is not None:
            details |= {"code": str(cause.code), "cause": cause.message}
        write = _log.warning if signal in (Signal.FAIL, Signal.LOSE) else _log.info
        write(
            "replica.state",
            pool_id=self.pool_id,
            replica_id=self.id,
            before=str(before),
            state=str(self.state),
            oom_events=self.oom_events,
            driver_reset_events=self.driver_reset_events,
            **details,
        )
        self._observer.replica_state(self.pool_id, self.id, self.state)
