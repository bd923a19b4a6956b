# Written by `python -m orch_tools regen` from test_harness/orch_tools/client_runtime/sse.py; edit that instead.
"""The reader of a task's event stream: bytes in any pieces to typed events, across broken
connections.

Sits between a transport and the caller of `stream_task`. Invariant: the caller sees each event
with an id exactly once and in order, then one `end` or `error`, whatever happens to the
connections in between; where that cannot be kept, `OrchError` STREAM_GAP is raised (ORCH-2002,
ORCH-3202). Source: WHATWG HTML 9.2 (server-sent events) for the framing.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import msgspec

from orchqueue_v1.transport import (
    BAD_RESPONSE,
    STREAM_GAP,
    UNREACHABLE,
    OrchError,
    Request,
    Response,
    SyncTransport,
)
from orchqueue_v1.types import StreamEnd, StreamError, StreamStarted, StreamToken

if TYPE_CHECKING:
    from orchqueue_v1.async_transport import AsyncTransport

# The service sends a comment every 15 s; a line that is silent for longer is broken.
DEFAULT_READ_TIMEOUT_S = 20.0
# One event is a token or a result; a line without end is not a stream of ours.
_PENDING_BYTES_MAX = 64 * 1024 * 1024
_STARTED_ID = 1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class StartedEvent:
    """Decoding has begun."""

    id: int
    data: StreamStarted


@dataclass(frozen=True, slots=True)
class TokenEvent:
    """One piece of text; `data.i` counts from 0 and `id` is i + 2."""

    id: int
    data: StreamToken


@dataclass(frozen=True, slots=True)
class MetricsEvent:
    """A passing observation: no id, never replayed, open to new fields."""

    data: Mapping[str, Any]
    id: None = None


@dataclass(frozen=True, slots=True)
class EndEvent:
    """The task is over: complete, or cancelled where `data.canceled` is true."""

    id: int
    data: StreamEnd


@dataclass(frozen=True, slots=True)
class ErrorEvent:
    """The task ended with a typed error."""

    id: int
    data: StreamError


StreamEvent: TypeAlias = StartedEvent | TokenEvent | MetricsEvent | EndEvent | ErrorEvent


@dataclass(frozen=True, slots=True)
class Reconnect:
    """How a broken stream is taken up again.

    `attempts` bounds the tries in a row that bring no new event; waits double from `backoff_ms` to
    `backoff_max_ms`, or are what the service asked for, up to `retry_after_max_ms`.
    """

    attempts: int = 8
    backoff_ms: int = 100
    backoff_max_ms: int = 5_000
    retry_after_max_ms: int = 60_000
    read_timeout_s: float = DEFAULT_READ_TIMEOUT_S

    def delay_ms(self, failures: int, error: OrchError) -> int:
        """Return the wait before the next try, after `failures` (at least 1) in a row."""
        if error.retry_after_ms is not None:
            return min(error.retry_after_ms, self.retry_after_max_ms)
        doubled: int = self.backoff_ms * 2 ** min(failures - 1, 16)
        return min(doubled, self.backoff_max_ms)


@dataclass(frozen=True, slots=True)
class Frame:
    """One dispatched block of the stream, not yet understood."""

    event: str
    id: str
    data: str


class FrameParser:
    """Bytes to frames; holds what is incomplete, so that any cut gives the same frames."""

    def __init__(self) -> None:
        self._pending = b""
        self._event = ""
        self._id = ""
        self._data: list[str] = []
        self._after_return = False

    def feed(self, chunk: bytes) -> list[Frame]:
        """Take the next bytes and return the frames they complete.

        Raises `OrchError` BAD_RESPONSE.
        """
        if self._after_return and chunk:
            # A line ended in CR at the end of the last chunk: a LF now belongs to it.
            chunk = chunk.removeprefix(b"\n")
            self._after_return = False
        text = self._pending + chunk
        if len(text) > _PENDING_BYTES_MAX:
            raise OrchError(BAD_RESPONSE, "an event of the stream is too large")
        if text.endswith(b"\r"):
            self._after_return = True
        if b"\r" in text:
            text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
        *lines, self._pending = text.split(b"\n")
        frames = []
        for line in lines:
            if line:
                self._take_line(line)
                continue
            if self._data:
                frames.append(Frame(self._event or "message", self._id, "\n".join(self._data)))
            self._event, self._id, self._data = "", "", []
        return frames

    def _take_line(self, line: bytes) -> None:
        try:
            name, _, value = line.decode().partition(":")
        except UnicodeDecodeError:
            raise OrchError(BAD_RESPONSE, "the stream is not UTF-8") from None
        value = value.removeprefix(" ")
        match name:
            case "event":
                self._event = value
            case "id":
                self._id = value
            case "data":
                self._data.append(value)
            case _:
                # A comment (empty name) keeps the line warm; other fields are for browsers.
                pass


class StreamPosition:
    """Where a reader is in a task's log: lets each id pass once, in order, and knows the end."""

    def __init__(self, last_event_id: int | None) -> None:
        self.last_id = last_event_id or 0
        self.ended = False
        self._from_start = False
        self._is_fruitless = False

    def begin(self) -> int | None:
        """Begin a connection: return the id to go on after, or None to read from the start."""
        resume_after = None if self._from_start or not self.last_id else self.last_id
        self._from_start, self._is_fruitless = False, True
        return resume_after

    def finish(self) -> None:
        """A connection ended in order without a terminal event.

        When it brought nothing at all, the caller's id may lie at or beyond the task's end, which
        only a reading from the start can tell; what was seen is passed over then.
        """
        self._from_start = self._is_fruitless

    def accept(self, frame: Frame) -> StreamEvent | None:
        """Return the event to show, or None for one that was seen or that this client cannot know.

        Raises:
            OrchError: STREAM_GAP when an id is missing, BAD_RESPONSE when the data is wrong.
        """
        if frame.event == "metrics":
            return MetricsEvent(_decode(frame, dict[str, Any]))
        if frame.event not in {"started", "token", "end", "error"}:
            # ORCH-3044: a later version may add events; they carry nothing this client promised.
            return None
        if not (frame.id.isascii() and frame.id.isdigit()):
            raise OrchError(BAD_RESPONSE, f"a {frame.event} event has no numeric id")
        event_id = int(frame.id)
        terminal = frame.event in {"end", "error"}
        if event_id <= self.last_id:
            # The end lies before the place the caller named: nothing is left to show.
            self.ended = terminal
            return None
        # A task that never started has no `started`: its terminal event (tokens_out + 2 = 2) is
        # first.
        skips_started = terminal and self.last_id < _STARTED_ID and event_id == _STARTED_ID + 1
        if event_id != self.last_id + 1 and not skips_started:
            raise OrchError(
                STREAM_GAP, f"event {event_id} came after {self.last_id}: an event is missing"
            )
        event: StreamEvent
        match frame.event:
            case "started":
                event = StartedEvent(event_id, _decode(frame, StreamStarted))
            case "token":
                event = TokenEvent(event_id, _decode(frame, StreamToken))
            case "end":
                event = EndEvent(event_id, _decode(frame, StreamEnd))
            case _:
                event = ErrorEvent(event_id, _decode(frame, StreamError))
        self.last_id = event_id
        self.ended = terminal
        self._is_fruitless = False
        return event


