"""A raw HTTP server on 127.0.0.1 that answers exactly what a test wrote down, byte for byte.

Plays the service for clients and the command line: it can cut a stream in the middle of an
event, stay silent, or answer nonsense, which no HTTP framework lets a test do. Every connection
carries one exchange; each request is kept for the test to look at.
"""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

# A stuck test shall fail by its own assertion, not hang the run.
_SOCKET_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True)
class Received:
    """One request; header names are lower case."""

    method: str
    path: str
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.body)


# What follows the request on its connection; the connection closes when the pieces end.
Answer = Callable[[Received], Iterable[bytes]]


def head(status: int = 200, content_type: str = "application/json", **headers: str) -> bytes:
    """A response head without a length: the body ends with the connection."""
    lines = [f"HTTP/1.1 {status} X", f"Content-Type: {content_type}", "Connection: close"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def json_answer(status: int, body: Any, **headers: str) -> Answer:
    """Answer with one JSON document."""
    content = json.dumps(body).encode()
    return lambda _request: [head(status, Content_Length=str(len(content)), **headers) + content]


def empty_answer(status: int = 204) -> Answer:
    """Answer without a body."""
    return lambda _request: [f"HTTP/1.1 {status} X\r\nConnection: close\r\n\r\n".encode()]


def stream_answer(*pieces: bytes, **headers: str) -> Answer:
    """Answer with an event stream, one send per piece, then cut the connection."""
    return lambda _request: [head(200, "text/event-stream", **headers), *pieces]


def event(name: str, data: Mapping[str, Any], event_id: int | None = None) -> bytes:
    """One server-sent event as the contract frames it."""
    number = f"id: {event_id}\n" if event_id is not None else ""
    return f"event: {name}\n{number}data: {json.dumps(data, ensure_ascii=False)}\n\n".encode()


def started() -> bytes:
    """The first event of a task that decodes."""
    return event("started", {"queue_position": 0, "predicted_start_ms": 5}, 1)


def token(index: int, text: str) -> bytes:
    """Token `index`, counted from 0."""
    return event("token", {"t": text, "i": index}, index + 2)


def end(tokens_out: int, *, canceled: bool | None = None) -> bytes:
    """The terminal event of a task that is done; it took longer than any test reads it."""
    data: dict[str, Any] = {"tokens_out": tokens_out, "decode_ms": 60_000}
    if canceled is not None:
        data["canceled"] = canceled
    return event("end", data, tokens_out + 2)


class ScriptedServer:
    """Serves in threads while its `with` block lasts.

    `answers` are used one per connection, in order; `routes` answer `(method, path)` as often as
    asked, and come first. A request that nothing answers gets 599.
    """

    def __init__(
        self, *answers: Answer, routes: Mapping[tuple[str, str], Answer] | None = None
    ) -> None:
        self._answers: Iterator[Answer] = iter(answers)
        self._routes = dict(routes or {})
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._closing = False
        self._threads: list[threading.Thread] = []
        self.requests: list[Received] = []
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __enter__(self) -> Self:
        self._start(self._accept)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing = True
        # Waking `accept` takes a shutdown; a plain close leaves it waiting.
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for connection in self._open:
                try:
                    connection.shutdown(socket.SHUT_RDWR)
                except OSError:
                    continue  # the client was faster
        for thread in self._threads:
            thread.join(_SOCKET_TIMEOUT_S)

    def _start(self, target: Callable[..., None], *arguments: Any) -> None:
        thread = threading.Thread(target=target, args=arguments, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        while not self._closing:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            connection.settimeout(_SOCKET_TIMEOUT_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._lock:
                self._open.add(connection)
            self._start(self._serve, connection)

    def _serve(self, connection: socket.socket) -> None:
        try:
            with connection:
                request = _read_request(connection)
                if request is None:
                    return
                with self._lock:
                    self.requests.append(request)
                    answer = self._routes.get((request.method, request.path))
                    if answer is None:
                        answer = next(self._answers, json_answer(599, {}))
                for piece in answer(request):
                    connection.sendall(piece)
        except OSError:
            return  # the client left, which some tests want
        finally:
            with self._lock:
                self._open.discard(connection)


def _read_request(connection: socket.socket) -> Received | None:
    raw = b""
    while b"\r\n\r\n" not in raw:
        piece = connection.recv(65536)
        if not piece:
            return None
        raw += piece
    top, _, body = raw.partition(b"\r\n\r\n")
    first, *lines = top.decode("latin-1").split("\r\n")
    method, path, _ = first.split(" ")
    headers = {}
    for line in lines:
        name, _, value = line.partition(":")
        headers[name.strip().lower()] = value.strip()
    while len(body) < int(headers.get("content-length", "0")):
        body += connection.recv(65536)
    return Received(method, path, headers, body)
