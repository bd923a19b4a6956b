"""Connections without a network: responses cut anywhere, reuse, age, bounds."""

from __future__ import annotations

import asyncio

import pytest

from harness_kit.virtual_time import run_virtual
from worker_adapters.adapter_api.http_stream import Exchange, UpstreamConnection, UpstreamPool
from worker_adapters.adapter_api.origin import Origin
from worker_adapters.adapter_api.types import EngineError, EngineFault

pytestmark = [pytest.mark.req("ORCH-3054", partial="all but the transport below the adapter")]

HEAD = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
RESPONSE = HEAD + b"5\r\nhello\r\n8\r\n, \xe9\x9b\xa8 on\r\n0\r\n\r\n"
BODY = b"hello, \xe9\x9b\xa8 on"


class PipeTransport(asyncio.Transport):
    """What the protocol writes is kept; closing is told on the next turn, as sockets do."""

    def __init__(self, protocol: UpstreamConnection) -> None:
        super().__init__()
        self.protocol = protocol
        self.written = b""
        self._closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self._closing
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self._closing

    def abort(self) -> None:
        self.break_off(None)

    def break_off(self, cause: Exception | None) -> None:
        if not self._closing:
            self._closing = True
            asyncio.get_running_loop().call_soon(self.protocol.connection_lost, cause)


class PipedPool(UpstreamPool):
    """Opens pipes in place of sockets."""

    def __init__(self, idle_max: int = 4) -> None:
        super().__init__(Origin.of("http://engine:1/base"), idle_max=idle_max)
        self.pipes: list[PipeTransport] = []

    def connect(self, exchange: Exchange) -> None:
        connection = UpstreamConnection(self, exchange)
        pipe = PipeTransport(connection)
        self.pipes.append(pipe)
        connection.connection_made(pipe)


class Reader:
    """A consumer that writes down what it hears."""

    def __init__(self) -> None:
        self.heard: list[str | int | bytes | EngineError] = []

    @property
    def body(self) -> bytes:
        return b"".join(part for part in self.heard if isinstance(part, bytes))

    def on_head(self, status: int) -> None:
        self.heard.append(status)

    def on_body(self, data: bytes) -> None:
        self.heard.append(data)

    def on_complete(self) -> None:
        self.heard.append("complete")

    def on_lost(self, error: EngineError) -> None:
        self.heard.append(error)


async def turn() -> None:
    for _ in range(3):
        await asyncio.sleep(0)


def test_a_response_is_the_same_wherever_reads_end() -> None:
    async def scenario() -> None:
        pool, reader = PipedPool(), Reader()
        for place in range(1, len(RESPONSE)):
            reader = Reader()
            pool.post("/completion", b"{}", reader)
            pipe = pool.pipes[0]
            pipe.protocol.data_received(RESPONSE[:place])
            pipe.protocol.data_received(RESPONSE[place:])

            assert reader.heard[0] == 200
            assert reader.heard[-1] == "complete"
            assert reader.body == BODY
        assert len(pool.pipes) == 1

    run_virtual(scenario())


def test_what_one_read_brought_is_one_call() -> None:
    async def scenario() -> None:
        pool, reader = PipedPool(), Reader()
        pool.post("/completion", b"{}", reader)
        pool.pipes[0].protocol.data_received(RESPONSE)

        assert reader.heard == [200, BODY, "complete"]

    run_virtual(scenario())


def test_the_request_is_complete_and_goes_below_the_base_path() -> None:
    async def scenario() -> None:
        pool = PipedPool()
        pool.post("/completion", b'{"a":1}', Reader(), correlation_id="c-1")
        head, _, body = pool.pipes[0].written.partition(b"\r\n\r\n")

        assert head.split(b"\r\n") == [
            b"POST /base/completion HTTP/1.1",
            b"Host: engine:1",
            b"Content-Type: application/json",
            b"Accept: text/event-stream",
            b"Content-Length: 7",
            b"X-Correlation-Id: c-1",
        ]
        assert body == b'{"a":1}'

    run_virtual(scenario())


