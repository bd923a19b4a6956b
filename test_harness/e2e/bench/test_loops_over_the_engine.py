"""Both loops of the client against the fake engine on a real socket, in one event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from bench.dialects import OpenAiChat
from bench.fake_engine import Connection, Engine
from bench.load import ClosedLoop, ClosedLoopRun, Outcome
from bench.open_loop import OpenLoop, OpenLoopRun

HOST = "127.0.0.1"


def against_engine(engine: Engine, client: Callable[[int], Awaitable[Outcome]]) -> Outcome:
    async def together() -> Outcome:
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: Connection(engine), HOST, 0)
        async with server:
            return await client(server.sockets[0].getsockname()[1])

    return asyncio.run(together())


def test_a_closed_loop_sends_exactly_its_requests_over_its_connections() -> None:
    engine = Engine("m", slots=8)

    outcome = against_engine(
        engine,
        lambda port: ClosedLoopRun(
            HOST, port, OpenAiChat("h", 5), ClosedLoop(3, requests=20, gaps=True)
        ).go(),
    )

    assert (outcome.requests, outcome.tokens, outcome.errors) == (20, 100, 0)
    assert engine.stats()["connections"] == 3
    assert engine.stats()["completed"] == 20


def test_an_open_loop_sends_its_rate_and_answers_are_all_waited_for() -> None:
    engine = Engine("m", slots=8)

    outcome = against_engine(
        engine,
        lambda port: OpenLoopRun(
            HOST, port, OpenAiChat("h", 1), OpenLoop(4, rate_per_s=1000.0, seconds=0.04)
        ).go(),
    )

    assert (outcome.requests, outcome.errors) == (40, 0)
    assert outcome.wall_s >= 0.039
    assert engine.stats()["connections"] == 4


def test_an_open_loop_counts_the_time_a_request_waits_for_its_connection() -> None:
    engine = Engine("m", slots=8)
    engine.interval_s = 0.01

    outcome = against_engine(
        engine,
        lambda port: OpenLoopRun(
            HOST, port, OpenAiChat("h", 3), OpenLoop(1, rate_per_s=1000.0, seconds=0.002)
        ).go(),
    )

    # Two requests of 20 ms each, one connection: the second is due at 1 ms and ends after 40.
    assert outcome.total_ms is not None
    assert outcome.service_ms is not None
    assert outcome.total_ms.max >= 37.0
    assert outcome.service_ms.max < outcome.total_ms.max
