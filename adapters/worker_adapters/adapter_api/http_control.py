"""Control calls to an engine: health, properties, tokenise, metrics.

Off the token's path; an aiohttp session of its own per `ControlSession`, opened on first use, so
that a probe never waits behind work: it has another one. Invariants: every call has a time limit
and every answer a size limit; a failure is an `EngineError`. Calls made here have no side effect
at the engine, so one that hit a connection which the engine was just closing is sent again once.
Requirements: ORCH-3054, ORCH-3032.
"""

from __future__ import annotations

import asyncio

import aiohttp

from worker_adapters.adapter_api.faults import malformed, reset
from worker_adapters.adapter_api.origin import Origin
from worker_adapters.adapter_api.types import EngineError, EngineFault

CALL_TIMEOUT_S = 10.0  # tokenising a prompt of megabytes takes seconds, the others milliseconds
ANSWER_MAX_BYTES = 64 << 20  # token ids of a 4 MiB prompt, or a batch of embeddings
KEEPALIVE_S = 4.0  # below the 5 s after which llama.cpp's server closes an idle connection
PROBE_CONNECTIONS_MAX = 8  # at once and per engine: calls that an engine answers at once
WORK_CONNECTIONS_MAX = 64  # calls that may take minutes; more than an engine has slots


class ControlSession:
    """Short request-and-answer calls to one engine."""

    def __init__(self, origin: Origin, connections_max: int) -> None:
        self._origin = origin
        self._connections_max = connections_max
        self._session: aiohttp.ClientSession | None = None

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            self._session = aiohttp.ClientSession(
                connector=aiohttp.TCPConnector(
                    limit=self._connections_max, keepalive_timeout=KEEPALIVE_S
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                trust_env=False,
            )
        return self._session

    async def call(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        timeout_s: float = CALL_TIMEOUT_S,
    ) -> tuple[int, bytes]:
        """Status and body of one call, whatever the status.

        Args:
            body: JSON, or None for none.

        Raises:
            EngineError: TIMEOUT after `timeout_s`; RESET when the connection cannot be opened or
                breaks; MALFORMED when the answer is not HTTP or larger than `ANSWER_MAX_BYTES`.
        """
        try:
            async with asyncio.timeout(timeout_s):
                try:
                    return await self._once(method, path, body)
                except (aiohttp.ServerDisconnectedError, ConnectionResetError):
                    return await self._once(method, path, body)
        except TimeoutError:
            raise EngineError(
                EngineFault.TIMEOUT,
                f"the engine took more than {timeout_s:g} s to answer {path}",
            ) from None
        except aiohttp.ClientResponseError as error:
            raise malformed(f"a response that is not HTTP ({error.message})") from error
        except (aiohttp.ClientError, OSError) as error:
            raise reset(error) from error
        except RuntimeError as error:  # aiohttp's word for a session that was closed meanwhile
            raise reset(error) from error

    async def _once(self, method: str, path: str, body: bytes | None) -> tuple[int, bytes]:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        async with self._opened().request(
            method,
            self._origin.base_url + path,
            data=body,
            headers=headers,
            allow_redirects=False,
        ) as response:
            answer = bytearray()
            async for chunk in response.content.iter_any():
                answer += chunk
                if len(answer) > ANSWER_MAX_BYTES:
                    response.close()
                    raise malformed(f"an answer of more than {ANSWER_MAX_BYTES} bytes")
            return response.status, bytes(answer)

    async def close(self) -> None:
        """Close the session and its connections; a later call opens a new one."""
        if self._session is not None:
            await self._session.close()
            self._session = None
