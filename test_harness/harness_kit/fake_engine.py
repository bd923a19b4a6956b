"""A fake llama.cpp server: the native API over real sockets, with scripted behaviour.

Stands where an engine stands, for whatever needs faults a real one does not show on demand. As a
context manager it runs in a thread of its own; `python -m harness_kit.fake_engine` runs it as a
process that a test may kill. Its tokens are the shipped mock's, a pure function of prompt, seed
and sampling, so two fakes agree byte for byte and a test can name the expected text. Invariants:
at most `slots_total` decodes run, the others wait in arrival order; a closed connection frees its
slot at once.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import sys
import threading
from collections import deque
from dataclasses import dataclass, replace
from typing import Any, Self, cast

import httptools

from harness_kit.fake_completion import Completion
from harness_kit.fake_engine_script import FakeScript, Fault, FaultOnce
from worker_adapters.mock.script import score_of, split_tokens, template_of, vector_of

START_S = 10.0


class ServerConnection(asyncio.Protocol):
    """One client connection."""

    def __init__(self, engine: Server) -> None:
        self.engine = engine
        self.completion: Completion | None = None
        self._parser = httptools.HttpRequestParser(self)
        self._target = b""
        self._body = bytearray()
        self._headers: dict[str, str] = {}
        self._served = 0
        self._transport: asyncio.Transport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self.engine.connections_opened += 1
        self.engine.connections.add(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.engine.connections.discard(self)
        if self.completion is not None:
            self.engine.abandoned += 1
            self.completion.leave()

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_url(self, url: bytes) -> None:
        self._target += url

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.decode().lower()] = value.decode()

    def on_body(self, data: bytes) -> None:
        self._body += data

    def on_message_complete(self) -> None:
        method = self._parser.get_method().decode()
        path, body, headers = self._target.decode(), bytes(self._body), self._headers
        self._target, self._body, self._headers = b"", bytearray(), {}
        self.engine.requests.append(Request(method, path, headers, body))
        faults = self.engine.faults
        if faults and faults[0].kind is Fault.CLOSE_REUSED and self._served:
            faults.popleft()
            return self.abort()
        self._served += 1
        return self.engine.answer(self, method, path.partition("?")[0], body)

    def reply(self, status: int, body: bytes, *, close: bool = False) -> None:
        keep = b"Connection: close" if close else b"Keep-Alive: timeout=5, max=100"
        head = b"HTTP/1.1 %d X\r\nServer: llama.cpp\r\nContent-Type: application/json\r\n"
        self.write(head % status + b"Content-Length: %d\r\n%b\r\n\r\n%b" % (len(body), keep, body))
        if close and self._transport is not None:
            self._transport.close()

    def write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)

    def abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()


@dataclass(frozen=True, slots=True)
class Request:
    method: str
    path: str
    headers: dict[str, str]
    body: bytes


class Server:
    """State and routes; lives in one event loop, counters may be read from any thread."""

    def __init__(self, script: FakeScript) -> None:
        self.script = script
        self.faults: deque[FaultOnce] = deque()
        self.requests: list[Request] = []
        self.connections: set[ServerConnection] = set()
        self.connections_opened = 0
        self.completed = 0
        self.abandoned = 0  # completions whose client closed the connection
        self.running: dict[int, Completion] = {}
        self.waiting: deque[Completion] = deque()
        self.loop: asyncio.AbstractEventLoop = asyncio.get_running_loop()

    def left(self, completion: Completion) -> None:
        if completion in self.waiting:
            self.waiting.remove(completion)
        if completion.slot is not None and self.running.get(completion.slot) is completion:
            del self.running[completion.slot]
            self.fill()

    def fill(self) -> None:
        for slot in range(self.script.slots_total):
            if self.waiting and slot not in self.running:
                self.running[slot] = completion = self.waiting.popleft()
                completion.begin(slot)

    def answer(self, connection: ServerConnection, method: str, path: str, body: bytes) -> None:
        """Route one request; /health and everything else is 503 while loading."""
        if self.script.health_status != 200:
            return connection.reply(
                self.script.health_status, error_body("Loading model", "unavailable_error")
            )
        if path in self.script.hung_paths:
            return None
        if (method, path) == ("POST", "/completion"):
            return self.complete(connection, json.loads(body))
        route = {
            ("GET", "/health"): lambda _: {"status": "ok"},
            ("GET", "/props"): self.props,
            ("GET", "/slots"): self.slots,
            ("POST", "/tokenize"): lambda asked: {"tokens": split_tokens(asked["content"])},
            ("POST", "/apply-template"): lambda asked: {"prompt": template_of(asked["messages"])},
            ("POST", "/embedding"): self.embed,
            ("POST", "/rerank"): self.rank,
        }.get((method, path))
        if (method, path) == ("GET", "/metrics"):
            return connection.reply(200, self.metrics())
        if route is None:
            return connection.reply(404, error_body("File Not Found", "not_found_error"))
        try:
            answer = route(json.loads(body or b"{}"))
        except NotImplementedError as error:
            return connection.reply(501, error_body(str(error), "not_supported_error"), close=True)
        except KeyError as error:
            return connection.reply(
                400, error_body(f"{error} must be provided", "invalid_request_error"), close=True
            )
        return connection.reply(200, json.dumps(answer).encode())

    def complete(self, connection: ServerConnection, asked: dict[str, Any]) -> None:
        tokens, ctx = len(split_tokens(asked["prompt"])), self.script.ctx_max
        if tokens >= ctx:
            message = f"request ({tokens} tokens) exceeds the available context size ({ctx} tokens)"
            refusal = error_body(message, "exceed_context_size_error")
            return connection.reply(400, refusal, close=True)
        connection.completion = Completion(connection, self, asked)
        self.waiting.append(connection.completion)
        return self.fill()

    def props(self, _: object) -> dict[str, Any]:
        script = self.script
        return {
            "default_generation_settings": {
                "n_ctx": script.ctx_max,
                "params": {"seed": 1, "typical_p": 1.0},
            },
            "total_slots": script.slots_total,
            "model_alias": script.model_alias,
            "model_path": script.model_path,
            "model_ftype": "F16",
            "chat_template": script.chat_template,
            "build_info": script.build_info,
        }

    def slots(self, _: object) -> list[dict[str, Any]]:
        states = []
        for slot in range(self.script.slots_total):
            running = self.running.get(slot)
            state = {
                "id": slot,
                "n_ctx": self.script.ctx_max,
                "is_processing": running is not None,
            }
            if running is not None:
                state["n_prompt_tokens"] = running.prefilled + running.given
            states.append(state)
        return states

    def metrics(self) -> bytes:
        return (
            "# HELP llamacpp:requests_processing Number of requests processing.\n"
            "# TYPE llamacpp:requests_processing gauge\n"
            f"llamacpp:requests_processing {len(self.running)}\n"
            "# HELP llamacpp:requests_deferred Number of requests deferred.\n"
            "# TYPE llamacpp:requests_deferred gauge\n"
            f"llamacpp:requests_deferred {len(self.waiting)}\n"
            "# HELP llamacpp:tokens_predicted_total Number of generation tokens processed.\n"
            "# TYPE llamacpp:tokens_predicted_total counter\n"
            "llamacpp:tokens_predicted_total 12\n"
        ).encode()

    def embed(self, asked: dict[str, Any]) -> object:
        if not self.script.embeddings:
            raise NotImplementedError("This server does not support embeddings.")
        texts: list[str] = asked["content"]
        if self.script.flat_embeddings:
            return {"embedding": vector_of(texts[0])}
        # Out of order on purpose: `index` says what belongs where.
        return [{"index": i, "embedding": [vector_of(t)]} for i, t in enumerate(texts)][::-1]

    def rank(self, asked: dict[str, Any]) -> object:
        if not self.script.rerank:
            raise NotImplementedError("This server does not support reranking.")
        query, documents = asked["query"], asked["documents"]
        scored = [(score_of(query, text), index) for index, text in enumerate(documents)]
        return {
            "results": [
                {"index": index, "relevance_score": score} for score, index in sorted(scored)[::-1]
            ]
        }


def error_body(message: str, kind: str) -> bytes:
    return json.dumps({"error": {"code": 0, "message": message, "type": kind}}).encode()


class FakeEngine:
    """A fake engine in a thread of its own: `with FakeEngine() as engine: … engine.url`."""

    def __init__(self, script: FakeScript | None = None, port: int = 0) -> None:
        self._script = script or FakeScript()
        self._port = port
        self._thread: threading.Thread | None = None
        self._ready = threading.Event()
        self._server: Server | None = None
        self._stop: asyncio.Event | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    @property
    def server(self) -> Server:
        """Counters and requests seen; belongs to the engine's thread, read only."""
        assert self._server is not None, "not started"
        return self._server

    def start(self) -> None:
        """Serve; after a `kill`, on the same port again."""
        self._ready.clear()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve()), daemon=True)
        self._thread.start()
        assert self._ready.wait(START_S), "the fake engine did not start"

    def kill(self) -> None:
        """Reset every connection and close the port, as a killed process does."""
        if self._thread is not None and self._stop is not None:
            self.server.loop.call_soon_threadsafe(self._stop.set)
            self._thread.join(START_S)
            self._thread = None

    def inject(self, *faults: FaultOnce) -> None:
        """Each fault happens to one of the next completions, in order."""
        self.server.faults.extend(faults)

    def change(self, **script: Any) -> None:
        """Replace fields of the script, for what starts from now on."""
        self.server.script = replace(self.server.script, **script)

    def go_on(self) -> None:
        """Send the next write of the completion that is being played."""
        playing = [c for c in self.server.running.values() if c.fault is not None]
        self.server.loop.call_soon_threadsafe(playing[0].play)

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._server = server = Server(self._script)
        listener = await server.loop.create_server(
            lambda: ServerConnection(server), "127.0.0.1", self._port
        )
        self._port = listener.sockets[0].getsockname()[1]
        self._ready.set()
        await self._stop.wait()
        listener.close()
        for connection in list(server.connections):
            connection.abort()
        await listener.wait_closed()


