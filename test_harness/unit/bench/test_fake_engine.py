"""The fake engine speaks what routers and the llama.cpp adapter ask for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from bench.fake_engine import Connection, Engine
from bench.http1 import ResponseReader


class Wire(asyncio.Transport):
    """Keeps what is written; aborting is recorded."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def abort(self) -> None:
        self.aborted = True


def request(method: str, path: str, body: Any = None) -> bytes:
    payload = b"" if body is None else json.dumps(body).encode()
    return f"{method} {path} HTTP/1.1\r\nContent-Length: {len(payload)}\r\n\r\n".encode() + payload


async def passes(count: int) -> None:
    """Turn the event loop: in the firehose each pass gives every stream one token."""
    for _ in range(count):
        await asyncio.sleep(0)


def exchange(sent: bytes, engine: Engine, reads: int = 1) -> tuple[Wire, ResponseReader, bytes]:
    """Send bytes in `reads` pieces and run the loop until the engine has answered them."""

    async def talk() -> Wire:
        wire, connection = Wire(), Connection(engine)
        connection.connection_made(wire)
        size = -(-len(sent) // reads)
        for start in range(0, len(sent), size):
            connection.data_received(sent[start : start + size])
        await passes(20)
        return wire

    wire = asyncio.run(talk())
    reader = ResponseReader()
    return wire, reader, reader.feed(wire.written)


def events(body: bytes) -> list[Any]:
    lines = [event.removeprefix("data: ") for event in body.decode().split("\n\n") if event]
    return [line if line == "[DONE]" else json.loads(line) for line in lines]


def test_props_report_the_slots() -> None:
    _, reader, body = exchange(request("GET", "/props"), Engine("m", slots=512))

    props = json.loads(body)
    assert reader.complete
    assert props["total_slots"] == 512
    assert props["default_generation_settings"]["n_ctx"] > 0


@pytest.mark.parametrize("reads", [1, 2, 7])
def test_a_native_stream_numbers_its_tokens_and_ends_with_its_counts(reads: int) -> None:
    asked = request("POST", "/completion", {"prompt": "x", "n_predict": 3, "stream": True})

    _, reader, body = exchange(asked, Engine("m", slots=4), reads)

    *tokens, last = events(body)
    assert reader.complete
    assert [token["tokens_predicted"] for token in tokens] == [1, 2, 3]
    assert not any(token["stop"] for token in tokens)
    assert (last["stop"], last["tokens_predicted"]) == (True, 3)


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_chat_stream_has_the_asked_tokens_and_done(name: str) -> None:
    asked = request("POST", "/v1/chat/completions", {"messages": [], name: 2, "stream": True})
    engine = Engine("m", slots=4)

    _, reader, body = exchange(asked, engine)

    role, *tokens, done = events(body)
    assert reader.complete
    assert role["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert [bool(token["choices"][0]["delta"]["content"]) for token in tokens] == [True, True]
    assert done == "[DONE]"
    assert engine.stats()["tokens"] == 2


def test_one_token_leaves_in_one_write_pass_and_frees_the_connection() -> None:
    asked = request("POST", "/completion", {"prompt": "x", "n_predict": 1, "stream": True})
    engine = Engine("m", slots=4)

    wire, _, _ = exchange(asked + request("GET", "/health"), engine)

    assert wire.written.endswith(b'{"status": "ok"}')
    assert engine.stats()["completed"] == 1


def test_a_lost_connection_frees_its_slot() -> None:
    engine = Engine("m", slots=4)

    async def leave() -> None:
        engine.interval_s = 60.0
        connection = Connection(engine)
        connection.connection_made(Wire())
        connection.data_received(
            request("POST", "/completion", {"prompt": "x", "n_predict": 5, "stream": True})
        )
        assert engine.active == 1
        connection.connection_lost(None)

    asyncio.run(leave())

    assert engine.stats()["active"] == 0
    assert engine.stats()["disconnects"] == 1


def test_a_peer_that_does_not_read_stops_the_firehose_until_it_does() -> None:
    engine = Engine("m", slots=4)

    async def stall() -> tuple[int, int]:
        connection = Connection(engine)
        connection.connection_made(Wire())
        connection.pause_writing()
        connection.data_received(
            request("POST", "/completion", {"prompt": "x", "n_predict": 5, "stream": True})
        )
        await passes(10)
        stalled = engine.tokens
        connection.resume_writing()
        await passes(10)
        return stalled, engine.tokens

    assert asyncio.run(stall()) == (0, 5)


def test_what_is_no_http_1_is_cut_off() -> None:
    wire, _, _ = exchange(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Engine("m", slots=4))

    assert wire.aborted