def _decode(frame: Frame, type_: type[T]) -> T:
    try:
        return msgspec.json.decode(frame.data, type=type_)
    except msgspec.DecodeError as error:
        raise OrchError(
            BAD_RESPONSE, f"a {frame.event} event breaks the contract: {error}"
        ) from None


class _Attempts:
    """Counts failures in a row; progress (a new id) forgives them."""

    def __init__(self, rule: Reconnect, position: StreamPosition) -> None:
        self._rule = rule
        self._position = position
        self._failures = 0
        self._seen = position.last_id

    def delay_s(self, error: OrchError) -> float:
        """Return the wait before the next try. Raises `error` where another try cannot help."""
        if self._position.last_id > self._seen:
            self._seen, self._failures = self._position.last_id, 0
        self._failures += 1
        if not error.retriable or self._failures > self._rule.attempts:
            raise error
        return self._rule.delay_ms(self._failures, error) / 1000


def _request_for(request: Request, position: StreamPosition) -> Request:
    headers = {**request.headers, "Accept": "text/event-stream"}
    resume_after = position.begin()
    if resume_after is not None:
        headers["Last-Event-ID"] = str(resume_after)
    return Request(request.method, request.path, None, headers)


def _check_head(head: Response) -> None:
    media_type = head.headers.get("content-type", "").partition(";")[0].strip().lower()
    if media_type != "text/event-stream":
        raise OrchError(BAD_RESPONSE, "the answer is no event stream", status=head.status)


# The service stops (or somebody between closed the line): a drained task goes on after its restart.
def _ended_early() -> OrchError:
    return OrchError(UNREACHABLE, "the stream ended before the task did", retriable=True)


def read_stream(
    transport: SyncTransport,
    request: Request,
    last_event_id: int | None = None,
    reconnect: Reconnect | None = None,
    sleep: Callable[[float], None] = time.sleep,
) -> Iterator[StreamEvent]:
    """Yield a task's events from after `last_event_id` to its terminal event.

    Raises:
        OrchError: refused (404: no such task), no more tries left, a gap, or a broken contract.
    """
    rule = reconnect or Reconnect()
    position = StreamPosition(last_event_id)
    attempts = _Attempts(rule, position)
    while True:
        try:
            opened = transport.open_stream(_request_for(request, position), rule.read_timeout_s)
            with opened as (head, chunks):
                if head.status == 204:
                    return  # RFC 9110, 15.3.5 and HTML 9.2: nothing is left after this id
                _check_head(head)
                parser = FrameParser()
                for chunk in chunks:
                    for frame in parser.feed(chunk):
                        event = position.accept(frame)
                        if event is not None:
                            yield event
                        if position.ended:
                            return
            position.finish()
            raise _ended_early()
        except OrchError as error:
            delay_s = attempts.delay_s(error)
        sleep(delay_s)


async def read_stream_async(
    transport: AsyncTransport,
    request: Request,
    last_event_id: int | None = None,
    reconnect: Reconnect | None = None,
) -> AsyncIterator[StreamEvent]:
    """Yield a task's events like `read_stream`, without blocking the loop. Raises `OrchError`."""
    rule = reconnect or Reconnect()
    position = StreamPosition(last_event_id)
    attempts = _Attempts(rule, position)
    while True:
        try:
            opened = transport.open_stream(_request_for(request, position), rule.read_timeout_s)
            async with opened as (head, chunks):
                if head.status == 204:
                    return
                _check_head(head)
                parser = FrameParser()
                async for chunk in chunks:
                    for frame in parser.feed(chunk):
                        event = position.accept(frame)
                        if event is not None:
                            yield event
                        if position.ended:
                            return
            position.finish()
            raise _ended_early()
        except OrchError as error:
            delay_s = attempts.delay_s(error)
        await transport.sleep(delay_s)
