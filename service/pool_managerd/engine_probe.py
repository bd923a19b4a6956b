"""Is this engine alive, and is it the one its pool promises?

Between the pool host and an engine's client. Invariants: an engine that is busy is not a dead one:
silence counts only after three seconds of it, a refused or cut connection at once (and once more,
to be sure); an engine is Ready only with enough context and the right model.
Requirements: ORCH-3002, ORCH-3010, ORCH-3032, ORCH-3037, OC-POOL-3001.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from pool_managerd.observer import Cause, CauseCode
from pool_managerd.settings import PoolSettings
from worker_adapters.adapter_api.types import (
    UNKNOWN_DIGEST,
    EngineClient,
    EngineError,
    EngineFault,
    EngineProperties,
    Health,
)

PROBE_PERIOD_S = 0.5
PROBE_TIMEOUT_S = 1.0
# One slow scheduling of a loaded host is a second or two; three in silence is a hang.
SILENCE_S = 3.0
CONFIRM_S = 0.05


class _Answer(Enum):
    OK = "ok"
    LOADING = "loading"
    REFUSED = "refused"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class NotReady:
    """Why an engine is not Ready. `misfit`: it runs, and will not fit by waiting."""

    cause: Cause
    misfit: bool = False


class EngineProbe:
    """Asks one engine; `configured_digest` is what an external replica's configuration claims."""

    def __init__(
        self,
        pool: PoolSettings,
        url: str,
        client: EngineClient,
        clock: Callable[[], int],
        configured_digest: str | None = None,
    ) -> None:
        self._pool = pool
        self._url = url
        self._client = client
        self._clock = clock
        self._configured_digest = configured_digest
        self._silent_since_s: float | None = None

    async def readiness(self) -> EngineProperties | NotReady:
        """What a healthy, fitting engine says of itself; read anew each time."""
        answer = await self._ask()
        if answer is not _Answer.OK:
            return NotReady(self._cause_of(answer))
        try:
            properties = await self._client.properties()
        except EngineError as error:
            code = {
                EngineFault.RESET: CauseCode.CONNECTION,
                EngineFault.TIMEOUT: CauseCode.TIMEOUT,
                EngineFault.UNAVAILABLE: CauseCode.LOADING,
            }.get(error.fault, CauseCode.PROTOCOL)
            return NotReady(self._cause(code, f"engine at {self._url}: {error.message}"))
        self._silent_since_s = None
        return self._misfit(properties) or properties

    async def liveness(self) -> Cause | None:
        """None while a Ready engine is to be trusted; else why not."""
        answer = await self._ask()
        if answer is _Answer.REFUSED:
            await asyncio.sleep(CONFIRM_S)
            answer = await self._ask()
        now_s = asyncio.get_running_loop().time()
        if answer is _Answer.SILENT:
            if self._silent_since_s is None:
                self._silent_since_s = now_s - PROBE_TIMEOUT_S
            return self._cause_of(answer) if now_s - self._silent_since_s >= SILENCE_S else None
        self._silent_since_s = None
        return None if answer is _Answer.OK else self._cause_of(answer)

    async def _ask(self) -> _Answer:
        loop = asyncio.get_running_loop()
        asked_s = loop.time()
        try:
            health = await self._client.health(PROBE_TIMEOUT_S)
        except EngineError as error:
            return _Answer.SILENT if error.fault is EngineFault.TIMEOUT else _Answer.REFUSED
        match health:
            case Health.OK:
                return _Answer.OK
            case Health.LOADING:
                return _Answer.LOADING
            case Health.DOWN:
                # An adapter says DOWN for a refusal, which is quick, and for silence, which is not.
                waited_s = loop.time() - asked_s
                return _Answer.SILENT if waited_s >= PROBE_TIMEOUT_S * 0.9 else _Answer.REFUSED

    def _misfit(self, properties: EngineProperties) -> NotReady | None:
        if properties.ctx_max < self._pool.ctx:
            return NotReady(
                self._cause(
                    CauseCode.CONTEXT,
                    f"pool {self._pool.id} promises ctx {self._pool.ctx}, but the engine at "
                    f"{self._url} offers {properties.ctx_max} per slot",
                ),
                misfit=True,
            )
        claimed = self._configured_digest
        if claimed and properties.model_digest not in (UNKNOWN_DIGEST, claimed):
            return NotReady(
                self._cause(
                    CauseCode.DIGEST,
                    f"the engine at {self._url} serves {properties.model_digest}, "
                    f"but its model_digest is configured as {claimed}",
                ),
                misfit=True,
            )
        return None

    def _cause_of(self, answer: _Answer) -> Cause:
        match answer:
            case _Answer.LOADING:
                return self._cause(CauseCode.LOADING, f"engine at {self._url} loads its model")
            case _Answer.SILENT:
                return self._cause(CauseCode.TIMEOUT, f"engine at {self._url} does not answer")
            case _:
                return self._cause(CauseCode.CONNECTION, f"engine at {self._url} is not reachable")

    def _cause(self, code: CauseCode, message: str) -> Cause:
        return Cause(code, message, self._clock())
