"""Server-sent events from bytes that are cut anywhere."""

from __future__ import annotations

import pytest

from harness_kit.scripted_server import end, event, started, token
from orchqueue_v1.sse import (
    EndEvent,
    ErrorEvent,
    Frame,
    FrameParser,
    MetricsEvent,
    StartedEvent,
    StreamPosition,
    TokenEvent,
)
from orchqueue_v1.transport import OrchError

pytestmark = pytest.mark.req("ORCH-2002", "ORCH-3202", partial="all but the client's side")

TEXT = (
    b": keep-alive\n\n"
    + started()
    + token(0, "Hé")
    + b":\n\n"
    + event("metrics", {"queue_depth": 2})
    + token(1, "\U0001f600")
    + end(2)
)
FRAMES = [
    Frame("started", "1", '{"queue_position": 0, "predicted_start_ms": 5}'),
    Frame("token", "2", '{"t": "Hé", "i": 0}'),
    Frame("metrics", "", '{"queue_depth": 2}'),
    Frame("token", "3", '{"t": "\U0001f600", "i": 1}'),
    Frame("end", "4", '{"tokens_out": 2, "decode_ms": 60000}'),
]


def parse(*chunks: bytes) -> list[Frame]:
    parser = FrameParser()
    return [frame for chunk in chunks for frame in parser.feed(chunk)]


def test_every_cut_of_the_bytes_in_two_gives_the_same_frames() -> None:
    for cut in range(len(TEXT) + 1):
        assert parse(TEXT[:cut], TEXT[cut:]) == FRAMES, cut


@pytest.mark.parametrize("size", [1, 2, 3, 5, 7, 64])
@pytest.mark.parametrize("line_end", [b"\n", b"\r\n", b"\r"])
def test_small_pieces_and_any_line_end_give_the_same_frames(size: int, line_end: bytes) -> None:
    raw = TEXT.replace(b"\n", line_end)
    pieces = [raw[i : i + size] for i in range(0, len(raw), size)]

    assert parse(*pieces) == FRAMES


def test_a_stream_cut_in_mid_event_yields_only_whole_events() -> None:
    cut = TEXT.index(b'"i": 1')

    assert parse(TEXT[:cut]) == FRAMES[:3]


def test_data_lines_join_with_a_line_break_and_one_leading_space_goes() -> None:
    assert parse(b"data: a\ndata:  b\ndata\nevent:x\n\n") == [Frame("x", "", "a\n b\n")]


def test_events_are_typed_and_carry_their_ids() -> None:
    position = StreamPosition(None)

    events = [position.accept(frame) for frame in FRAMES]

    kinds = [StartedEvent, TokenEvent, MetricsEvent, TokenEvent, EndEvent]
    assert [type(item) for item in events] == kinds
    assert [item.id for item in events if item is not None] == [1, 2, None, 3, 4]
    assert position.ended


def test_an_id_that_was_seen_is_not_shown_again() -> None:
    position = StreamPosition(None)
    for frame in FRAMES[:2]:
        position.accept(frame)

    assert [position.accept(frame) for frame in FRAMES[:2]] == [None, None]


@pytest.mark.parametrize(
    ("last", "frame"),
    [
        (None, Frame("token", "2", '{"t": "a", "i": 0}')),
        (2, Frame("token", "4", '{"t": "a", "i": 2}')),
        (None, Frame("end", "3", '{"tokens_out": 1, "decode_ms": 1}')),
        (3, Frame("end", "9", '{"tokens_out": 7, "decode_ms": 1}')),
    ],
)
def test_a_missing_event_is_an_error(last: int | None, frame: Frame) -> None:
    with pytest.raises(OrchError) as caught:
        StreamPosition(last).accept(frame)

    assert (caught.value.code, caught.value.retriable) == ("STREAM_GAP", False)


def test_a_task_that_never_started_ends_with_id_two() -> None:
    frame = Frame("error", "2", '{"code":"ADMISSION_REJECT","message":"shed","engine":"llamacpp"}')

    position = StreamPosition(None)
    event = position.accept(frame)

    assert isinstance(event, ErrorEvent)
    assert event.data.code == "ADMISSION_REJECT"
    assert position.ended


@pytest.mark.parametrize(
    "frame",
    [
        Frame("token", "2", "{"),
        Frame("token", "2", '{"t": 5, "i": 0}'),
        Frame("token", "", '{"t": "a", "i": 0}'),
        Frame("token", "-2", '{"t": "a", "i": 0}'),
    ],
)
def test_data_against_the_contract_is_an_error_and_not_retried(frame: Frame) -> None:
    with pytest.raises(OrchError) as caught:
        StreamPosition(1).accept(frame)

    assert (caught.value.code, caught.value.retriable) == ("BAD_RESPONSE", False)


def test_an_event_kind_of_a_later_version_is_passed_over() -> None:
    assert StreamPosition(1).accept(Frame("novelty", "2", "{}")) is None


def test_bytes_that_are_not_utf8_are_an_error() -> None:
    with pytest.raises(OrchError, match="UTF-8"):
        parse(b"data: \xff\n\n")
