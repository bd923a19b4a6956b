"""The load client: kept-alive connections, each a loop of requests, and what came of them.

Client end of the bench, in the process of `run.py`. One raw `asyncio.Protocol` per connection.
Closed loop: a connection starts its next request when the last one has ended (`open_loop` has the
other kind). Invariant: a request counts only when it brought exactly its tokens and its end mark;
everything else is an error in the result.
"""

from __future__ import annotations

import asyncio
import socket
import time
from dataclasses import dataclass, field
from typing import Protocol, cast

from bench.dialects import Dialect
from bench.http1 import MalformedResponse, ResponseReader

ERRORS_MAX = 1000  # a broken peer must not fill the memory
now_s = time.perf_counter


@dataclass(frozen=True, slots=True)
class Quantiles:
    """Milliseconds at the usual ranks (nearest rank)."""

    p50: float
    p95: float
    p99: float
    max: float


def quantiles_ms(seconds: list[float]) -> Quantiles | None:
    """Quantiles of durations in seconds, as milliseconds; None for no values."""
    if not seconds:
        return None
    ranked = sorted(seconds)

    def at(rank: float) -> float:
        return round(1e3 * ranked[min(len(ranked) - 1, int(rank * len(ranked)))], 4)

    return Quantiles(at(0.50), at(0.95), at(0.99), at(1.0))


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of the client saw; times run from the request's first byte or due time."""

    requests: int
    tokens: int
    wall_s: float
    first_token_ms: Quantiles | None
    total_ms: Quantiles | None
    service_ms: Quantiles | None
    gap_ms: Quantiles | None
    errors: int
    error_samples: tuple[str, ...]

    @property
    def requests_per_s(self) -> float:
        """Finished requests over the wall time."""
        return self.requests / max(self.wall_s, 1e-9)

    @property
    def tokens_per_s(self) -> float:
        """Received tokens over the wall time."""
        return self.tokens / max(self.wall_s, 1e-9)


@dataclass(slots=True)
class Tally:
    """What the connections of one run add up."""

    first_token_s: list[float] = field(default_factory=list)
    total_s: list[float] = field(default_factory=list)
    service_s: list[float] = field(default_factory=list)
    gaps_s: list[float] | None = None
    errors: list[str] = field(default_factory=list)
    tokens: int = 0

    def outcome(self, wall_s: float) -> Outcome:
        """The frozen result."""
        return Outcome(
            requests=len(self.total_s),
            tokens=self.tokens,
            wall_s=round(wall_s, 4),
            first_token_ms=quantiles_ms(self.first_token_s),
            total_ms=quantiles_ms(self.total_s),
            service_ms=quantiles_ms(self.service_s),
            gap_ms=quantiles_ms(self.gaps_s or []),
            errors=len(self.errors),
            error_samples=tuple(self.errors[:3]),
        )


class Owner(Protocol):
    """Who gives a connection its work."""

    dialect: Dialect
    tally: Tally

    def done(self, connection: Connection) -> None:
        """The connection is free again (its request ended, well or not)."""


