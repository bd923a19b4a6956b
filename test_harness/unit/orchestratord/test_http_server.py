"""HTTP/1.1 on a connection: bodies in any pieces, answers in order, slow clients."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Awaitable, Callable

import pytest

from harness_kit.waiting import wait_until_async
from orchestratord.api.http_server import HttpConnection, HttpRequest, HttpServer

MAX_BODY_BYTES = 100
BIG_BYTES = 1_000_000


class Echo:
    """Answers what it was asked; `/later` waits for `release`, `/stream` for `write`."""

    def __init__(self) -> None:
        self.seen: list[str] = []
        self.held: list[HttpConnection] = []

    def __call__(self, request: HttpRequest, connection: HttpConnection) -> None:
        self.seen.append(f"{request.method} {request.path}")
        if request.path in ("/later", "/stream"):
            self.held.append(connection)
            if request.path == "/stream":
                connection.start_stream([(b"x-kind", b"stream")], b"one")
            return
        if request.path == "/big":
            connection.respond(200, [], b"x" * BIG_BYTES)
            return
        status = 413 if request.oversize else 200
        connection.respond(status, [(b"x-path", request.path.encode())], request.body)


Scenario = Callable[[Echo, asyncio.StreamReader, asyncio.StreamWriter, HttpServer], Awaitable[None]]


def run(scenario: Scenario, now_s: Callable[[], float] | None = None) -> None:
    async def main() -> None:
        echo = Echo()
        loop = asyncio.get_running_loop()
        server = HttpServer(echo, MAX_BODY_BYTES, now_s or loop.time)
        sock = socket.socket()
        sock.bind(("127.0.0.1", 0))
        await server.start(sock)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        try:
            await asyncio.wait_for(scenario(echo, reader, writer, server), 10)
        finally:
            writer.close()
            await server.stop(1.0)

    asyncio.run(main())


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
    length = int(headers.get("content-length", "0"))
    return int(head[0].split()[1]), headers, await reader.readexactly(length)


def test_a_body_in_any_pieces_is_one_request() -> None:
    async def scenario(
        _: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, __: HttpServer
    ) -> None:
        for byte in b"POST /a%20b?x=1 HTTP/1.1\r\nhost: h\r\ncontent-length: 3\r\n\r\nabc":
            writer.write(bytes([byte]))
            await writer.drain()

        assert await answer(reader) == (200, {"x-path": "/a b", "content-length": "3"}, b"abc")

    run(scenario)


def test_chunked_bodies_are_joined() -> None:
    async def scenario(
        _: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, __: HttpServer
    ) -> None:
        writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ntransfer-encoding: chunked\r\n\r\n")
        writer.write(b"2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")

        assert (await answer(reader))[2] == b"abc"

    run(scenario)


def test_answers_leave_in_the_order_of_their_requests() -> None:
    async def scenario(
        echo: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: HttpServer
    ) -> None:
        names = ["/later", *(f"/{n}" for n in range(20))]
        writer.write(b"".join(b"GET %b HTTP/1.1\r\nhost: h\r\n\r\n" % n.encode() for n in names))
        await wait_until_async(lambda: bool(echo.held), 5)

        echo.held[0].respond(200, [(b"x-path", b"/later")])
        paths = [(await answer(reader))[1]["x-path"] for _ in names]

        assert paths == names

    run(scenario)


def test_a_client_that_does_not_read_is_answered_no_further_than_its_socket_takes() -> None:
    async def scenario(
        echo: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: HttpServer
    ) -> None:
        writer.transport.pause_reading()  # type: ignore[attr-defined]
        writer.write(b"GET /big HTTP/1.1\r\nhost: h\r\n\r\n" * 100)
        await writer.drain()
        await wait_until_async(lambda: bool(echo.seen), 5)
        for _turn in range(200):
            await asyncio.sleep(0)
        answered_unread = len(echo.seen)
        writer.transport.resume_reading()  # type: ignore[attr-defined]
        bodies = [(await answer(reader))[2] for _ in range(100)]

        assert answered_unread < 5
        assert [len(body) for body in bodies] == [BIG_BYTES] * 100

    run(scenario)


def test_go_on_is_not_said_within_another_answer() -> None:
    async def scenario(
        echo: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: HttpServer
    ) -> None:
        writer.write(b"GET /stream HTTP/1.1\r\nhost: h\r\n\r\n")
        await reader.readuntil(b"3\r\none\r\n")
        writer.write(b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nok")
        await writer.drain()
        for _turn in range(50):
            await asyncio.sleep(0)
        echo.held[0].end_stream()

        assert await reader.readuntil(b"0\r\n\r\n") == b"0\r\n\r\n"
        assert (await answer(reader))[2] == b"ok"

    run(scenario)


def test_a_stream_leaves_in_chunks_and_the_connection_stays() -> None:
    async def scenario(
        echo: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: HttpServer
    ) -> None:
        writer.write(b"GET /stream HTTP/1.1\r\nhost: h\r\n\r\n")
        head = await reader.readuntil(b"3\r\none\r\n")
        echo.held[0].write(b"three")
        echo.held[0].end_stream()
        echo.held[0].end_stream()
        rest = await reader.readuntil(b"0\r\n\r\n")
        writer.write(b"GET /next HTTP/1.1\r\nhost: h\r\n\r\n")

        assert b"transfer-encoding: chunked\r\n" in head
        assert rest == b"5\r\nthree\r\n0\r\n\r\n"
        assert (await answer(reader))[1]["x-path"] == "/next"

    run(scenario)


class WriteCounter(asyncio.Transport):
    """Keeps each write apart, as a socket would get it."""

    def __init__(self) -> None:
        super().__init__()
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.writes.append(bytes(data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("version", "last", "whole"),
    [
        (b"1.1", b"3\r\ntwo\r\n0\r\n\r\n", b"\r\n\r\n3\r\none\r\n0\r\n\r\n"),
        (b"1.0", b"two", b"\r\n\r\none"),
    ],
)
def test_the_last_piece_of_a_stream_and_its_end_are_one_write(
    version: bytes, last: bytes, whole: bytes
) -> None:
    echo = Echo()
    server = HttpServer(echo, MAX_BODY_BYTES, lambda: 0.0)
    begun, at_once = (
        (HttpConnection(server), WriteCounter()),
        (HttpConnection(server), WriteCounter()),
    )

    for connection, transport in (begun, at_once):
        connection.connection_made(transport)
        connection.data_received(b"GET /later HTTP/%b\r\nhost: h\r\n\r\n" % version)
    begun[0].start_stream([], b"one")
    begun[0].end_stream(b"two")
    at_once[0].start_stream([], b"one", ends=True)
    at_once[0].end_stream()

    assert begun[1].writes[1:] == [last]
    assert len(at_once[1].writes) == 1
    assert at_once[1].writes[0].endswith(whole)
    assert begun[0].idle
    assert at_once[0].idle
    assert begun[1].closed is at_once[1].closed is (version == b"1.0")


def test_http_1_0_gets_its_stream_without_chunks_and_then_the_end() -> None:
    async def scenario(
        echo: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: HttpServer
    ) -> None:
        writer.write(b"GET /stream HTTP/1.0\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        echo.held[0].write(b" two")
        echo.held[0].end_stream()

        assert await reader.read() == b"one two"

    run(scenario)


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
def test_a_body_over_the_limit_is_read_to_its_end_and_answered() -> None:
    async def scenario(
        _: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, __: HttpServer
    ) -> None:
        writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 500\r\n\r\n" + b"x" * 500)
        first = await answer(reader)
        writer.write(b"GET /again HTTP/1.1\r\nhost: h\r\n\r\n")

        assert first[0] == 413
        assert (await answer(reader))[1]["x-path"] == "/again"

    run(scenario)


def test_a_body_far_over_the_limit_is_answered_and_cut() -> None:
    async def scenario(
        _: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, __: HttpServer
    ) -> None:
        writer.write(b"POST / HTTP/1.1\r\nhost: h\r\ncontent-length: 999999\r\n\r\n" + b"x" * 900)

        status, headers, _body = await answer(reader)

        assert status == 413
        assert headers["connection"] == "close"
        assert await reader.read() == b""

    run(scenario)


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"GET / HTTX/1.1\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nx: " + b"y" * 70_000 + b"\r\n\r\n", b"431"),
        (b"POST / HTTP/1.1\r\ncontent-length: x\r\n\r\n", b"400"),
        (b"FOO / HTTP/1.1\r\n\r\n", b"405"),
        (b"CONNECT a:1 HTTP/1.1\r\nhost: a\r\n\r\n", b"405"),
    ],
)
def test_what_is_not_http_gets_an_envelope_and_the_end(sent: bytes, status: bytes) -> None:
    async def scenario(
        _: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, __: HttpServer
    ) -> None:
        writer.write(sent)
        data = await reader.read()

        assert data.startswith(b"HTTP/1.1 " + status)
        assert b'"code":"INVALID_PARAMS"' in data
        assert b"\r\nx-correlation-id: " in data

    run(scenario)


def test_expect_100_is_answered_before_the_body() -> None:
    async def scenario(
        _: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, __: HttpServer
    ) -> None:
        writer.write(b"POST / HTTP/1.1\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\n")
        go_on = await reader.readuntil(b"\r\n\r\n")
        writer.write(b"ok")

        assert go_on == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert (await answer(reader))[2] == b"ok"

    run(scenario)


def test_a_client_that_goes_away_is_noticed_and_nothing_is_written() -> None:
    async def scenario(
        echo: Echo, _: asyncio.StreamReader, writer: asyncio.StreamWriter, __: HttpServer
    ) -> None:
        lost = asyncio.Event()
        writer.write(b"GET /stream HTTP/1.1\r\nhost: h\r\n\r\n")
        await wait_until_async(lambda: bool(echo.held), 5)
        echo.held[0].on_lost = lost.set
        writer.transport.abort()
        await lost.wait()

        echo.held[0].write(b"into the void")
        echo.held[0].end_stream()

    run(scenario)


def test_a_half_request_is_cut_after_its_time_and_an_answer_under_way_is_not() -> None:
    clock = [0.0]

    async def scenario(
        echo: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, server: HttpServer
    ) -> None:
        writer.write(b"GET /later HTTP/1.1\r\nhost: h\r\n\r\n")
        await wait_until_async(lambda: bool(echo.held), 5)
        clock[0] = 1000.0
        server.sweep()
        echo.held[0].respond(200, [])
        await answer(reader)
        writer.write(b"GET /half HTTP/1.1\r\nhost: h\r\n")
        await writer.drain()
        await wait_until_async(lambda: echo.held[0].receiving, 5)
        clock[0] = 1061.0
        server.sweep()

        assert await reader.read() == b""

    run(scenario, now_s=lambda: clock[0])


@pytest.mark.parametrize("cut", [0, 40])
@pytest.mark.parametrize(
    "offer",
    [
        b"Upgrade: websocket\r\nConnection: Upgrade\r\n",
        b"Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABk\r\n",
    ],
)
def test_an_offer_of_another_protocol_is_ignored(offer: bytes, cut: int) -> None:
    async def scenario(
        echo: Echo, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _: HttpServer
    ) -> None:
        request = b"POST /up HTTP/1.1\r\nhost: h\r\n" + offer + b"content-length: 3\r\n\r\nabc"
        for part in (request[: len(request) - cut], request[len(request) - cut :]):
            writer.write(part)
            await writer.drain()
        first = await answer(reader)
        writer.write(b"GET /next HTTP/1.1\r\nhost: h\r\n\r\n")

        assert (first[0], first[2]) == (200, b"abc")
        assert (await answer(reader))[1]["x-path"] == "/next"
        assert echo.seen == ["POST /up", "GET /next"]

    run(scenario)
