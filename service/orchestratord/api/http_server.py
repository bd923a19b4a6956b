"""An HTTP/1.1 server on `asyncio.Protocol` and httptools: whole requests in, bytes out.

On a task's path: the first and the last code. A connection parses one request at a time, hands it
over when its (bounded) body is complete, and takes the next one when the answer has been written;
what a client sends ahead waits. An answer costs one write and no asyncio task; a stream is
written chunk by chunk from the turn of the event loop in which a token arrived
(requirements/decisions/0004). Invariants: answers leave in the order of their requests; nothing is
written after the end of an answer; every buffer has a bound.

Above 400 lines because a connection is one state machine over its parser's callbacks, its answers
in order, and both directions' flow control.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import socket
from collections import deque
from collections.abc import Callable
from http import HTTPStatus
from typing import cast
from urllib.parse import unquote

import httptools

Headers = list[tuple[bytes, bytes]]

# Request line and headers; beyond it 431. Proxies allow 8 to 64 KiB.
MAX_HEAD_BYTES = 64 * 1024
# A body over the limit is read to its end up to this factor, so that the client sees the 413.
OVERSIZE_FACTOR = 8
# Requests sent ahead on one connection before reading stops.
MAX_PIPELINED = 8
# Beyond it a new connection is told so and closed; each costs a socket and some buffers.
MAX_CONNECTIONS = 20_000
# A connection may be idle between requests for this long.
KEEP_ALIVE_S = 75.0
# A request must be complete this long after its first byte.
REQUEST_S = 60.0
SWEEP_S = 5.0
BACKLOG = 4096

_STATUS_LINES = {
    status.value: b"HTTP/1.1 %d %b\r\n" % (status.value, status.phrase.encode())
    for status in HTTPStatus
}
_LAST_CHUNK = b"0\r\n\r\n"
_OFFER_HEADERS = frozenset({b"upgrade", b"connection", b"http2-settings"})
_ALLOW = b"allow: DELETE, GET, HEAD, POST\r\n"
_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


# A minted correlation id is unique over processes by its first half, within one by its second.
_PROCESS = secrets.token_hex(8)
_minted = itertools.count(1)


def minted_id() -> str:
    """A correlation id for a request that brought none."""
    return f"{_PROCESS}{next(_minted):016x}"


class HttpRequest:
    """One whole request. Header names are in lower case; of a repeated header the last counts."""

    __slots__ = ("body", "headers", "http_10", "keep_alive", "method", "oversize", "path", "query")

    def __init__(self) -> None:
        self.method = ""
        self.path = ""
        self.query = b""
        self.headers: dict[bytes, bytes] = {}
        self.body: bytes = b""
        self.oversize = False
        self.keep_alive = True
        self.http_10 = False


class HttpConnection(asyncio.Protocol):
    """One client connection: parser, the answer under way, and requests that wait for it."""

    def __init__(self, server: HttpServer) -> None:
        self._server = server
        self._parser = httptools.HttpRequestParser(self)
        self._transport: asyncio.Transport
        self._waiting: deque[HttpRequest] = deque()
        self._waiting_bytes = 0
        self._answering: HttpRequest | None = None
        self._streaming = False
        self._request = HttpRequest()
        self._url = b""
        self._head_bytes = 0
        self._parts: list[bytes] = []
        self._size = 0
        self._reading_paused = False
        self._closing = False
        self.congested = False
        self.since_s = server.now_s()
        self.on_lost: Callable[[], None] | None = None
        self.on_writable: Callable[[], None] | None = None

    # --- transport -----------------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        if len(self._server.connections) >= MAX_CONNECTIONS:
            self._refuse(503, b"too many connections")
            return
        self._server.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self._closing = True
        self._server.forget(self)
        self._waiting.clear()
        if self.on_lost is not None:
            self.on_lost()

    def pause_writing(self) -> None:
        self.congested = True

    def resume_writing(self) -> None:
        self.congested = False
        if self.on_writable is not None:
            self.on_writable()
        elif self._waiting:
            self._answer_next()

    def data_received(self, data: bytes) -> None:
        if self._closing:
            return
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade as offer:
            self._decline(data[offer.args[0] :])
        except httptools.HttpParserInvalidMethodError:
            self._refuse(405, b"method: nothing here is served with it")
        except httptools.HttpParserError:
            self._refuse(400, b"the request is not valid HTTP")

    def _decline(self, rest: bytes) -> None:
        """An offer of another protocol is ignored, as RFC 9110 (7.8) allows: the parser has
        stopped at the end of the head, so the request is parsed again without the offer."""
        request = self._request
        if request.method == "CONNECT":
            self._refuse(405, b"method: CONNECT is not served here")
            return
        head = [b"%b %b HTTP/1.1\r\n" % (request.method.encode(), self._url)]
        head += [
            b"%b: %b\r\n" % header
            for header in request.headers.items()
            if header[0] not in _OFFER_HEADERS
        ]
        self._parser = httptools.HttpRequestParser(self)
        self.data_received(b"".join(head) + b"\r\n" + rest)

    # --- parser --------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._request = HttpRequest()
        self._url = b""
        self._head_bytes = 0
        self._parts = []
        self._size = 0
        if self._answering is None:
            self.since_s = self._server.now_s()

    def on_url(self, url: bytes) -> None:
        self._url += url
        self._head_bytes += len(url)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()

    def on_header(self, name: bytes, value: bytes) -> None:
        self._head_bytes += len(name) + len(value)
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse_head()
        self._request.headers[name.lower()] = value

    def _refuse_head(self) -> None:
        self._refuse(431, b"the headers are too large")

    def on_headers_complete(self) -> None:
        if self._closing:
            return
        request = self._request
        request.method = self._parser.get_method().decode("ascii")
        if self._parser.should_upgrade():
            return  # comes again without the offer
        request.http_10 = self._parser.get_http_version() == "1.0"
        try:
            url = httptools.parse_url(self._url)
        except httptools.HttpParserInvalidURLError:
            self._refuse(400, b"the request target is not valid")
            return
        path: bytes = url.path or b"/"
        request.path = _unquoted(path) if b"%" in path else path.decode("latin-1")
        request.query = url.query or b""
        expects = request.headers.get(b"expect", b"").lower() == b"100-continue"
        if expects and self._answering is None:  # else it would stand within another answer
            self._transport.write(_CONTINUE)

    def on_body(self, body: bytes) -> None:
        self._size += len(body)
        if self._size <= self._server.max_body_bytes:
            self._parts.append(body)
            return
        self._request.oversize = True
        self._parts = []
        if self._size > self._server.max_body_bytes * OVERSIZE_FACTOR and not self._closing:
            request = self._request
            request.keep_alive = False
            self._closing = True  # stop listening to it, answer what is there
            self._take(request)

    def on_message_complete(self) -> None:
        if self._closing or self._parser.should_upgrade():
            return
        request = self._request
        parts = self._parts
        request.body = parts[0] if len(parts) == 1 else b"".join(parts)
        self._parts = []
        self._head_bytes = self._size = 0
        request.keep_alive = self._parser.should_keep_alive()
        self._take(request)

    # --- requests and answers ------------------------------------------------------------------

    def _take(self, request: HttpRequest) -> None:
        if self._answering is None and not self.congested and not self._waiting:
            self._answer(request)
            return
        # Also while the client does not read what it has been answered already.
        self._waiting.append(request)
        self._waiting_bytes += len(request.body)
        full = len(self._waiting) >= MAX_PIPELINED
        if (full or self._waiting_bytes > self._server.max_body_bytes) and not self._reading_paused:
            self._reading_paused = True
            self._transport.pause_reading()

    def _answer(self, request: HttpRequest) -> None:
        self._answering = request
        self._server.app(request, self)

    def respond(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Write one whole answer; nothing happens when the client has gone away."""
        request = self._answering
        if request is None or self._transport.is_closing():
            return
        parts = [_STATUS_LINES[status]]
        parts += [b"%b: %b\r\n" % header for header in headers]
        if status != 204:
            parts.append(b"content-length: %d\r\n" % len(body))
        parts.append(b"\r\n" if request.keep_alive else b"connection: close\r\n\r\n")
        if request.method != "HEAD":
            parts.append(body)
        self._transport.write(b"".join(parts))
        self._complete(request)

    def start_stream(self, headers: Headers, first: bytes, *, ends: bool = False) -> None:
        """Begin an answer of unknown length; `first` (may be empty) leaves with the head, and so
        does its end where it `ends` there."""
        request = self._answering
        if request is None or self._transport.is_closing():
            return
        if request.http_10:
            request.keep_alive = False
        parts = [_STATUS_LINES[200]]
        parts += [b"%b: %b\r\n" % header for header in headers]
        if not request.http_10:
            parts.append(b"transfer-encoding: chunked\r\n")
        parts.append(b"\r\n" if request.keep_alive else b"connection: close\r\n\r\n")
        self._streaming = True
        if first:
            parts.append(first if request.http_10 else _chunk(first))
        if ends and not request.http_10:
            parts.append(_LAST_CHUNK)
        self._transport.write(b"".join(parts))
        if ends:
            self._complete(request)

    def write(self, data: bytes) -> None:
        """A piece of the stream that was started; `data` is not empty."""
        request = self._answering
        if request is not None:
            self._transport.write(data if request.http_10 else _chunk(data))

    def end_stream(self, last: bytes = b"") -> None:
        """The stream is complete with `last` (may be empty): one write. Idempotent."""
        request = self._answering
        if request is None or not self._streaming:
            return
        if not request.http_10:
            last = _chunk(last) + _LAST_CHUNK if last else _LAST_CHUNK
        self._transport.write(last)
        self._complete(request)

    def _complete(self, request: HttpRequest) -> None:
        self._answering = None
        self._streaming = False
        self.on_lost = self.on_writable = None
        if not request.keep_alive or self._server.stopping:
            self._closing = True
            self._transport.close()
            return
        self.since_s = self._server.now_s()
        if self._waiting:
            # Not from here: a client that sends ahead shall not grow our stack.
            asyncio.get_running_loop().call_soon(self._answer_next)

    def _answer_next(self) -> None:
        if self._answering is None and self._waiting and not self.congested:
            request = self._waiting.popleft()
            self._waiting_bytes -= len(request.body)
            self._answer(request)
        if self._reading_paused and len(self._waiting) < MAX_PIPELINED // 2:
            self._reading_paused = False
            self._transport.resume_reading()

    def _refuse(self, status: int, message: bytes) -> None:
        """Not HTTP as we speak it: say so and close. Idempotent."""
        if self._closing:
            return
        self._closing = True
        if self._answering is None:
            body = b'{"code":"INVALID_PARAMS","message":"%b","retriable":false}' % message
            self._transport.write(
                b"%bcontent-type: application/json\r\nx-correlation-id: %b\r\n%b"
                b"content-length: %d\r\nconnection: close\r\n\r\n%b"
                % (
                    _STATUS_LINES[status],
                    minted_id().encode(),
                    _ALLOW if status == 405 else b"",
                    len(body),
                    body,
                )
            )
        self._transport.close()

    @property
    def idle(self) -> bool:
        """No answer is under way."""
        return self._answering is None

    @property
    def receiving(self) -> bool:
        """A request has begun and is not complete."""
        return self._answering is None and (self._head_bytes > 0 or self._size > 0)

    def close(self) -> None:
        """End the connection after what was written has left."""
        self._closing = True
        self._transport.close()


