"""A pool manager's side of its lease with an orchestrator: reports, heartbeats, good-bye.

Between the pool host, which knows the engines, and an orchestrator's control plane over HTTP. Each
report is the full state, so one that gets lost costs nothing. Invariants: a change is reported at
once, and all that changes within `COALESCE_S` in one report; an orchestrator that is away, or that
refuses, is asked again with backoff whatever changes meanwhile, and the engines run on; nothing is
sent after `close`. Requirements: ORCH-3010, OC-POOL-3001, OC-POOL-3003.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from http import HTTPStatus
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

import aiohttp
import msgspec
import structlog

_log = structlog.get_logger(__name__)

# From a transition to its report: others that come with it go with it.
COALESCE_S = 0.05
# A third of the lease, less up to a fifth of that: two heartbeats may get lost.
BEATS_PER_LEASE = 3
JITTER_SHARE = 0.2
FIRST_RETRY_S = 0.25
LONGEST_RETRY_S = 5.0
CALL_TIMEOUT_S = 5.0

# Another start of this manager may still hold the lease; what is overloaded recovers.
_PASSING = frozenset((HTTPStatus.CONFLICT, HTTPStatus.TOO_MANY_REQUESTS))


class OrchestratorAway(Exception):
    """It cannot be reached, or has no proper answer."""


class Refused(Exception):
    """It answers and says no; `lasting` where the same will not be taken later."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status
        self.lasting = 400 <= status < 500 and status not in _PASSING


class Registrar:
    """`/v1/pool-managers/{id}` of the orchestrator at `url`; use it as a context manager."""

    def __init__(self, url: str, api_key: str | None, manager_id: str) -> None:
        self._url = f"{url.rstrip('/')}/v1/pool-managers/{quote(manager_id, safe='')}"
        self._headers = {"X-API-Key": api_key} if api_key else {}
        self._session: aiohttp.ClientSession

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            headers=self._headers, timeout=aiohttp.ClientTimeout(total=CALL_TIMEOUT_S)
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def register(self, report: Mapping[str, Any]) -> dict[str, Any]:
        """Send a report (`PoolManagerReport`); returns `PoolManagerLease`. Raises
        `OrchestratorAway`, `Refused`."""
        return await self._call("PUT", msgspec.json.encode(report))

    async def deregister(self) -> int:
        """How many replicas still drain; 0 too where the manager is not known. Raises
        `OrchestratorAway`, `Refused`."""
        try:
            return int((await self._call("DELETE", None)).get("replicas", 0))
        except Refused as refusal:
            if refusal.status == HTTPStatus.NOT_FOUND:
                return 0
            raise

    async def _call(self, method: str, body: bytes | None) -> dict[str, Any]:
        headers = {} if body is None else {"Content-Type": "application/json"}
        try:
            async with self._session.request(
                method, self._url, data=body, headers=headers
            ) as response:
                status, text = response.status, await response.read()
            answer = msgspec.json.decode(text, type=dict[str, Any])
        except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError) as error:
            raise OrchestratorAway(f"{type(error).__name__}: {error}") from None
        if status >= 500:
            raise OrchestratorAway(f"HTTP {status}: {answer.get('message', '')}")
        if status >= 300:
            raise Refused(status, str(answer.get("message", f"HTTP {status}")))
        return answer


class Heartbeat:
    """Reports until it is closed. `report` makes what `send` sends; `jitter` gives numbers from 0
    to 1; `on_registered` hears the first answer."""

    def __init__(
        self,
        report: Callable[[], Mapping[str, Any]],
        send: Callable[[Mapping[str, Any]], Awaitable[dict[str, Any]]],
        lease_ms: int,
        jitter: Callable[[], float],
        on_registered: Callable[[dict[str, Any]], None],
    ) -> None:
        self._report = report
        self._send = send
        self._period_s = lease_ms / 1000 / BEATS_PER_LEASE
        self._jitter = jitter
        self._on_registered = on_registered
        self._changed = asyncio.Event()
        self._closing = asyncio.Event()
        self._failures = 0
        self.registered = False

    def stir(self) -> None:
        """Something changed: report soon."""
        self._changed.set()

    def close(self) -> None:
        """`run` ends after the report that is under way."""
        self._closing.set()
        self._changed.set()

    async def run(self) -> None:
        """Until `close`. Raises `Refused` where the first answer is a lasting no."""
        unknown: list[str] = []
        while not self._closing.is_set():
            self._changed.clear()
            try:
                answer = await self._send(self._report())
            except OrchestratorAway as error:
                await self._failed("orchestrator.away", str(error))
                continue
            except Refused as refusal:
                if refusal.lasting and not self.registered:
                    raise
                await self._failed("orchestrator.refused", str(refusal))
                continue
            if self._failures:
                _log.info("orchestrator.back", failures=self._failures)
            self._failures = 0
            if not self.registered:
                self.registered = True
                self._on_registered(answer)
            if answer.get("unknown_pools", []) != unknown:
                unknown = answer.get("unknown_pools", [])
                _log.warning("orchestrator.unknown_pools", pools=unknown)
            await self._pause()

    async def _pause(self) -> None:
        """Until the next heartbeat is due, or something changed."""
        due_s = self._period_s * (1 - JITTER_SHARE * self._jitter())
        with suppress(TimeoutError):
            async with asyncio.timeout(due_s):
                await self._changed.wait()
                await asyncio.sleep(0 if self._closing.is_set() else COALESCE_S)

    async def _failed(self, event: str, cause: str) -> None:
        """Note it, the first of a row only, and wait: longer each time, up to a heartbeat."""
        if not self._failures:
            _log.warning(event, cause=cause)
        ceiling_s = min(
            LONGEST_RETRY_S, self._period_s, FIRST_RETRY_S * 2.0 ** min(self._failures, 16)
        )
        self._failures += 1
        with suppress(TimeoutError):
            async with asyncio.timeout(ceiling_s / 2 + ceiling_s / 2 * self._jitter()):
                await self._closing.wait()