class Connection(asyncio.Protocol):
    """One kept-alive connection; `begin` starts a logical request on it."""

    def __init__(self, owner: Owner, host: str, port: int, *, quickack: bool) -> None:
        self.owner, self._host, self._port = owner, host, port
        self._quickack = quickack
        self._reader = ResponseReader()
        self._transport: asyncio.Transport | None = None
        self._socket: socket.socket | None = None
        self._reconnecting: asyncio.Task[None] | None = None
        self.busy = False
        self._number = self._exchange = self._tokens = 0
        self._due_s = self._sent_s = self._last_s = 0.0
        self._first_s: float | None = None
        self._ended = self._streams = False
        self._partial = b""

    async def open(self) -> None:
        """Connect. Raises OSError where nobody listens."""
        loop = asyncio.get_running_loop()
        await loop.create_connection(lambda: self, self._host, self._port)

    def close(self) -> None:
        """Give up the connection and whatever runs on it."""
        self.busy = False
        if self._transport is not None:
            self._transport.abort()

    def begin(self, number: int, due_s: float | None = None) -> None:
        """Send logical request `number`; its clock starts at `due_s` (now, if None)."""
        self.busy = True
        self._number, self._exchange, self._tokens = number, 0, 0
        self._first_s, self._ended = None, False
        self._sent_s = now_s()
        self._due_s = self._sent_s if due_s is None else due_s
        self._send(self.owner.dialect.first(number))

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's classes: a cast, not a check.
        self._transport = cast("asyncio.Transport", transport)
        self._socket = transport.get_extra_info("socket") if self._quickack else None

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.busy:
            self._fail("connection lost")

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            return
        if self._socket is not None:  # the option does not stick: again after every read
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        reader = self._reader
        try:
            body = reader.feed(data)
        except MalformedResponse as broken:
            self._fail(f"malformed response {broken}")
            return
        if body:
            if self._streams and reader.status == 200:
                self._read_events(body)
            elif reader.status >= 300:
                self._partial += body
        if reader.complete:
            self._exchange_ended()

    def _send(self, request: bytes) -> None:
        self._reader.reset()
        self._partial = b""
        self._streams = self.owner.dialect.streams(self._exchange)
        if self._transport is not None:
            self._transport.write(request)
        else:
            self._reconnecting = asyncio.ensure_future(self._reconnect(request))

    async def _reconnect(self, request: bytes) -> None:
        try:
            await self.open()
        except OSError as refused:
            self._fail(f"connect: {refused}")
        else:
            assert self._transport is not None
            self._transport.write(request)

    def _read_events(self, body: bytes) -> None:
        events = self._partial + body if self._partial else body
        if events.endswith(b"\n\n"):
            self._partial = b""
        else:
            cut = events.rfind(b"\n\n") + 2
            if cut == 1:
                self._partial = events
                return
            self._partial, events = events[cut:], events[:cut]
        dialect = self.owner.dialect
        if count := dialect.count(events):
            at_s = now_s()
            self._tokens += count
            if self._first_s is None:
                self._first_s = at_s
            elif self.owner.tally.gaps_s is not None:
                self.owner.tally.gaps_s.append(at_s - self._last_s)
            self._last_s = at_s
        if not self._ended and dialect.ended(events):
            self._ended = True

    def _exchange_ended(self) -> None:
        reader, dialect, tally = self._reader, self.owner.dialect, self.owner.tally
        if reader.closes and self._transport is not None:
            closing, self._transport, self.busy = self._transport, None, False
            closing.close()
            self.busy = True
        if not 200 <= reader.status < 300:
            self._fail(f"status {reader.status} {self._partial[:160].decode('latin-1')}")
            return
        following = dialect.follow(self._number, self._exchange)
        if following is not None:
            self._exchange += 1
            self._send(following)
            return
        if self._tokens != dialect.tokens or (dialect.tokens and not self._ended):
            mark = "with" if self._ended else "without"
            self._fail(f"{self._tokens} of {dialect.tokens} tokens, {mark} end mark", keep=True)
            return
        ended_s = now_s()
        if self._first_s is not None:
            tally.first_token_s.append(self._first_s - self._due_s)
        tally.total_s.append(ended_s - self._due_s)
        tally.service_s.append(ended_s - self._sent_s)
        tally.tokens += self._tokens
        self.busy = False
        self.owner.done(self)

    def _fail(self, why: str, *, keep: bool = False) -> None:
        self.busy = False
        if not keep and self._transport is not None:
            self._transport.abort()
            self._transport = None
        self.owner.tally.errors.append(why)
        self.owner.done(self)


@dataclass(frozen=True, slots=True)
class ClosedLoop:
    """Settings of a closed-loop run.

    Args:
        requests: how many at most; seconds: start none after this long (at least one of the two).
        ramp_s: the connections' first requests are spread over this time, so that paced streams
            are out of phase.
        quickack: no delayed ACKs from this client (hides Nagle's delay of a server).
    """

    connections: int
    requests: int | None = None
    seconds: float | None = None
    ramp_s: float = 0.0
    gaps: bool = False
    quickack: bool = False
    timeout_s: float = 180.0


class ClosedLoopRun:
    """One closed-loop run; `go` once."""

    def __init__(self, host: str, port: int, dialect: Dialect, settings: ClosedLoop) -> None:
        self.dialect, self._settings = dialect, settings
        self.tally = Tally(gaps_s=[] if settings.gaps else None)
        self._connections = [
            Connection(self, host, port, quickack=settings.quickack)
            for _ in range(settings.connections)
        ]
        self._issued = self._idle = 0
        self._deadline_s = self._end_s = 0.0

    async def go(self) -> Outcome:
        """Run to the end, or to the time-out, which is an error in the outcome."""
        loop = asyncio.get_running_loop()
        self._finished = loop.create_future()
        await asyncio.gather(*(connection.open() for connection in self._connections))
        start_s = self._end_s = now_s()
        seconds = self._settings.seconds
        self._deadline_s = start_s + seconds if seconds is not None else float("inf")
        spacing_s = self._settings.ramp_s / len(self._connections)
        for place, connection in enumerate(self._connections):
            loop.call_later(place * spacing_s, self._next, connection)
        try:
            await asyncio.wait_for(self._finished, self._settings.timeout_s)
        except TimeoutError:
            self.tally.errors.append(f"time-out with {len(self.tally.total_s)} finished")
            self._end_s = now_s()
        for connection in self._connections:
            connection.close()
        return self.tally.outcome(self._end_s - start_s)

    def done(self, connection: Connection) -> None:
        """Plan the connection's next request (from the loop: the parser must not recurse)."""
        self._end_s = now_s()
        asyncio.get_running_loop().call_soon(self._next, connection)

    def _next(self, connection: Connection) -> None:
        limit = self._settings.requests
        more = limit is None or self._issued < limit
        if more and now_s() < self._deadline_s and len(self.tally.errors) < ERRORS_MAX:
            self._issued += 1
            connection.begin(self._issued - 1)
            return
        self._idle += 1
        if self._idle == len(self._connections) and not self._finished.done():
            self._finished.set_result(None)