App = Callable[[HttpRequest, HttpConnection], None]


class HttpServer:
    """Listens and keeps the connections. `app(request, connection)` answers, now or later."""

    def __init__(self, app: App, max_body_bytes: int, now_s: Callable[[], float]) -> None:
        self.app = app
        self.max_body_bytes = max_body_bytes
        self.now_s = now_s
        self.connections: set[HttpConnection] = set()
        self.stopping = False
        self._all_closed = asyncio.Event()
        self._server: asyncio.Server | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def start(self, sock: socket.socket) -> None:
        """Accept connections on a bound socket."""
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: HttpConnection(self), sock=sock, backlog=BACKLOG
        )
        self._sweeper = loop.call_later(SWEEP_S, self._sweep_again)

    def forget(self, connection: HttpConnection) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if self.stopping and not self.connections:
            self._all_closed.set()

    def sweep(self) -> None:
        """Close what idles too long between requests or takes too long over one."""
        now_s = self.now_s()
        for connection in tuple(self.connections):
            if connection.idle:
                limit_s = REQUEST_S if connection.receiving else KEEP_ALIVE_S
                if now_s - connection.since_s > limit_s:
                    connection.close()

    def _sweep_again(self) -> None:
        self.sweep()
        self._sweeper = asyncio.get_running_loop().call_later(SWEEP_S, self._sweep_again)

    async def stop(self, grace_s: float) -> None:
        """Accept no more; answers under way have `grace_s` to end, then they are cut."""
        self.stopping = True
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._server is not None:
            self._server.close()
        for connection in tuple(self.connections):
            if connection.idle:
                connection.close()
        if self.connections:
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._all_closed.wait(), grace_s)
        for connection in tuple(self.connections):
            connection.close()


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%b\r\n" % (len(data), data)


def _unquoted(path: bytes) -> str:
    return unquote(path.decode("latin-1"), errors="replace")
