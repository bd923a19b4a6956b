# Written by `python -m orch_tools regen` from contracts/openapi/data.yaml; edit that instead.
"""Typed clients of `contracts/openapi/data.yaml`.

`AsyncOrchQueueClient` for asyncio, `OrchQueueClient` for threads; the same methods.
Each raises `OrchError` and nothing else when the service refuses or cannot be reached;
only what is `retriable` is worth another try (ORCH-3025). `observe` sees the head of
each answer, where the `X-Budget-*` headers are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from types import TracebackType
from typing import Self

import msgspec

from orchqueue_v1.sse import (
    Reconnect,
    StreamEvent,
    read_stream,
    read_stream_async,
)
from orchqueue_v1.transport import (
    DEFAULT_TIMEOUT_S,
    Endpoint,
    Observer,
    OrchError,
    Request,
    SyncTransport,
    decode,
    path_of,
)
from orchqueue_v1.types import (
    AdmissionResponse,
    DeterminismReport,
    SessionInfo,
    TaskExplanation,
    TaskRequest,
)

__all__ = ["AsyncOrchQueueClient", "OrchQueueClient", "OrchError"]


def _headers(correlation_id: str | None) -> dict[str, str]:
    return {"X-Correlation-Id": correlation_id} if correlation_id else {}


class AsyncOrchQueueClient:
    """Client of data.yaml (asyncio).

    Args: `url` like http://127.0.0.1:8080; `timeout_s` bounds one call, not a stream.
    Raises: ValueError for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        observe: Observer | None = None,
    ) -> None:
        # Imported here: who needs no event loop shall not pay for aiohttp.
        from orchqueue_v1.async_transport import AsyncTransport

        self._transport = AsyncTransport(Endpoint(url, api_key), timeout_s, observe)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close what is open; the client can be used again."""
        await self._transport.close()

    async def submit_task(
        self, body: TaskRequest, *, correlation_id: str | None = None
    ) -> AdmissionResponse:
        """Admit a task. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/tasks"),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), AdmissionResponse)

    def stream_task(
        self,
        task_id: str,
        last_event_id: int | None = None,
        *,
        reconnect: Reconnect | None = None,
        correlation_id: str | None = None,
    ) -> AsyncIterator[StreamEvent]:
        """Read a task's tokens as server-sent events.

        Goes on by itself after a broken connection; no event with an id comes twice.
        Raises `OrchError`: refused (404), out of tries, or an event is missing.
        """
        request = Request(
            "GET",
            path_of("/v1/tasks/{}/stream", task_id),
            None,
            _headers(correlation_id),
        )
        return read_stream_async(self._transport, request, last_event_id, reconnect)

    async def cancel_task(self, task_id: str, *, correlation_id: str | None = None) -> None:
        """End a queued or running task. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/tasks/{}/cancel", task_id),
            None,
            _headers(correlation_id),
        )
        await self._transport.send(request)

    async def explain_task(
        self, task_id: str, *, tenant: str | None = None, correlation_id: str | None = None
    ) -> TaskExplanation:
        """Why a task was placed, delayed, shed or refused. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/tasks/{}/explanation", task_id, query={"tenant": tenant}),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), TaskExplanation)

    async def get_determinism(
        self, task_id: str, *, correlation_id: str | None = None
    ) -> DeterminismReport:
        """What proves a strict stream. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/tasks/{}/determinism", task_id),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), DeterminismReport)

    async def get_session(
        self, session_id: str, *, correlation_id: str | None = None
    ) -> SessionInfo:
        """What is left of a session. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/sessions/{}", session_id),
            None,
            _headers(correlation_id),
        )
        return decode(await self._transport.send(request), SessionInfo)

    async def delete_session(self, session_id: str, *, correlation_id: str | None = None) -> None:
        """Forget a session and free its KV. Raises `OrchError`."""
        request = Request(
            "DELETE",
            path_of("/v1/sessions/{}", session_id),
            None,
            _headers(correlation_id),
        )
        await self._transport.send(request)


class OrchQueueClient:
    """Client of data.yaml (blocking; any thread may use it).

    Args: `url` like http://127.0.0.1:8080; `timeout_s` bounds one call, not a stream.
    Raises: ValueError for a URL that is none.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
        observe: Observer | None = None,
    ) -> None:
        self._transport = SyncTransport(Endpoint(url, api_key), timeout_s, observe)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close what is open; the client can be used again."""
        self._transport.close()

    def submit_task(
        self, body: TaskRequest, *, correlation_id: str | None = None
    ) -> AdmissionResponse:
        """Admit a task. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/tasks"),
            msgspec.json.encode(body),
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), AdmissionResponse)

    def stream_task(
        self,
        task_id: str,
        last_event_id: int | None = None,
        *,
        reconnect: Reconnect | None = None,
        correlation_id: str | None = None,
    ) -> Iterator[StreamEvent]:
        """Read a task's tokens as server-sent events.

        Goes on by itself after a broken connection; no event with an id comes twice.
        Raises `OrchError`: refused (404), out of tries, or an event is missing.
        """
        request = Request(
            "GET",
            path_of("/v1/tasks/{}/stream", task_id),
            None,
            _headers(correlation_id),
        )
        return read_stream(self._transport, request, last_event_id, reconnect)

    def cancel_task(self, task_id: str, *, correlation_id: str | None = None) -> None:
        """End a queued or running task. Raises `OrchError`."""
        request = Request(
            "POST",
            path_of("/v1/tasks/{}/cancel", task_id),
            None,
            _headers(correlation_id),
        )
        self._transport.send(request)

    def explain_task(
        self, task_id: str, *, tenant: str | None = None, correlation_id: str | None = None
    ) -> TaskExplanation:
        """Why a task was placed, delayed, shed or refused. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/tasks/{}/explanation", task_id, query={"tenant": tenant}),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), TaskExplanation)

    def get_determinism(
        self, task_id: str, *, correlation_id: str | None = None
    ) -> DeterminismReport:
        """What proves a strict stream. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/tasks/{}/determinism", task_id),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), DeterminismReport)

    def get_session(self, session_id: str, *, correlation_id: str | None = None) -> SessionInfo:
        """What is left of a session. Raises `OrchError`."""
        request = Request(
            "GET",
            path_of("/v1/sessions/{}", session_id),
            None,
            _headers(correlation_id),
        )
        return decode(self._transport.send(request), SessionInfo)

    def delete_session(self, session_id: str, *, correlation_id: str | None = None) -> None:
        """Forget a session and free its KV. Raises `OrchError`."""
        request = Request(
            "DELETE",
            path_of("/v1/sessions/{}", session_id),
            None,
            _headers(correlation_id),
        )
        self._transport.send(request)
