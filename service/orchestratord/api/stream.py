"""`GET /v1/tasks/{id}/stream`: server-sent events straight from the log to the connection.

The head goes through uvicorn, the events go to the transport as HTTP chunks, the end goes through
uvicorn again, so that the connection stays usable. Requirements: ORCH-2002, ORCH-3202.
"""

from __future__ import annotations

import asyncio

from orchestratord.api.errors import Headers
from orchestratord.api.server import SCOPE_KEY, Connection
from orchestratord.api.types import Receive, Scope, Send
from orchestratord.services.jobs import Job
from orchestratord.services.streams import ReaderHub

_HEAD: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ConnectionWriter:
    """Writes events as HTTP chunks on one connection."""

    __slots__ = ("_connection", "done")

    def __init__(self, connection: Connection, done: asyncio.Future[bool]) -> None:
        self._connection = connection
        self.done = done

    @property
    def congested(self) -> bool:
        return self._connection.flow.write_paused

    def write(self, data: bytes) -> None:
        self._connection.transport.write(b"%x\r\n%b\r\n" % (len(data), data))

    def finish(self) -> None:
        if not self.done.done():
            self.done.set_result(True)


async def stream_response(
    scope: Scope,
    receive: Receive,
    send: Send,
    hub: ReaderHub,
    job: Job,
    last_event_id: int,
    headers: Headers,
) -> None:
    """Answer with the events after `last_event_id` until the terminal event or the client's end."""
    connection: Connection = scope[SCOPE_KEY]
    done: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
    writer = ConnectionWriter(connection, done)
    await send({"type": "http.response.start", "status": 200, "headers": _HEAD + headers})
    if connection.cycle.disconnected:
        return
    reader = hub.attach(job, last_event_id, writer)

    def lost() -> None:
        if not done.done():
            done.set_result(False)

    connection.on_lost = lost
    connection.on_writable = reader.pump
    try:
        reader.pump()
        complete = await done
    finally:
        connection.on_lost = connection.on_writable = None
        reader.close()
    if complete:
        await send({"type": "http.response.body", "body": b"", "more_body": False})
    else:
        hub.gone(reader)