def test_the_connection_can_be_used_by_whoever_is_told_of_its_end() -> None:
    async def scenario() -> None:
        pool, second = PipedPool(), Reader()

        class Chained(Reader):
            def on_complete(self) -> None:
                super().on_complete()
                pool.post("/completion", b"{}", second)

        pool.post("/completion", b"{}", Chained())
        pool.pipes[0].protocol.data_received(RESPONSE)
        pool.pipes[0].protocol.data_received(RESPONSE)

        assert len(pool.pipes) == 1
        assert second.heard == [200, BODY, "complete"]

    run_virtual(scenario())


def test_a_connection_that_the_engine_closes_is_not_kept() -> None:
    async def scenario() -> None:
        pool, reader = PipedPool(), Reader()
        pool.post("/completion", b"{}", reader)
        pool.pipes[0].protocol.data_received(
            b"HTTP/1.1 400 Bad\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
        )

        assert reader.heard == [400, b"{}", "complete"]
        assert pool.idle_count == 0

    run_virtual(scenario())


@pytest.mark.parametrize(
    ("header", "wait_s", "kept"),
    [
        (b"", 3.9, True),  # our own four seconds
        (b"", 4.1, False),
        (b"Keep-Alive: timeout=3, max=100\r\n", 1.9, True),  # the engine's, less one
        (b"Keep-Alive: timeout=3, max=100\r\n", 2.1, False),
        (b"Keep-Alive: timeout=1\r\n", 0.0, False),
    ],
)
def test_an_idle_connection_is_kept_as_long_as_both_sides_want(
    header: bytes, wait_s: float, kept: bool
) -> None:
    async def scenario() -> None:
        pool = PipedPool()
        pool.post("/completion", b"{}", Reader())
        pool.pipes[0].protocol.data_received(
            b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n" + header + b"\r\n"
        )
        await asyncio.sleep(wait_s)
        await turn()

        assert pool.idle_count == int(kept)
        assert pool.pipes[0].is_closing() is not kept

    run_virtual(scenario())


def test_idle_connections_are_bounded_and_the_oldest_goes() -> None:
    async def scenario() -> None:
        pool = PipedPool(idle_max=2)
        for _ in range(3):
            pool.post("/completion", b"{}", Reader())
        for pipe in pool.pipes:
            pipe.protocol.data_received(RESPONSE)
        await turn()

        assert [pipe.is_closing() for pipe in pool.pipes] == [True, False, False]
        assert pool.idle_count == 2

    run_virtual(scenario())


def test_an_idle_connection_that_breaks_is_forgotten() -> None:
    async def scenario() -> None:
        pool = PipedPool()
        pool.post("/completion", b"{}", Reader())
        pool.pipes[0].protocol.data_received(RESPONSE)
        pool.pipes[0].break_off(None)
        await turn()

        assert pool.idle_count == 0
        assert pool.connections == set()

    run_virtual(scenario())


def test_a_reused_connection_that_dies_unheard_is_replaced_exactly_once() -> None:
    async def scenario() -> None:
        pool, reader = PipedPool(), Reader()
        pool.post("/completion", b"{}", Reader())
        pool.pipes[0].protocol.data_received(RESPONSE)
        pool.post("/completion", b'{"again":1}', reader)
        pool.pipes[0].break_off(ConnectionResetError(104, "reset"))
        await turn()
        resent = pool.pipes[1].written
        pool.pipes[1].break_off(None)
        await turn()

        assert resent.endswith(b'{"again":1}')
        assert len(pool.pipes) == 2
        assert [type(part) for part in reader.heard] == [EngineError]

    run_virtual(scenario())


def test_a_reused_connection_that_dies_after_a_byte_is_not_replaced() -> None:
    async def scenario() -> None:
        pool, reader = PipedPool(), Reader()
        pool.post("/completion", b"{}", Reader())
        pool.pipes[0].protocol.data_received(RESPONSE)
        pool.post("/completion", b"{}", reader)
        pool.pipes[0].protocol.data_received(HEAD[:1])
        pool.pipes[0].break_off(None)
        await turn()

        assert len(pool.pipes) == 1
        (error,) = reader.heard
        assert isinstance(error, EngineError)
        assert error.fault is EngineFault.RESET

    run_virtual(scenario())


