"""A fake llama.cpp server whose pace the test holds: it decodes as many tokens as it is allowed.

Runs in a thread of the test, speaks llama.cpp's native API over real sockets (as measured against
build 11549), and remembers what it was asked. Invariants: a token beyond the gate is never sent;
the text depends on prompt and seed alone, unless a test gives another `script`; a decode whose
client went away is over at once (`busy` goes down).
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
from collections.abc import Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from harness_kit.waiting import wait_until

WORDS = (" sound", " of", " the", " river", " was", " low", " and", " we", " walked", " on")
NO_GATE = 1 << 60

# (prompt, seed, number of tokens) -> the text of each token
Script = Callable[[str, int, int], list[str]]


def words_by_seed(prompt: str, seed: int, count: int) -> list[str]:
    """Words that differ with prompt and seed, and are the same for the same ones."""
    digest = hashlib.sha256(f"{seed}/{prompt}".encode()).digest()
    return [WORDS[(digest[i % 32] + i) % len(WORDS)] for i in range(count)]


@dataclass(slots=True)
class DecodeSeen:
    """One /completion request, and what became of it."""

    body: dict[str, Any]
    headers: dict[str, str]
    sent: int = 0
    finished: bool = False
    gone: bool = False


class GatedEngine:
    """Listens while its `with` block lasts; all methods are called from the test's thread."""

    def __init__(
        self,
        *,
        slots: int = 2,
        ctx: int = 8192,
        script: Script = words_by_seed,
        version: str = "gated-1",
        model_path: str = "gated.gguf",
        embeddings: bool = False,
    ) -> None:
        self.slots = slots
        self.ctx = ctx
        self.script = script
        self.version = version
        self.model_path = model_path
        self.embeddings = embeddings
        self.loading = False
        self.decodes: list[DecodeSeen] = []
        self.port = 0
        self._gate = NO_GATE
        self._moved = asyncio.Event()
        self._loop = asyncio.new_event_loop()
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        self.listen()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._call(self._shut())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def busy(self) -> int:
        """Decodes that run now."""
        return sum(not (seen.finished or seen.gone) for seen in self.decodes)

    def hold(self, tokens: int = 0) -> None:
        """From now on a decode stops after its first `tokens` tokens, until it is allowed more."""
        self._move(tokens)

    def allow(self, tokens: int = NO_GATE) -> None:
        """Let every decode go on up to `tokens` tokens in all."""
        self._move(tokens)

    def wait_busy(self, count: int, timeout_s: float = 10.0) -> None:
        """Wait until exactly `count` decodes run."""
        wait_until(lambda: self.busy == count, timeout_s, f"{count} decodes run")

    def listen(self) -> None:
        """Accept connections, on the same port after `crash`."""
        self._call(self._listen())

    def crash(self) -> None:
        """Stop listening and reset every connection, as a process that is killed."""
        self._call(self._shut())

    def break_decodes(self) -> None:
        """Reset every connection; new ones are welcome."""
        self._call(self._abort())

    # --- the engine's thread -----------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()
        pending = asyncio.all_tasks(self._loop)
        for pending_task in pending:
            pending_task.cancel()
        self._loop.run_until_complete(asyncio.gather(*pending, return_exceptions=True))

    def _call(self, work: Coroutine[Any, Any, None]) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(timeout=10)

    def _move(self, tokens: int) -> None:
        async def move() -> None:
            self._gate = tokens
            moved, self._moved = self._moved, asyncio.Event()
            moved.set()

        self._call(move())

    async def _listen(self) -> None:
        self._server = await asyncio.start_server(self._serve, "127.0.0.1", self.port, backlog=512)
        self.port = self._server.sockets[0].getsockname()[1]

    async def _shut(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        await self._abort()

    async def _abort(self) -> None:
        for writer in tuple(self._writers):
            writer.transport.abort()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError):
                while await self._exchange(reader, writer):
                    pass
        finally:
            self._writers.discard(writer)
            writer.close()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
        first, *lines = head.strip().split("\r\n")
        method, path, _ = first.split(" ")
        headers = {n.lower(): v.strip() for n, _, v in (line.partition(":") for line in lines)}
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if (method, path) == ("POST", "/completion"):
            return await self._decode(json.loads(body), headers, reader, writer)
        status, document = self._document(path, body)
        content = json.dumps(document).encode()
        writer.write(
            b"HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
            % (status, len(content), content)
        )
        await writer.drain()
        return True

    def _document(self, path: str, body: bytes) -> tuple[int, Any]:
        match path:
            case "/health":
                return (503, {"error": {"message": "Loading"}}) if self.loading else (200, {})
            case "/props":
                return 200, {
                    "default_generation_settings": {"n_ctx": self.ctx, "params": {}},
                    "total_slots": self.slots,
                    "model_path": self.model_path,
                    "model_alias": f"gated@{self.version}",
                    "model_ftype": "Q4_1",
                    "chat_template": "gated",
                    "build_info": "gated",
                }
            case "/slots":
                busy = self.busy
                return 200, [{"id": i, "is_processing": i < busy} for i in range(self.slots)]
            case "/tokenize":
                return 200, {"tokens": list(range(len(json.loads(body)["content"].split())))}
            case "/apply-template":
                turns = json.loads(body)["messages"]
                return 200, {"prompt": "".join(f"<{m['role']}>{m['content']}" for m in turns)}
            case "/embedding" | "/rerank" if self.embeddings:
                return self._computed(path, json.loads(body))
            case _:
                return 501, {"error": {"message": "not offered", "type": "not_supported_error"}}

    def _computed(self, path: str, asked: dict[str, Any]) -> tuple[int, Any]:
        """Lengths stand for vectors and scores."""
        if path == "/embedding" and "content" in asked:
            rows = [[float(len(text)), 1.0] for text in asked["content"]]
            return 200, [{"index": i, "embedding": [row]} for i, row in enumerate(rows)]
        if path == "/rerank" and "documents" in asked:
            scores = [float(len(text)) for text in asked["documents"]]
            results = [{"index": i, "relevance_score": s} for i, s in enumerate(scores)]
            return 200, {"results": results}
        return 400, {"error": {"message": "no input"}}

    async def _decode(
        self,
        asked: dict[str, Any],
        headers: dict[str, str],
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
    ) -> bool:
        seen = DecodeSeen(asked, headers)
        self.decodes.append(seen)
        total = asked["n_predict"]
        # Until the answer is complete the client has nothing to say but that it is gone.
        gone = asyncio.ensure_future(reader.read(1))
        try:
            writer.write(
                b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                b"Transfer-Encoding: chunked\r\n\r\n"
            )
            for index, word in enumerate(self.script(asked["prompt"], asked["seed"], total)):
                while index >= self._gate:
                    moved = asyncio.ensure_future(self._moved.wait())
                    await asyncio.wait((moved, gone), return_when=asyncio.FIRST_COMPLETED)
                    moved.cancel()
                    if gone.done():
                        return False
                writer.write(
                    _event({"content": word, "stop": False, "tokens_predicted": index + 1})
                )
                await writer.drain()
                if gone.done():
                    return False
                seen.sent += 1
            seen.finished = True
            writer.write(_event(_final(asked, seen.sent)) + b"0\r\n\r\n")
            await writer.drain()
            return not gone.done()
        finally:
            seen.gone = not seen.finished
            if not gone.done():
                gone.cancel()
                with suppress(asyncio.CancelledError):
                    await gone


def _event(document: dict[str, Any]) -> bytes:
    data = b"data: " + json.dumps(document, ensure_ascii=False).encode() + b"\n\n"
    return b"%x\r\n%b\r\n" % (len(data), data)


def _final(asked: dict[str, Any], sent: int) -> dict[str, Any]:
    read = len(asked["prompt"].split())
    return {
        "content": "",
        "stop": True,
        "stop_type": "limit",
        "truncated": False,
        "tokens_predicted": sent,
        "tokens_evaluated": read,
        "timings": {"cache_n": 0, "prompt_ms": 1.0, "predicted_ms": float(sent)},
    }
