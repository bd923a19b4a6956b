"""Streaming connections to an engine: pooled, keep-alive, callbacks only.

First step of a token's path: **socket** → events → tokens. One request at a time per connection;
no coroutine, queue or task per token. What arrived in one read reaches the consumer in one
`on_body` call. Invariants: exactly one of `on_complete` and `on_lost` per exchange, and nothing
after `cancel` or `release`; cancel closes the connection, which is what frees an engine's slot; a
connection is reused only when its response was read to the end and the engine keeps it alive; idle
connections are bounded in number and age. Requirements: ORCH-3054, ORCH-3017, OC-ADAPT-5001.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Protocol, cast

import httptools

from worker_adapters.adapter_api.faults import malformed, reset
from worker_adapters.adapter_api.origin import Origin
from worker_adapters.adapter_api.types import EngineError

CONNECT_TIMEOUT_S = 5.0  # a host that is up answers a SYN in one round trip
IDLE_MAX = 256  # kept per engine; as many as it may have slots, fewer than a process has handles
IDLE_EXPIRY_S = 4.0  # below the 5 s after which llama.cpp's server closes an idle connection
IDLE_MARGIN_S = 1.0  # taken off what a Keep-Alive header promises, for clocks and transit
DRAIN_S = 2.0  # how long a released response may take to end before its connection is closed


class ResponseConsumer(Protocol):
    """Who reads a response. Called from the event loop; must not block or raise."""

    def on_head(self, status: int) -> None: ...

    def on_body(self, data: bytes) -> None:
        """Everything of the body that one read brought, never empty."""
        ...

    def on_complete(self) -> None: ...

    def on_lost(self, error: EngineError) -> None: ...


class Exchange:
    """One request and its response, whichever connection carries it."""

    __slots__ = ("connection", "consumer", "pool", "request", "retried", "task")

    def __init__(self, pool: UpstreamPool, request: bytes, consumer: ResponseConsumer) -> None:
        self.pool = pool
        self.request = request  # kept until the first byte comes back, for the retry
        self.consumer: ResponseConsumer | None = consumer
        self.connection: UpstreamConnection | None = None
        self.task: asyncio.Task[None] | None = None
        self.retried = False

    def cancel(self) -> None:
        """Close the connection; the consumer hears nothing more. Idempotent."""
        self.consumer = None
        self.request = b""
        self.pool.open_exchanges.discard(self)
        if self.connection is not None:
            self.connection.abort()
        elif self.task is not None:
            self.task.cancel()

    def release(self) -> None:
        """The consumer has all it needs: nothing more is said to it, and the connection is kept
        if the response ends within `DRAIN_S`."""
        self.consumer = None
        self.pool.open_exchanges.discard(self)

    def fail(self, error: EngineError) -> None:
        """Tell the consumer that no response, or no rest of one, will come."""
        consumer, self.consumer = self.consumer, None
        self.request = b""
        self.pool.open_exchanges.discard(self)
        if consumer is not None:
            consumer.on_lost(error)


class UpstreamConnection(asyncio.Protocol):
    """One TCP connection; carries one exchange at a time."""

    __slots__ = (
        "_complete",
        "_drain_timer",
        "_exchange",
        "_heard",
        "_keep",
        "_keep_s",
        "_parser",
        "_parts",
        "_pool",
        "_reused",
        "_status",
        "_transport",
        "expires_at_s",
        "on_body",
    )

    def __init__(self, pool: UpstreamPool, exchange: Exchange) -> None:
        self._pool = pool
        self._exchange: Exchange | None = exchange
        self._transport: asyncio.Transport | None = None
        self._parts: list[bytes] = []
        # The parser appends straight to the list: no Python frame per HTTP chunk.
        self.on_body = self._parts.append
        self._parser = httptools.HttpResponseParser(self)
        self._status = 0
        self._heard = False
        self._complete = False
        self._keep = False
        self._keep_s = pool.idle_expiry_s
        self._reused = False
        self._drain_timer: asyncio.TimerHandle | None = None
        self.expires_at_s = 0.0

    # -- parser callbacks (inside feed_data; they only take notes) --

    def on_message_begin(self) -> None:
        if self._complete:
            raise ValueError("a second response to one request")  # the parser reports it

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"keep-alive":
            for item in value.split(b","):
                key, _, number = item.strip().partition(b"=")
                if key.lower() == b"timeout" and number.isdigit():
                    self._keep_s = min(self._keep_s, int(number) - IDLE_MARGIN_S)

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()

    def on_message_complete(self) -> None:
        if self._status < 200:  # 1xx is not the response yet
            self._status = 0
            return
        self._complete = True
        # Only here does the parser know; after feed_data it has forgotten.
        self._keep = self._parser.should_keep_alive()

    # -- transport callbacks --

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._pool.connections.add(self)
        exchange = self._exchange
        if exchange is None or exchange.consumer is None:
            self.abort()  # cancelled while connecting
            return
        self._send(exchange)

    def data_received(self, data: bytes) -> None:
        exchange = self._exchange
        if exchange is None:
            self.abort()  # bytes that nobody asked for: this connection cannot be trusted
            return
        if not self._heard:
            self._heard = True
            exchange.request = b""
        status_before = self._status
        broken: EngineError | None = None
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError as error:
            broken = malformed(f"a response that is not HTTP ({error})")
        parts = self._parts
        body = b""
        if parts:
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            parts.clear()
        status = self._status
        complete = self._complete and broken is None
        if complete:
            # Parked before the consumer hears of it, so that what it starts now can use it.
            self._finish(exchange)
        if status and not status_before and exchange.consumer is not None:
            exchange.consumer.on_head(status)
        if body and exchange.consumer is not None:
            exchange.consumer.on_body(body)
        if complete:
            consumer, exchange.consumer = exchange.consumer, None
            self._pool.open_exchanges.discard(exchange)
            if consumer is not None:
                consumer.on_complete()
        elif broken is not None:
            self._exchange = None
            exchange.connection = None
            self.abort()
            exchange.fail(broken)
        elif exchange.consumer is None and self._drain_timer is None:
            self._drain_timer = self._pool.loop.call_later(DRAIN_S, self.abort)

    def connection_lost(self, exc: Exception | None) -> None:
        self._pool.forget(self)
        self._stop_drain_timer()
        exchange, self._exchange = self._exchange, None
        if exchange is None:
            return
        exchange.connection = None
        if exchange.consumer is None:
            return
        if self._reused and not self._heard and not exchange.retried:
            # The engine closed the idle connection while the request was on its way (RFC 9112,
            # 9.3.1): it did not see it, or gave no sign of having done so.
            exchange.retried = True
            self._pool.connect(exchange)
            return
        exchange.fail(reset(exc))

    # -- pool side --

    def carry(self, exchange: Exchange) -> None:
        """Send a further request on this idle connection."""
        self._exchange = exchange
        self._reused = True
        self._send(exchange)

    def abort(self) -> None:
        """Close at once; unsent bytes are dropped."""
        if self._transport is not None:
            self._transport.abort()

    @property
    def is_open(self) -> bool:
        return self._transport is not None and not self._transport.is_closing()

    def _send(self, exchange: Exchange) -> None:
        assert self._transport is not None
        exchange.connection = self
        # From here on a cancel must not reach the connect task: the response may be complete, and
        # the connection with someone else, before that task has had its last turn.
        exchange.task = None
        self._status = 0
        self._heard = self._complete = self._keep = False
        self._keep_s = self._pool.idle_expiry_s
        self._transport.write(exchange.request)

    def _finish(self, exchange: Exchange) -> None:
        self._exchange = None
        exchange.connection = None
        self._stop_drain_timer()
        if self._keep and self._keep_s > 0 and self.is_open:
            self._pool.park(self, self._keep_s)
        else:
            self.abort()

    def _stop_drain_timer(self) -> None:
        if self._drain_timer is not None:
            self._drain_timer.cancel()
            self._drain_timer = None


class UpstreamPool:
    """Connections to one engine. Bound to the event loop that first uses it."""

    def __init__(
        self,
        origin: Origin,
        *,
        idle_max: int = IDLE_MAX,
        idle_expiry_s: float = IDLE_EXPIRY_S,
        connect_timeout_s: float = CONNECT_TIMEOUT_S,
    ) -> None:
        self.origin = origin
        self.idle_expiry_s = idle_expiry_s
        self.open_exchanges: set[Exchange] = set()
        self.connections: set[UpstreamConnection] = set()  # busy, draining and idle
        self._idle_max = idle_max
        self._connect_timeout_s = connect_timeout_s
        self._idle: deque[UpstreamConnection] = deque()  # the one used last is on the right
        self._sweep_timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._connecting: set[asyncio.Task[None]] = set()

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        return self._loop

    @property
    def idle_count(self) -> int:
        """Connections that wait for a request."""
        return len(self._idle)

    def post(
        self,
        path: str,
        body: bytes,
        consumer: ResponseConsumer,
        *,
        correlation_id: str = "",
        traceparent: str = "",
    ) -> Exchange:
        """Send `body` (JSON) to `path`; the consumer is called later, never from in here.

        Args:
            correlation_id: sent as `X-Correlation-Id` when it is visible ASCII.
            traceparent: sent as it is, unless empty.
        """
        head = (
            f"POST {self.origin.base_path}{path} HTTP/1.1\r\nHost: {self.origin.authority}\r\n"
            f"Content-Type: application/json\r\nAccept: text/event-stream\r\n"
            f"Content-Length: {len(body)}\r\n"
        )
        if correlation_id and correlation_id.isascii() and correlation_id.isprintable():
            head += f"X-Correlation-Id: {correlation_id}\r\n"
        if traceparent:
            head += f"traceparent: {traceparent}\r\n"
        exchange = Exchange(self, head.encode() + b"\r\n" + body, consumer)
        self.open_exchanges.add(exchange)
        idle = self._take_idle()
        if idle is not None:
            idle.carry(exchange)
        else:
            self.connect(exchange)
        return exchange

    def connect(self, exchange: Exchange) -> None:
        """Open a fresh connection for `exchange`."""
        task = self.loop.create_task(self._connect(exchange), name="engine-connect")
        exchange.task = task
        self._connecting.add(task)
        task.add_done_callback(self._connecting.discard)

    async def _connect(self, exchange: Exchange) -> None:
        # Not asyncio.timeout: it could strike after `connection_made`, and then close a
        # connection that is in use.
        overdue = self.loop.call_later(self._connect_timeout_s, self._overdue, exchange)
        try:
            await self.loop.create_connection(
                lambda: UpstreamConnection(self, exchange),
                self.origin.host,
                self.origin.port,
                ssl=self.origin.tls or None,
            )
        except OSError as error:
            exchange.fail(reset(error))
        finally:
            overdue.cancel()

    def _overdue(self, exchange: Exchange) -> None:
        task, exchange.task = exchange.task, None
        if task is not None:
            task.cancel()
            exchange.fail(reset(f"none within {self._connect_timeout_s:g} s"))

    def _take_idle(self) -> UpstreamConnection | None:
        now_s = self.loop.time()
        while self._idle:
            connection = self._idle.pop()
            if connection.is_open and now_s < connection.expires_at_s:
                return connection
            connection.abort()
        return None

    def park(self, connection: UpstreamConnection, keep_s: float) -> None:
        """Keep `connection` for the next request, for at most `keep_s` seconds."""
        connection.expires_at_s = self.loop.time() + keep_s
        self._idle.append(connection)
        if len(self._idle) > self._idle_max:
            self._idle.popleft().abort()
        if self._sweep_timer is None:
            self._sweep_timer = self.loop.call_later(keep_s, self._sweep)

    def forget(self, connection: UpstreamConnection) -> None:
        """`connection` is gone."""
        self.connections.discard(connection)
        if connection in self._idle:
            self._idle.remove(connection)

    def _sweep(self) -> None:
        self._sweep_timer = None
        now_s = self.loop.time()
        for connection in [c for c in self._idle if c.expires_at_s <= now_s]:
            self._idle.remove(connection)
            connection.abort()
        if self._idle:
            next_s = min(c.expires_at_s for c in self._idle)
            self._sweep_timer = self.loop.call_at(next_s, self._sweep)

    async def close(self) -> None:
        """Close every connection; what still runs fails with RESET."""
        for exchange in list(self.open_exchanges):
            exchange.fail(reset("the client was closed"))
            exchange.cancel()
        if self._sweep_timer is not None:
            self._sweep_timer.cancel()
            self._sweep_timer = None
        for connection in list(self.connections):
            connection.abort()
        if self._connecting:
            await asyncio.wait(self._connecting)
