"""A TCP proxy between the service and one engine that misbehaves when a test says so.

Stands where a network, a middlebox or a half-broken host stands; the engine behind it stays whole.
Invariants: in `CLEAR` every byte passes in order; a connection that misbehaved is never healed, it
is reset when the fault is lifted, as nothing that was garbled or half open comes back.
"""

from __future__ import annotations

import asyncio
import threading
from enum import StrEnum
from typing import Self

START_S = 10.0
PIECE_BYTES = 65_536
# A slow engine's bytes come this late, piece by piece: far below any time-out, far above decoding.
SLOW_S = 0.25
ANSWER_500 = (
    b"HTTP/1.1 500 Internal Server Error\r\nContent-Type: application/json\r\n"
    b"Connection: close\r\nContent-Length: 2\r\n\r\n{}"
)


class Mode(StrEnum):
    """What happens to the bytes of every connection."""

    CLEAR = "clear"
    GARBLED = "garbled"  # the engine's bytes are replaced by others that no protocol has
    SLOW = "slow"  # the engine's bytes come `SLOW_S` late, piece after piece
    HALF_OPEN = "half-open"  # connections stand and carry nothing, in either direction
    HTTP_500 = "http-500"  # every request is answered with 500, the engine hears of none


class FaultProxy:
    """`with FaultProxy(engine_port) as proxy: … proxy.url`; runs in a thread of its own."""

    def __init__(self, engine_port: int) -> None:
        self._engine_port = engine_port
        self._mode = Mode.CLEAR
        self._changed = asyncio.Event()
        self._port = 0
        # What a fault has touched: reset when it is lifted.
        self._spoilt: set[asyncio.StreamWriter] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = asyncio.Event()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(START_S), "the proxy did not start"
        return self

    def __exit__(self, *_: object) -> None:
        self._call(self._stop.set)
        self._thread.join(START_S)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def misbehave(self, mode: Mode) -> None:
        """From now on until `lift`, on connections that stand and on new ones."""
        self._call(self._enter, mode)

    def lift(self) -> None:
        """Behave again; connections that the fault touched are reset."""
        self._call(self._enter, Mode.CLEAR)

    def reset(self) -> None:
        """Reset every connection, once."""
        self._call(self._abort, self._writers)

    def _call(self, function: object, *arguments: object) -> None:
        assert self._loop is not None, "not started"
        assert callable(function)
        self._loop.call_soon_threadsafe(function, *arguments)

    def _enter(self, mode: Mode) -> None:
        self._mode = mode
        self._changed.set()
        self._changed = asyncio.Event()
        if mode is Mode.CLEAR:
            self._abort(self._spoilt)

    def _abort(self, writers: set[asyncio.StreamWriter]) -> None:
        for writer in list(writers):
            writer.transport.abort()
        self._spoilt.difference_update(list(writers))

    async def _serve(self) -> None:
        self._loop = asyncio.get_running_loop()
        server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        self._port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        server.close()
        self._abort(self._writers)
        await server.wait_closed()

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection of the service, and the one to the engine that belongs to it."""
        self._writers.add(writer)
        engine: asyncio.StreamWriter | None = None
        try:
            answers, engine = await asyncio.open_connection("127.0.0.1", self._engine_port)
            self._writers.add(engine)
            both = [
                asyncio.ensure_future(self._pump(reader, engine, writer)),
                asyncio.ensure_future(self._pump_back(answers, writer)),
            ]
            _, pending = await asyncio.wait(both, return_when=asyncio.FIRST_COMPLETED)
            for side in pending:
                side.cancel()
            await asyncio.gather(*both, return_exceptions=True)
        except OSError:
            writer.transport.abort()  # the engine is not there: so is its port, to the service
        finally:
            for side_writer in (writer, engine):
                if side_writer is not None:
                    self._writers.discard(side_writer)
                    self._spoilt.discard(side_writer)
                    side_writer.close()

    async def _pump(
        self,
        requests: asyncio.StreamReader,
        engine: asyncio.StreamWriter,
        service: asyncio.StreamWriter,
    ) -> None:
        while data := await requests.read(PIECE_BYTES):
            if self._mode is Mode.HTTP_500:
                service.write(ANSWER_500)
                await service.drain()
                return
            await self._while_half_open(service)
            engine.write(data)
            await engine.drain()

    async def _pump_back(
        self, answers: asyncio.StreamReader, service: asyncio.StreamWriter
    ) -> None:
        while data := await answers.read(PIECE_BYTES):
            if self._mode is Mode.GARBLED:
                self._spoilt.add(service)
                data = bytes(0x80 | byte for byte in data)
            elif self._mode is Mode.SLOW:
                await asyncio.sleep(SLOW_S)
            await self._while_half_open(service)
            service.write(data)
            await service.drain()

    async def _while_half_open(self, service: asyncio.StreamWriter) -> None:
        while self._mode is Mode.HALF_OPEN:
            self._spoilt.add(service)
            await self._changed.wait()