@pytest.mark.req("ORCH-3017", partial="the task's end, which is the service's")
def test_a_cancel_closes_and_silences_whatever_was_read_with_it() -> None:
    async def scenario() -> None:
        pool = PipedPool()
        exchanges: list[Exchange] = []

        class Cancelling(Reader):
            def on_head(self, status: int) -> None:
                super().on_head(status)
                exchanges[0].cancel()

        reader = Cancelling()
        exchanges.append(pool.post("/completion", b"{}", reader))
        pool.pipes[0].protocol.data_received(HEAD + b"5\r\nhello\r\n")
        await turn()

        assert reader.heard == [200]
        assert pool.pipes[0].is_closing()
        assert pool.open_exchanges == set()

    run_virtual(scenario())


def test_a_released_response_may_end_late_but_not_too_late() -> None:
    async def scenario(tail_after_s: float) -> PipedPool:
        pool, reader = PipedPool(), Reader()
        exchange = pool.post("/completion", b"{}", reader)
        pool.pipes[0].protocol.data_received(HEAD)
        exchange.release()
        pool.pipes[0].protocol.data_received(b"5\r\nhello\r\n")
        await asyncio.sleep(tail_after_s)
        if not pool.pipes[0].is_closing():
            pool.pipes[0].protocol.data_received(b"0\r\n\r\n")

        assert reader.heard == [200]
        return pool

    assert run_virtual(scenario(1.9)).idle_count == 1
    assert run_virtual(scenario(2.1)).idle_count == 0


@pytest.mark.parametrize(
    "bytes_read",
    [
        b"HELO\r\n\r\n",
        HEAD + b"zz\r\n",
        RESPONSE + b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n",
    ],
)
def test_what_is_no_single_http_response_is_malformed(bytes_read: bytes) -> None:
    async def scenario() -> None:
        pool, reader = PipedPool(), Reader()
        pool.post("/completion", b"{}", reader)
        pool.pipes[0].protocol.data_received(bytes_read)
        await turn()

        error = reader.heard[-1]
        assert isinstance(error, EngineError)
        assert error.fault is EngineFault.MALFORMED
        assert pool.pipes[0].is_closing()
        assert pool.idle_count == 0

    run_virtual(scenario())


def test_bytes_that_nobody_asked_for_close_an_idle_connection() -> None:
    async def scenario() -> None:
        pool = PipedPool()
        pool.post("/completion", b"{}", Reader())
        pool.pipes[0].protocol.data_received(RESPONSE)
        pool.pipes[0].protocol.data_received(RESPONSE)
        await turn()

        assert pool.idle_count == 0
        assert pool.pipes[0].is_closing()

    run_virtual(scenario())


def test_an_interim_response_is_not_the_response() -> None:
    async def scenario() -> None:
        pool, reader = PipedPool(), Reader()
        pool.post("/completion", b"{}", reader)
        pool.pipes[0].protocol.data_received(b"HTTP/1.1 103 Early Hints\r\n\r\n")
        pool.pipes[0].protocol.data_received(RESPONSE)

        assert reader.heard == [200, BODY, "complete"]

    run_virtual(scenario())


def test_closing_fails_what_runs_and_closes_what_is_idle() -> None:
    async def scenario() -> None:
        pool, reader = PipedPool(), Reader()
        pool.post("/completion", b"{}", Reader())
        pool.post("/completion", b"{}", reader)
        pool.pipes[0].protocol.data_received(RESPONSE)
        await pool.close()
        await turn()

        (error,) = reader.heard
        assert isinstance(error, EngineError)
        assert error.fault is EngineFault.RESET
        assert all(pipe.is_closing() for pipe in pool.pipes)
        assert pool.connections == set()

    run_virtual(scenario())
