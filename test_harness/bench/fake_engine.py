"""A fast fake inference engine: llama.cpp's native server and OpenAI chat on one port.

Upstream of everything that the bench measures, a process of its own (`python fake_engine.py`).
One uvloop, one raw `asyncio.Protocol` per connection, pre-encoded chunks. Two endpoints of its own:
`GET /stats` (counters) and `POST /control` (`{"interval_ms": 50}`; 0 is the firehose).

Invariant: one token is one write to the socket. In the firehose every stream gets one turn in
each pass of the event loop and stops while its peer does not read.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
from pathlib import Path
from typing import Any, cast

import uvloop

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.engine_payloads import STREAM_HEAD, Answer, ChatAnswer, LlamaAnswer, chat_body

HOST = "127.0.0.1"
CTX = 8192  # per slot; above any prompt + max_tokens of the bench


class Engine:
    """State shared by all connections: pace, counters, the answers' bytes."""

    def __init__(self, model: str, slots: int) -> None:
        self.model = model
        self.slots = slots
        self.interval_s = 0.0
        self.chat, self.llama = ChatAnswer(model), LlamaAnswer(model)
        self.active = self.max_active = self.completed = self.disconnects = 0
        self.tokens = self.connections = self.unknown = 0

    def stats(self) -> dict[str, int]:
        """Counters since the start, and the number of streams that run now."""
        return {
            "active": self.active,
            "max_active": self.max_active,
            "completed": self.completed,
            "disconnects": self.disconnects,
            "tokens": self.tokens,
            "connections": self.connections,
            "unknown": self.unknown,
        }

    def document(self, path: bytes, body: bytes) -> Any:
        """The JSON answer of a path that streams nothing; None where the path is unknown."""
        match path:
            case b"/health" | b"/health_generate" | b"/ping":
                return {"status": "ok"}
            case b"/props":
                return {
                    "default_generation_settings": {"n_ctx": CTX},
                    "total_slots": self.slots,
                    "model_path": self.model,
                    "model_alias": self.model,
                    "model_ftype": "Q4_1",
                    "chat_template": "",
                    "build_info": "fake",
                    "is_sleeping": False,
                }
            case b"/slots":
                return [
                    {"id": i, "n_ctx": CTX, "is_processing": i < self.active}
                    for i in range(self.slots)
                ]
            case b"/tokenize":
                words = json.loads(body).get("content", "").split()
                return {"tokens": list(range(1, 1 + len(words)))}
            case b"/v1/models" | b"/models":
                return {
                    "object": "list",
                    "data": [{"id": self.model, "object": "model", "max_model_len": CTX}],
                }
            case b"/get_model_info" | b"/model_info":
                return {
                    "model_path": self.model,
                    "served_model_name": self.model,
                    "tokenizer_path": self.model,
                    "is_generation": True,
                }
            case b"/get_server_info" | b"/server_info":
                return {
                    "model_path": self.model,
                    "served_model_name": self.model,
                    "version": "0.0.fake",
                    "dp_size": 1,
                    "tp_size": 1,
                    "disaggregation_mode": "null",
                    "internal_states": [{}],
                }
            case b"/get_load" | b"/get_loads" | b"/v1/loads":
                return [{"dp_rank": 0, "num_reqs": self.active, "num_tokens": self.active}]
            case b"/stats":
                return self.stats()
            case b"/control":
                self.interval_s = float(json.loads(body)["interval_ms"]) / 1e3
                return {"interval_ms": self.interval_s * 1e3}
            case _:
                return None

    def prometheus(self) -> bytes:
        """llama.cpp's gauges."""
        return (
            "# TYPE llamacpp:requests_processing gauge\n"
            f"llamacpp:requests_processing {self.active}\n"
            "# TYPE llamacpp:requests_deferred gauge\n"
            "llamacpp:requests_deferred 0\n"
        ).encode()


class Stream:
    """One answer being written."""

    __slots__ = ("answer", "connection", "engine", "index", "started_s", "timer", "total", "waits")

    def __init__(self, connection: Connection, answer: Answer, total: int) -> None:
        self.connection, self.answer, self.total = connection, answer, total
        self.engine = connection.engine
        self.index = 0
        self.timer: asyncio.Handle | None = None
        self.waits = False
        self.engine.active += 1
        self.engine.max_active = max(self.engine.max_active, self.engine.active)
        self.started_s = connection.loop.time()
        # The head leaves with the first token, as one write: uvloop joins writes of one pass.
        connection.transport.write(STREAM_HEAD + answer.first)
        self.step()

    def step(self) -> None:
        """Write the next token and plan the one after it."""
        connection, engine = self.connection, self.engine
        if connection.paused and not engine.interval_s:
            self.waits = True
            return
        if self.index < self.total:
            connection.transport.write(self.answer.token(self.index, self.total))
            engine.tokens += 1
            self.index += 1
        if self.index >= self.total:
            connection.transport.write(self.answer.tail(self.total))
            engine.active -= 1
            engine.completed += 1
            connection.stream_ended()
        elif not engine.interval_s:
            self.timer = connection.loop.call_soon(self.step)
        else:
            # No drift: token k is due at start + k intervals.
            due_s = self.started_s + self.index * engine.interval_s
            self.timer = connection.loop.call_later(
                max(0.0, due_s - connection.loop.time()), self.step
            )

    def cancel(self) -> None:
        """The peer is gone: the slot is free at once."""
        if self.timer is not None:
            self.timer.cancel()
        self.engine.active -= 1
        self.engine.disconnects += 1


