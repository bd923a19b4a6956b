"""What a client of the service asks for, and what it sees, without HTTP.

`draft` builds requests; `token_events`, `started_event` and `end_event` say what the stream of an
undisturbed run holds, from the mock's own definition of an answer; a `StreamClient` reads one
stream over any number of connections. Invariant: a client keeps every frame it was ever sent, with
its bytes, the time, and whether a crash right then would have kept a terminal one.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import TYPE_CHECKING, Any

from orchestrator_core.determinism import derive_seed
from orchestrator_core.task import Determinism, Priority, Workload
from orchestratord.services.drafts import Draft
from orchestratord.services.jobs import Promise
from orchestratord.services.streams import StreamReader
from worker_adapters.adapter_api.types import Sampling
from worker_adapters.mock.script import answer_of

if TYPE_CHECKING:
    from harness_kit.service_world import ServiceWorld


def draft(number: int, **changes: Any) -> Draft:
    """A strict completion of four tokens by tenant `acme`; equal arguments give equal bodies."""
    task_id = f"00000000-0000-4000-8000-{number:012d}"
    fields: dict[str, Any] = {
        "tenant": "acme",
        "client_id": "key-1",
        "correlation_id": task_id,
        "task_id": task_id,
        "session_id": f"00000000-0000-4000-9000-{number:012d}",
        "workload": Workload.COMPLETION,
        "model_ref": "model",
        "engine": "llamacpp",
        "ctx": 512,
        "priority": Priority.INTERACTIVE,
        "max_tokens": 4,
        "deadline_ms": 60_000,
        "determinism": Determinism.STRICT,
        "prompt": f"Hello {number}",
        **changes,
    }
    body = repr(sorted(fields.items()))
    return Draft(**fields, body_digest=blake2b(body.encode(), digest_size=16).digest())


def token_events(of: Draft, profile: Sampling | None = None, salt: str = "") -> list[bytes]:
    """The `token` events of an undisturbed decode, from the mock's own definition."""
    sampling = of.sampling.over(profile or Sampling())
    seed = derive_seed(of.task_id) if of.seed is None else of.seed
    pieces = answer_of(of.prompt or "", seed, sampling, of.max_tokens, salt).pieces
    return [
        f'event: token\nid: {i + 2}\ndata: {{"t":{json.dumps(t, ensure_ascii=False)},"i":{i}}}\n\n'
        .encode()
        for i, t in enumerate(pieces)
    ]  # fmt: skip


def started_event(promise: Promise) -> bytes:
    """The `started` event, which repeats the numbers of the 202."""
    numbers = f'"queue_position":{promise.queue_position},'
    numbers += f'"predicted_start_ms":{promise.predicted_start_ms}'
    return f"event: started\nid: 1\ndata: {{{numbers}}}\n\n".encode()


def end_event(tokens: int, decode_ms: int) -> bytes:
    """The `end` event of a completed completion."""
    data = f'{{"tokens_out":{tokens},"decode_ms":{decode_ms}}}'
    return f"event: end\nid: {tokens + 2}\ndata: {data}\n\n".encode()


@dataclass(frozen=True, slots=True)
class Frame:
    """One event as a client got it; `on_disk`: whether a crash right then would have kept it."""

    event: str
    id: int | None
    data: Any
    raw: bytes
    at_s: float
    on_disk: bool

    @property
    def is_terminal(self) -> bool:
        return self.event in ("end", "error")


class StreamClient:
    """One client of one stream over all its connections; it comes back with `Last-Event-ID`."""

    def __init__(self, world: ServiceWorld, of: Draft) -> None:
        self._world = world
        self.draft = of
        self.frames: list[Frame] = []
        self.comments_at_s: list[float] = []
        self.congested = False
        self.finished = False
        self.reader: StreamReader | None = None

    @property
    def last_id(self) -> int:
        return max((f.id for f in self.frames if f.id is not None), default=0)

    @property
    def numbered(self) -> list[Frame]:
        """What a replay must repeat: all but `metrics`."""
        return [frame for frame in self.frames if frame.id is not None]

    @property
    def tokens(self) -> list[Frame]:
        return [frame for frame in self.frames if frame.event == "token"]

    @property
    def metrics(self) -> list[Frame]:
        return [frame for frame in self.frames if frame.event == "metrics"]

    @property
    def terminal(self) -> Frame | None:
        ends = [frame for frame in self.frames if frame.is_terminal]
        return ends[-1] if ends else None

    @property
    def raw(self) -> bytes:
        return b"".join(frame.raw for frame in self.numbered)

    @property
    def connected(self) -> bool:
        return self.reader is not None and not self.finished

    def connect(self, last_event_id: int | None = None) -> bool:
        """Read on, by default from where it was; False where the service knows no such task."""
        job = self._world.life.jobs.get(self.draft.key)
        if job is None:
            return False
        self.finished = False
        after = self.last_id if last_event_id is None else last_event_id
        self.reader = self._world.life.hub.attach(job, after, Connection(self))
        self.reader.pump()
        return True

    def leave(self) -> None:
        """Close the connection from this side."""
        reader, self.reader = self.reader, None
        if reader is not None:
            self._world.life.hub.gone(reader)

    def lose(self) -> None:
        """The service died: the connection is gone, nothing was said."""
        self.reader = None

    def resume(self) -> None:
        """The socket takes data again."""
        self.congested = False
        if self.reader is not None:
            self.reader.pump()

    def take(self, connection: Connection, data: bytes) -> None:
        if self.reader is not None and self.reader.writer is not connection:
            return
        assert data.endswith(b"\n\n"), "an event is written whole"
        for block in data[:-2].split(b"\n\n"):
            self._take_block(block)

    def _take_block(self, block: bytes) -> None:
        world = self._world
        if block.startswith(b":"):
            self.comments_at_s.append(world.now_s)
            return
        fields = dict(line.split(b": ", 1) for line in block.split(b"\n"))
        event = fields[b"event"].decode()
        number = int(fields[b"id"]) if b"id" in fields else None
        terminal = event in ("end", "error")
        frame = Frame(
            event,
            number,
            json.loads(fields[b"data"]),
            block + b"\n\n",
            world.now_s,
            terminal and world.has_on_disk(self.draft, event, fields[b"data"]),
        )
        self.frames.append(frame)


class Connection:
    """The `EventWriter` of one connection; deaf once the client has another one, or none."""

    def __init__(self, client: StreamClient) -> None:
        self._client = client
        self.cut = False

    @property
    def congested(self) -> bool:
        return self._client.congested

    def write(self, data: bytes) -> None:
        if not self.cut:
            self._client.take(self, data)

    def finish(self, last: bytes = b"") -> None:
        if last:
            self.write(last)
        if not self.cut:
            self._client.finished = True
