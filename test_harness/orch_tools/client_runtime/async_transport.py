"""The asynchronous exchange of the typed clients, over aiohttp.

A module of its own because aiohttp takes half of a command line's start; who needs no event loop
does not pay for it. The rules are those of `transport`: one exception class, no redirects.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import aiohttp
from yarl import URL

from orchqueue_v1.transport import (
    ERROR_BODY_BYTES_MAX,
    Endpoint,
    Observer,
    Request,
    Response,
    error_from,
    lower_names,
    unreachable,
)


class AsyncTransport:
    """Calls over one aiohttp session, opened by the first call in its event loop."""

    def __init__(self, endpoint: Endpoint, timeout_s: float, observe: Observer | None) -> None:
        self._endpoint = endpoint
        self._timeout_s = timeout_s
        self._observe = observe
        self._session: aiohttp.ClientSession | None = None

    def _open_session(self) -> aiohttp.ClientSession:
        if self._session is None or self._session.closed:
            # Streams are long: the pool's default of 100 connections would be a hidden queue.
            self._session = aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0))
        return self._session

    async def close(self) -> None:
        """Close the pooled connections."""
        if self._session is not None:
            await self._session.close()
            self._session = None

    async def send(self, request: Request) -> Response:
        """Make one call and return its success. Raises `OrchError`."""
        timeout = aiohttp.ClientTimeout(total=self._timeout_s)
        async with self._exchange(request, timeout) as raw:
            try:
                body = await raw.read()
            except (aiohttp.ClientError, OSError, TimeoutError) as error:
                raise unreachable(error, self._endpoint.base) from None
            response = Response(raw.status, lower_names(raw.headers), body)
        if self._observe is not None:
            self._observe(response)
        return response

    @asynccontextmanager
    async def open_stream(
        self, request: Request, read_timeout_s: float
    ) -> AsyncIterator[tuple[Response, AsyncIterator[bytes]]]:
        """Open an event stream: its head and its bytes as they come. Raises `OrchError`."""
        timeout = aiohttp.ClientTimeout(
            total=None, sock_connect=self._timeout_s, sock_read=read_timeout_s
        )
        async with self._exchange(request, timeout) as raw:
            head = Response(raw.status, lower_names(raw.headers))
            if self._observe is not None:
                self._observe(head)
            yield head, self._chunks(raw)

    async def _chunks(self, raw: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        try:
            async for chunk in raw.content.iter_any():
                yield chunk
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unreachable(error, self._endpoint.base) from None

    @asynccontextmanager
    async def _exchange(
        self, request: Request, timeout: aiohttp.ClientTimeout
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        session = self._open_session()
        try:
            raw = await session.request(
                request.method,
                # aiohttp would decode and encode the path again.
                URL(self._endpoint.base + request.path, encoded=True),
                data=request.body,
                headers=self._endpoint.headers(request),
                timeout=timeout,
                allow_redirects=False,
            )
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            raise unreachable(error, self._endpoint.base) from None
        try:
            if not 200 <= raw.status < 300:
                refusal = Response(raw.status, lower_names(raw.headers), await _refusal_body(raw))
                if self._observe is not None:
                    self._observe(refusal)
                raise error_from(refusal)
            yield raw
            if raw.content.at_eof():
                raw.release()
        finally:
            # A stream left early must not be drained: its connection goes.
            raw.close()

    async def sleep(self, delay_s: float) -> None:
        """Wait before trying again."""
        await asyncio.sleep(delay_s)


async def _refusal_body(raw: aiohttp.ClientResponse) -> bytes:
    body = bytearray()
    try:
        async for chunk in raw.content.iter_any():
            body += chunk
            if len(body) >= ERROR_BODY_BYTES_MAX:
                break
    except (aiohttp.ClientError, OSError, TimeoutError):
        # What came is still the best word on why; an envelope cut in two decodes to nothing.
        return bytes(body)
    return bytes(body)
