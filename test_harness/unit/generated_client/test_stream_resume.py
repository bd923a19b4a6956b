"""A stream that breaks goes on where it was, and no event is shown twice."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator

import pytest

from harness_kit.scripted_server import (
    Received,
    ScriptedServer,
    end,
    event,
    head,
    json_answer,
    started,
    stream_answer,
    token,
)
from orchqueue_v1.client import AsyncOrchQueueClient, OrchQueueClient
from orchqueue_v1.sse import EndEvent, ErrorEvent, Reconnect, StreamEvent, TokenEvent
from orchqueue_v1.transport import OrchError

pytestmark = pytest.mark.req("ORCH-3202", partial="all but the client's side")

TASK = "5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11"
QUICK = Reconnect(attempts=3, backoff_ms=1, read_timeout_s=20.0)

Read = Callable[..., list[StreamEvent]]


def read_blocking(
    url: str, last_event_id: int | None = None, reconnect: Reconnect = QUICK
) -> list[StreamEvent]:
    with OrchQueueClient(url, "k") as client:
        return list(client.stream_task(TASK, last_event_id, reconnect=reconnect))


def read_in_loop(
    url: str, last_event_id: int | None = None, reconnect: Reconnect = QUICK
) -> list[StreamEvent]:
    async def read() -> list[StreamEvent]:
        async with AsyncOrchQueueClient(url, "k") as client:
            stream = client.stream_task(TASK, last_event_id, reconnect=reconnect)
            return [item async for item in stream]

    return asyncio.run(read())


@pytest.fixture(params=[read_blocking, read_in_loop], ids=["blocking", "asyncio"])
def read(request: pytest.FixtureRequest) -> Read:
    reader: Read = request.param
    return reader


def text_of(events: list[StreamEvent]) -> str:
    return "".join(item.data.t for item in events if isinstance(item, TokenEvent))


def test_a_whole_stream_is_read_in_one_connection(read: Read) -> None:
    with ScriptedServer(stream_answer(started() + token(0, "a"), token(1, "é") + end(2))) as server:
        events = read(server.url)

    assert [item.id for item in events] == [1, 2, 3, 4]
    assert text_of(events) == "aé"
    (request,) = server.requests
    assert request.path == f"/v1/tasks/{TASK}/stream"
    assert request.headers["x-api-key"] == "k"
    assert request.headers["accept"] == "text/event-stream"
    assert "last-event-id" not in request.headers


def test_a_cut_in_mid_event_goes_on_right_after_the_last_whole_event(read: Read) -> None:
    cut = token(1, "b")
    with ScriptedServer(
        stream_answer(started(), token(0, "a"), cut[: len(cut) // 2]),
        stream_answer(token(1, "b"), end(2)),
    ) as server:
        events = read(server.url)

    assert [item.id for item in events] == [1, 2, 3, 4]
    assert text_of(events) == "ab"
    assert server.requests[1].headers["last-event-id"] == "2"


def test_events_that_a_server_sends_again_are_shown_once(read: Read) -> None:
    with ScriptedServer(
        stream_answer(started(), token(0, "a")),
        stream_answer(started(), token(0, "a"), token(1, "b"), end(2)),
    ) as server:
        events = read(server.url)

    assert [item.id for item in events] == [1, 2, 3, 4]


def test_nothing_is_read_after_the_terminal_event(read: Read) -> None:
    with ScriptedServer(stream_answer(started() + end(0) + token(0, "ghost"))) as server:
        events = read(server.url)

    assert isinstance(events[-1], EndEvent)
    assert len(server.requests) == 1


def test_an_error_event_ends_the_stream_as_an_event(read: Read) -> None:
    failed = event("error", {"code": "WORKER_RESET", "message": "gone", "engine": "llamacpp"}, 2)
    with ScriptedServer(stream_answer(started(), failed)) as server:
        events = read(server.url)

    assert isinstance(events[-1], ErrorEvent)
    assert events[-1].data.code == "WORKER_RESET"


def test_resuming_by_hand_asks_for_what_comes_after_the_given_id(read: Read) -> None:
    with ScriptedServer(stream_answer(token(4, "e"), end(5))) as server:
        events = read(server.url, 5)

    assert [item.id for item in events] == [6, 7]
    assert server.requests[0].headers["last-event-id"] == "5"


@pytest.mark.parametrize("beyond", [3, 300])
def test_an_id_at_or_beyond_the_end_gives_an_empty_stream_that_ends(
    read: Read, beyond: int
) -> None:
    with ScriptedServer(stream_answer(), stream_answer(started(), token(0, "a"), end(1))) as server:
        events = read(server.url, beyond)

    assert events == []
    headers = [request.headers.get("last-event-id") for request in server.requests]
    assert headers == [str(beyond), None]


def test_an_event_that_is_missing_raises_and_is_not_asked_for_again(read: Read) -> None:
    with (
        ScriptedServer(stream_answer(started(), token(1, "b"), end(2))) as server,
        pytest.raises(OrchError) as caught,
    ):
        read(server.url)

    assert caught.value.code == "STREAM_GAP"
    assert len(server.requests) == 1


@pytest.mark.req("ORCH-3025")
def test_a_503_that_is_retriable_is_tried_again(read: Read) -> None:
    envelope = {"code": "POOL_UNREADY", "message": "preloading", "retriable": True}
    with ScriptedServer(
        json_answer(503, envelope, Retry_After="1", X_Backoff_Ms="2"),
        stream_answer(started(), end(0)),
    ) as server:
        events = read(server.url)

    assert [item.id for item in events] == [1, 2]


@pytest.mark.req("ORCH-3025")
@pytest.mark.parametrize(("status", "code"), [(404, "INVALID_PARAMS"), (403, "ADMISSION_REJECT")])
def test_a_refusal_that_is_not_retriable_ends_at_once(read: Read, status: int, code: str) -> None:
    with (
        ScriptedServer(json_answer(status, {"code": code, "message": "no"})) as server,
        pytest.raises(OrchError) as caught,
    ):
        read(server.url)

    assert (caught.value.status, caught.value.code) == (status, code)
    assert len(server.requests) == 1


def test_tries_that_bring_nothing_are_bounded(read: Read) -> None:
    with (
        ScriptedServer(*[stream_answer(started())] * 9) as server,
        pytest.raises(OrchError) as caught,
    ):
        read(server.url)

    assert (caught.value.code, caught.value.retriable) == ("UNREACHABLE", True)
    # The first brought `started`; then three tries in a row brought nothing new.
    assert len(server.requests) == 4


def test_progress_gives_all_tries_back(read: Read) -> None:
    many = [stream_answer(token(index, "x")) for index in range(8)]
    with ScriptedServer(stream_answer(started()), *many, stream_answer(end(8))) as server:
        events = read(server.url)

    assert text_of(events) == "x" * 8


def test_a_line_that_falls_silent_is_opened_again(read: Read) -> None:
    came_back = threading.Event()

    def silent(_request: Received) -> Iterator[bytes]:
        yield head(200, "text/event-stream") + started()
        came_back.wait(10)

    def second(_request: Received) -> Iterator[bytes]:
        came_back.set()
        yield head(200, "text/event-stream") + token(0, "a") + end(1)

    impatient = Reconnect(attempts=1, backoff_ms=1, read_timeout_s=0.02)
    with ScriptedServer(silent, second) as server:
        events = read(server.url, None, impatient)

    assert [item.id for item in events] == [1, 2, 3]
    assert server.requests[1].headers["last-event-id"] == "1"


def test_single_bytes_on_the_wire_make_the_same_events(read: Read) -> None:
    raw = b": warm\n\n" + started() + token(0, "\U0001f600") + end(1)
    with ScriptedServer(stream_answer(*[bytes([byte]) for byte in raw])) as server:
        events = read(server.url)

    assert text_of(events) == "\U0001f600"


def test_a_chunked_body_that_is_cut_counts_as_a_broken_line(read: Read) -> None:
    def cut_chunk(_request: Received) -> list[bytes]:
        top = head(200, "text/event-stream", Transfer_Encoding="chunked")
        first = started()
        return [top + f"{len(first):x}\r\n".encode() + first + b"\r\n40\r\nevent: tok"]

    with ScriptedServer(cut_chunk, stream_answer(end(0))) as server:
        events = read(server.url)

    assert [item.id for item in events] == [1, 2]


def test_an_answer_that_is_no_event_stream_is_refused(read: Read) -> None:
    with (
        ScriptedServer(json_answer(200, {})) as server,
        pytest.raises(OrchError, match="no event stream"),
    ):
        read(server.url)


@pytest.mark.parametrize(
    ("failures", "hint_ms", "expected_ms"),
    [
        (1, None, 100),
        (2, None, 200),
        (4, None, 800),
        (9, None, 5000),
        (1, 1500, 1500),
        (1, 10**9, 60_000),
    ],
)
def test_waits_double_up_to_a_bound_unless_the_service_names_one(
    failures: int, hint_ms: int | None, expected_ms: int
) -> None:
    error = OrchError("UNREACHABLE", "x", retriable=True, retry_after_ms=hint_ms)

    assert Reconnect().delay_ms(failures, error) == expected_ms


def test_the_patience_of_a_reader_is_longer_than_the_keep_alive() -> None:
    keep_alive_s = 15

    assert Reconnect().read_timeout_s > keep_alive_s
