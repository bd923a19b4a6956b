"""A small raw HTTP/1.1 and SSE client that trusts nothing: it checks framing byte by byte.

Plays clients in the tests. Unlike an HTTP library it keeps header order, refuses what the grammar
does not allow, says whether a response was complete, and can vanish in mid-stream. One probe is
one kept-alive connection, reopened where the server closed it between two requests.
"""

from __future__ import annotations

import json
import re
import socket
import struct
import uuid
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from harness_kit.response_tap import tell, tell_event

# A stuck test shall fail by its own assertion, not hang the run.
TIMEOUT_S = 30.0

_EVENT = re.compile(
    rb"event: (?P<name>[a-z]+)\n(?:id: (?P<id>[1-9][0-9]*)\n)?data: (?P<data>\{[^\r\n]*\})"
)
_REQUEST_LINE = re.compile(rb"([A-Z]+) (\S+) HTTP/1\.1\r\n")


class ProbeError(Exception):
    """The other side broke HTTP or SSE, or closed the connection where it must not."""


class ProbeClosed(ProbeError):
    """The other side closed the connection in the midst of a response."""


@dataclass(frozen=True, slots=True)
class Answer:
    """One whole response; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The decoded body."""
        return json.loads(self.body)


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event; `raw` is its block without the blank line."""

    name: str
    id: int | None
    data: dict[str, Any]
    raw: bytes

    @property
    def terminal(self) -> bool:
        return self.name in ("end", "error")


def parse_block(block: bytes) -> Event | None:
    """One event of the pinned grammar; None for a comment. Raises `ProbeError` otherwise."""
    if block.startswith(b":") and b"\n" not in block:
        return None
    found = _EVENT.fullmatch(block)
    if found is None:
        raise ProbeError(f"not an event of the contract: {block!r}")
    number = None if found["id"] is None else int(found["id"])
    return Event(found["name"].decode(), number, json.loads(found["data"].decode()), block)


class HttpProbe:
    """One client connection, to 127.0.0.1 unless told otherwise."""

    def __init__(
        self,
        port: int,
        key: str | None = None,
        timeout_s: float = TIMEOUT_S,
        host: str = "127.0.0.1",
    ) -> None:
        self.host = host
        self.port = port
        self.key = key
        self.timeout_s = timeout_s
        self._socket: socket.socket | None = None
        self._received = b""
        self._asked: deque[tuple[str, str, bytes]] = deque()
        self.answering = ("", "", b"")
        """Method, path and bytes of the request that the response in hand answers."""
        self.connections = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection; the next request opens another."""
        if self._socket is not None:
            self._socket.close()
        self._socket = None
        self._received = b""
        self._asked.clear()

    def vanish(self) -> None:
        """Reset the connection without a goodbye, as a client that lost power does."""
        if self._socket is not None:
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close()

    # --- requests ----------------------------------------------------------------------------

    def get(self, path: str, **headers: str) -> Answer:
        return self.request("GET", path, headers=headers)

    def post(self, path: str, document: Any = None, **headers: str) -> Answer:
        """POST a JSON document, or nothing."""
        if document is None:
            return self.request("POST", path, headers=headers)
        fields = {"Content-Type": "application/json"} | headers
        return self.request("POST", path, json.dumps(document).encode(), fields)

    def request(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> Answer:
        """One exchange. Underscores in header names stand for hyphens."""
        self.send(method, path, body, headers)
        return self.read_answer()

    def read_answer(self) -> Answer:
        """The whole response that comes next."""
        status, fields = self.read_head()
        method, path, sent = self.answering
        if method == "HEAD" or status in (204, 304):
            content = b""
        elif fields.get("transfer-encoding") == "chunked":
            content = b"".join(self.chunks())
        else:
            content = self.take(int(fields["content-length"]))
        if fields.get("connection") == "close":
            self.close()
        tell(method, path, status, fields, content, sent)
        return Answer(status, fields, content)

    def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        """Write one request; what is written over a connection that died is written again."""
        fields = {"Host": f"{self.host}:{self.port}"}
        if self.key is not None:
            fields["X-API-Key"] = self.key
        fields |= {name.replace("_", "-"): value for name, value in (headers or {}).items()}
        if body is not None:
            fields["Content-Length"] = str(len(body))
        lines = [f"{method} {path} HTTP/1.1", *(f"{n}: {v}" for n, v in fields.items())]
        self.send_raw("\r\n".join(lines).encode("latin-1") + b"\r\n\r\n" + (body or b""))

    def send_raw(self, data: bytes) -> None:
        """Write bytes as they are."""
        if self._socket is not None and self._peer_has_closed(self._socket):
            self.close()
        if self._socket is None:
            self._socket = socket.create_connection((self.host, self.port), self.timeout_s)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.connections += 1
        line = _REQUEST_LINE.match(data)
        method, path = (line[1].decode(), line[2].decode("latin-1")) if line else ("", "")
        self._asked.append((method, path, data))
        self._socket.sendall(data)

    def read_head(self) -> tuple[int, dict[str, str]]:
        """Status and headers of the response that comes next."""
        while (end := self._received.find(b"\r\n\r\n")) < 0:
            self._read_more()
        head, self._received = self._received[:end], self._received[end + 4 :]
        first, *lines = head.decode("latin-1").split("\r\n")
        fields: dict[str, str] = {}
        for line in lines:
            name, colon, value = line.partition(": ")
            if not colon:
                raise ProbeError(f"not a header field: {line!r}")
            if name.lower() in fields:
                raise ProbeError(f"the header {name} stands twice")
            fields[name.lower()] = value
        self.answering = self._asked.popleft()
        return int(first.split(" ")[1]), fields

    def chunks(self) -> Iterator[bytes]:
        """The chunks of a chunked body as they come, up to and without the last one."""
        while True:
            while (end := self._received.find(b"\r\n")) < 0:
                self._read_more()
            size = int(self._received[:end], 16)
            self._received = self._received[end + 2 :]
            chunk = self.take(size + 2)
            if not chunk.endswith(b"\r\n"):
                raise ProbeError(f"a chunk of {size} bytes that does not end in CRLF")
            if size == 0:
                return
            yield chunk[:-2]

    # --- tasks -------------------------------------------------------------------------------

    def submit(self, document: Mapping[str, Any]) -> Answer:
        """The promise to a task; AssertionError where it is refused."""
        answer = self.post("/v1/tasks", document)
        assert answer.status == 202, answer
        return answer

    def stream(self, task_id: str, after: int | str | None = None, **headers: str) -> EventStream:
        """Open a task's stream; `after` is sent as Last-Event-ID."""
        fields = dict(headers)
        if after is not None:
            fields["Last-Event-ID"] = str(after)
        self.send("GET", f"/v1/tasks/{task_id}/stream", headers=fields)
        status, answered = self.read_head()
        return EventStream(self, status, answered)

    # --- bytes -------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        """The next `count` bytes of what the server sends."""
        while len(self._received) < count:
            self._read_more()
        taken, self._received = self._received[:count], self._received[count:]
        return taken

    def _read_more(self) -> None:
        assert self._socket is not None, "nothing was sent"
        data = self._socket.recv(65536)
        if not data:
            raise ProbeClosed(f"closed with {self._received[:200]!r} in hand")
        self._received += data

    @staticmethod
    def _peer_has_closed(connection: socket.socket) -> bool:
        connection.setblocking(False)
        try:
            return connection.recv(1, socket.MSG_PEEK) == b""
        except BlockingIOError:
            return False
        except OSError:
            return True
        finally:
            connection.settimeout(TIMEOUT_S)


class EventStream:
    """One response of `GET /v1/tasks/{id}/stream`, read event by event."""

    def __init__(self, probe: HttpProbe, status: int, headers: Mapping[str, str]) -> None:
        self.probe = probe
        self.status = status
        self.headers = headers
        self._method, self._path, self._sent = probe.answering
        if status == 200:
            tell(self._method, self._path, status, headers, None, self._sent)
        self.complete = False
        """Whether the response came to its proper end (the last chunk)."""
        self._chunks = probe.chunks()
        self._left = b""

    def answer(self) -> Answer:
        """The body of a response that is an error."""
        body = self.probe.take(int(self.headers["content-length"]))
        tell(self._method, self._path, self.status, self.headers, body, self._sent)
        return Answer(self.status, self.headers, body)

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        while True:
            while (end := self._left.find(b"\n\n")) < 0:
                try:
                    self._left += next(self._chunks)
                except StopIteration:
                    if self._left:
                        raise ProbeError(f"ends inside an event: {self._left!r}") from None
                    self.complete = True
                    raise
            block, self._left = self._left[:end], self._left[end + 2 :]
            event = parse_block(block)
            if event is not None:  # else a comment: a sign of life
                tell_event(event.name, event.id, event.data)
                return event

    def until(self, name: str) -> Event:
        """Read on to the next event of that name. Raises `ProbeError` when there is none."""
        return self.through(name)[-1]

    def through(self, name: str) -> list[Event]:
        """The next events, the last of them the first of that name. Raises `ProbeError` when
        there is none."""
        taken: list[Event] = []
        for event in self:
            taken.append(event)
            if event.name == name:
                return taken
        raise ProbeError(f"the stream ended without {name}")

    def take(self, count: int, *, numbered: bool = True) -> list[Event]:
        """The next `count` events, those without an id not counted unless asked for."""
        taken: list[Event] = []
        for event in self:
            if event.id is not None or not numbered:
                taken.append(event)
            if len(taken) == count:
                break
        return taken

    def rest(self) -> list[Event]:
        """All events up to the end of the response."""
        return list(self)

    def until_cut(self) -> list[Event]:
        """All events up to where the connection breaks; AssertionError for a proper end."""
        events: list[Event] = []
        while True:
            try:
                events.append(next(self))
            except StopIteration:
                raise AssertionError("the stream ended properly instead of breaking") from None
            except (ProbeError, OSError):
                return events


def numbered(events: list[Event]) -> list[Event]:
    """The events that have an id: those that a replay repeats."""
    return [event for event in events if event.id is not None]


def text_of(events: list[Event]) -> str:
    """The joined text of the tokens."""
    return "".join(event.data["t"] for event in events if event.name == "token")


def replica_of(events: list[Event]) -> str:
    """Where a task ran last, as its metrics events say."""
    return str([event.data["replica_id"] for event in events if event.name == "metrics"][-1])


def task(model_ref: str, /, **fields: Any) -> dict[str, Any]:
    """A valid TaskRequest with fresh ids; `fields` replace or add, and None leaves out."""
    document: dict[str, Any] = {
        "task_id": str(uuid.uuid4()),
        "session_id": str(uuid.uuid4()),
        "workload": "completion",
        "model_ref": model_ref,
        "engine": "llamacpp",
        "ctx": 512,
        "priority": "interactive",
        "max_tokens": 8,
        "deadline_ms": 120_000,
        "seed": 42,
        "prompt": "Once upon a time",
    } | fields
    return {name: value for name, value in document.items() if value is not None}