class Connection(asyncio.Protocol):
    """HTTP/1.1 with keep-alive, enough of it for routers and probes."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.loop = asyncio.get_running_loop()
        self.stream: Stream | None = None
        self.paused = False
        self._received = b""
        self.transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports do not derive from asyncio's classes: a cast, not a check.
        self.transport = cast("asyncio.Transport", transport)
        self.engine.connections += 1

    def connection_lost(self, exc: Exception | None) -> None:
        if self.stream is not None:
            self.stream.cancel()
            self.stream = None

    def pause_writing(self) -> None:
        self.paused = True

    def resume_writing(self) -> None:
        self.paused = False
        if self.stream is not None and self.stream.waits:
            self.stream.waits = False
            self.stream.step()

    def data_received(self, data: bytes) -> None:
        self._received += data
        self._answer_waiting()

    def stream_ended(self) -> None:
        """The stream's connection is free for its next request."""
        self.stream = None
        if self._received:
            self.loop.call_soon(self._answer_waiting)

    def _answer_waiting(self) -> None:
        while self.stream is None and self._received:
            head_end = self._received.find(b"\r\n\r\n")
            if head_end < 0:
                return
            head = self._received[:head_end]
            body_end = self._body(head.lower(), head_end + 4)
            if body_end is None:
                return
            body, end = body_end
            self._received = self._received[end:]
            words = head.split(b"\r\n", 1)[0].split(b" ")
            if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
                self.transport.abort()  # such as an HTTP/2 preface of a gRPC probe
                return
            self._answer(words[0], words[1].partition(b"?")[0], body)

    def _body(self, head: bytes, start: int) -> tuple[bytes, int] | None:
        """The body that begins at `start` and its end; None while it is not all here."""
        received = self._received
        if b"\r\ntransfer-encoding: chunked" in head:
            parts: list[bytes] = []
            while True:
                line_end = received.find(b"\r\n", start)
                if line_end < 0:
                    return None
                size = int(received[start:line_end].split(b";")[0], 16)
                start = line_end + 2 + size + 2
                if len(received) < start:
                    return None
                if size == 0:
                    return b"".join(parts), start
                parts.append(received[line_end + 2 : line_end + 2 + size])
        field = head.find(b"\r\ncontent-length:")
        length = int(head[field + 17 :].split(b"\r\n", 1)[0]) if field >= 0 else 0
        if len(received) < start + length:
            return None
        return received[start : start + length], start + length

    def _answer(self, method: bytes, path: bytes, body: bytes) -> None:
        engine = self.engine
        chat = path == b"/v1/chat/completions"
        if method == b"POST" and (chat or path in (b"/completion", b"/completions")):
            request = json.loads(body)
            # SGLang's router renames max_tokens on its way.
            names = ("max_tokens", "max_completion_tokens", "n_predict")
            total = next((int(request[name]) for name in names if request.get(name)), 16)
            if request.get("stream"):
                answer: Answer = engine.chat if chat else engine.llama
                stream = Stream(self, answer, total)
                # A one-token answer has ended inside the constructor.
                self.stream = stream if stream.index < total else None
                return
            engine.completed += 1
            engine.tokens += total
            document: Any = chat_body(engine.model, total) if chat else engine.llama.final(total)
            self._reply(200, json.dumps(document).encode())
        elif path == b"/metrics":
            self._reply(200, engine.prometheus(), b"text/plain; version=0.0.4")
        elif (found := engine.document(path, body)) is not None:
            self._reply(200, json.dumps(found).encode())
        else:
            engine.unknown += 1
            print("unknown path:", method, path, file=sys.stderr, flush=True)
            self._reply(404, b'{"error":{"message":"not found","code":404}}')

    def _reply(self, status: int, body: bytes, kind: bytes = b"application/json") -> None:
        reason = b"OK" if status == 200 else b"Not Found"
        self.transport.write(
            b"HTTP/1.1 %d %b\r\ncontent-type: %b\r\ncontent-length: %d\r\n\r\n%b"
            % (status, reason, kind, len(body), body)
        )


async def serve(engine: Engine, host: str, port: int) -> None:
    """Listen until cancelled; says where on stdout once it accepts connections."""
    loop = asyncio.get_running_loop()
    server = await loop.create_server(lambda: Connection(engine), host, port, backlog=4096)
    bound = server.sockets[0].getsockname()
    print(json.dumps({"event": "listening", "host": host, "port": bound[1]}), flush=True)
    await server.serve_forever()


def main() -> None:
    """Command line of the engine process."""
    parser = argparse.ArgumentParser(description="A fast fake inference engine.")
    parser.add_argument("--host", default=HOST)
    parser.add_argument("--port", type=int, default=0, help="0 picks a free one")
    parser.add_argument("--model", default="fake")
    parser.add_argument("--slots", type=int, default=512, help="what /props reports")
    options = parser.parse_args()
    uvloop.run(serve(Engine(options.model, options.slots), options.host, options.port))


if __name__ == "__main__":
    main()
