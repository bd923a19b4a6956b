"""OrchQueue v1 over raw ASGI: one function per operation of the generated route table.

On a task's path: between the gate (key, correlation id) and the services. Handlers decode, call one
service and encode; what is wrong with a request is raised as `HttpError` and answered by the gate.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

import msgspec

from orchestrator_core.errors import Code, Refusal
from orchestratord.api.errors import Headers, HttpError, invalid, refusal_response
from orchestratord.api.keys import Principal
from orchestratord.api.stream import stream_response
from orchestratord.api.tasks import (
    admission_body,
    budget_headers,
    decode_task,
    draft_of,
    known_id,
    last_event_id,
    queue_headers,
)
from orchestratord.api.types import Receive, Scope, Send
from orchestratord.ports.journal import JournalError
from orchestratord.services.admission import AdmissionService, IdConflict
from orchestratord.services.cancellation import CancellationService
from orchestratord.services.jobs import Job, JobTable
from orchestratord.services.sessions import SessionService, remaining_budgets
from orchestratord.services.streams import ReaderHub

JSON_TYPE = (b"content-type", b"application/json")
# A body over the limit is read to its end up to this factor, so that the client sees the 413.
OVERSIZE_FACTOR = 8


@dataclass(frozen=True, slots=True)
class Request:
    """What the gate knows of a request."""

    scope: Scope
    receive: Receive
    send: Send
    principal: Principal
    correlation_id: str
    path_id: str | None
    headers: dict[bytes, bytes]
    base_headers: Headers


Handler = Callable[[Request], Awaitable[int]]


async def respond(send: Send, status: int, headers: Headers, body: bytes = b"") -> int:
    """One whole response; returns its status."""
    if status != 204:
        headers = [*headers, (b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
    return status


async def read_body(receive: Receive, headers: dict[bytes, bytes], max_bytes: int) -> bytes:
    """The whole body. Raises `HttpError` 413 beyond `max_bytes`, after reading it up to a bound."""
    parts: list[bytes] = []
    size = 0
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise invalid("body: the client went away before its end")
        chunk: bytes = message.get("body", b"")
        size += len(chunk)
        if size <= max_bytes:
            parts.append(chunk)
        elif size > max_bytes * OVERSIZE_FACTOR:
            close = ((b"connection", b"close"),)
            raise HttpError(413, Code.INVALID_PARAMS, _too_large(max_bytes), headers=close)
        if not message.get("more_body", False):
            break
    if size > max_bytes:
        raise HttpError(413, Code.INVALID_PARAMS, _too_large(max_bytes))
    return parts[0] if len(parts) == 1 else b"".join(parts)


def _too_large(max_bytes: int) -> str:
    return f"body: larger than server.max_body_bytes ({max_bytes})"


class DataPlane:
    """The handlers, by operation id."""

    def __init__(
        self,
        jobs: JobTable,
        admission: AdmissionService,
        cancellation: CancellationService,
        sessions: SessionService,
        hub: ReaderHub,
        max_body_bytes: int,
    ) -> None:
        self._jobs = jobs
        self._admission = admission
        self._cancellation = cancellation
        self._sessions = sessions
        self._hub = hub
        self._max_body_bytes = max_body_bytes
        self.handlers: dict[str, Handler] = {
            "submit_task": self.submit_task,
            "stream_task": self.stream_task,
            "cancel_task": self.cancel_task,
            "get_session": self.get_session,
            "delete_session": self.delete_session,
        }

    async def submit_task(self, request: Request) -> int:
        body = await read_body(request.receive, request.headers, self._max_body_bytes)
        media_type = request.headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if media_type != b"application/json":
            raise invalid(
                f"Content-Type: expected application/json, got {media_type.decode('latin1')!r}",
                status=415,
            )
        draft = draft_of(decode_task(body), request.principal, request.correlation_id)
        outcome = await self._admission.submit(draft)
        if isinstance(outcome, IdConflict):
            raise invalid(
                f"task_id: {outcome.task_id} is already used with another body", status=409
            )
        if isinstance(outcome, Refusal):
            refused = refusal_response(outcome)
            headers = [JSON_TYPE, *request.base_headers, *refused.headers]
            return await respond(request.send, refused.status, headers, refused.body)
        session = self._sessions.get(draft.tenant, draft.session_id)
        headers = [
            JSON_TYPE,
            *request.base_headers,
            *queue_headers(outcome),
            *budget_headers(session),
        ]
        return await respond(request.send, 202, headers, admission_body(outcome))

    async def stream_task(self, request: Request) -> int:
        job = self._job(request)
        after = last_event_id(request.headers.get(b"last-event-id"))
        if self._hub.full:
            raise HttpError(
                503, Code.REPLICA_EXHAUSTED, "too many open streams; read it later", retriable=True
            )
        headers = [
            *request.base_headers,
            *budget_headers(self._sessions.get(request.principal.tenant, job.session_id)),
        ]
        await stream_response(
            request.scope, request.receive, request.send, self._hub, job, after, headers
        )
        return 200

    async def cancel_task(self, request: Request) -> int:
        job = self._job(request)
        await read_body(request.receive, request.headers, self._max_body_bytes)
        try:
            await self._cancellation.cancel(job)
        except JournalError as error:
            raise HttpError(500, Code.INTERNAL, str(error), retriable=True) from None
        return await respond(request.send, 204, request.base_headers)

    async def get_session(self, request: Request) -> int:
        session = self._sessions.get(request.principal.tenant, known_id(request.path_id))
        if session is None:
            raise invalid("id: no such session", status=404)
        body = msgspec.json.encode(
            {
                "ttl_ms_remaining": session.ttl_ms_remaining,
                "turns": session.turns,
                "kv_bytes": session.kv_bytes,
                "kv_warmth": session.kv_warmth,
                **remaining_budgets(session),
            }
        )
        return await respond(request.send, 200, [JSON_TYPE, *request.base_headers], body)

    async def delete_session(self, request: Request) -> int:
        try:
            known = await self._sessions.forget(request.principal.tenant, known_id(request.path_id))
        except JournalError as error:
            raise HttpError(500, Code.INTERNAL, str(error), retriable=True) from None
        if not known:
            raise invalid("id: no such session", status=404)
        return await respond(request.send, 204, request.base_headers)

    def _job(self, request: Request) -> Job:
        """The task of the path. Raises `HttpError` 404, also for another tenant's."""
        task_id = known_id(request.path_id)
        job = self._jobs.get(f"{request.principal.tenant}/{task_id}")
        if job is None:
            raise invalid("id: no such task", status=404)
        return job