def _end_for_want_of_vram() -> None:
    """What llama.cpp says and does when the GPU's memory is exhausted."""
    print("ggml_backend_cuda: cudaMalloc failed: out of memory", file=sys.stderr, flush=True)
    os._exit(1)


async def _run(script: FakeScript, port: int) -> None:
    server = Server(script)
    server.loop.add_signal_handler(signal.SIGUSR1, _end_for_want_of_vram)
    listener = await server.loop.create_server(lambda: ServerConnection(server), "127.0.0.1", port)
    address = listener.sockets[0].getsockname()
    print(json.dumps({"event": "listening", "host": address[0], "port": address[1]}), flush=True)
    await listener.serve_forever()


def main() -> None:
    """Serve until killed, or until SIGUSR1 exhausts the GPU; one JSON line says where."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--slots", type=int, default=2)
    parser.add_argument("--ctx", type=int, default=4096)
    parser.add_argument("--token-interval-ms", type=float, default=0.0)
    parser.add_argument("--salt", default="")
    asked = parser.parse_args()
    script = FakeScript(
        slots_total=asked.slots,
        ctx_max=asked.ctx,
        token_interval_s=asked.token_interval_ms / 1000,
        salt=asked.salt,
    )
    asyncio.run(_run(script, asked.port))


if __name__ == "__main__":
    main()
