"""`GET /v1/tasks/{id}/stream`: server-sent events straight from the log to the connection.

The head leaves with the events that are there already; from then on the log's own callback writes.
No coroutine is involved. Requirements: ORCH-2002, ORCH-3202.
"""

from __future__ import annotations

from orchestratord.api.http_server import Headers, HttpConnection
from orchestratord.api.types import Exchange
from orchestratord.services.jobs import Job
from orchestratord.services.streams import ReaderHub, StreamReader

_HEAD: Headers = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]


class ConnectionWriter:
    """An `EventWriter` on one connection; the head goes out with the first bytes."""

    __slots__ = ("_connection", "_head")

    def __init__(self, connection: HttpConnection, head: Headers) -> None:
        self._connection = connection
        self._head: Headers | None = head

    @property
    def congested(self) -> bool:
        return self._connection.congested

    def write(self, data: bytes) -> None:
        head, self._head = self._head, None
        if head is None:
            self._connection.write(data)
        else:
            self._connection.start_stream(head, data)

    def begin(self) -> None:
        """Send the head now when nothing has been written yet."""
        head, self._head = self._head, None
        if head is not None:
            self._connection.start_stream(head, b"")

    def finish(self, last: bytes = b"") -> None:
        head, self._head = self._head, None
        if head is None:
            self._connection.end_stream(last)
        else:
            self._connection.start_stream(head, last, ends=True)


def stream_response(
    exchange: Exchange, hub: ReaderHub, job: Job, last_event_id: int, headers: Headers
) -> None:
    """Answer with the events after `last_event_id`, until the terminal one or the client's end."""
    connection = exchange.connection
    writer = ConnectionWriter(connection, [*_HEAD, *headers, *exchange.base_headers])
    reader: StreamReader = hub.attach(job, last_event_id, writer)
    exchange.counted(200)
    connection.on_lost = lambda: hub.gone(reader)
    connection.on_writable = reader.pump
    reader.pump()
    writer.begin()
