"""Server-sent events out of bytes that were cut anywhere."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_adapters.adapter_api.sse import SseDecoder
from worker_adapters.adapter_api.types import EngineError, EngineFault

pytestmark = [pytest.mark.req("ORCH-3054", partial="all but the transport below the adapter")]

# Written by hand from the rules of the HTML standard, 9.2.6.
STREAM = (
    b": a comment\n"
    b"data: one\n\n"
    b'data: {"t":"\xe9\x9b\xa8\xf0\x9f\x8c\xa7"}\r\n\r\n'
    b"event: note\rid: 7\rdata:no space\rdata:  two spaces\r\r"
    b"data\n\n"
    b"retry: 10\n\n"
    b"datax: not data\n\n"
    b"data: last\n\n"
    b"data: cut off by the end\n"
)
PAYLOADS = [
    b"one",
    b'{"t":"\xe9\x9b\xa8\xf0\x9f\x8c\xa7"}',
    b"no space\n two spaces",
    b"",
    b"last",
]


def read(*chunks: bytes) -> list[bytes]:
    decoder = SseDecoder()
    return [payload for chunk in chunks for payload in decoder.feed(chunk)]


def test_a_whole_stream_gives_its_events() -> None:
    payloads = read(STREAM)

    assert payloads == PAYLOADS


def test_byte_by_byte_gives_the_same_events() -> None:
    payloads = read(*(STREAM[i : i + 1] for i in range(len(STREAM))))

    assert payloads == PAYLOADS


def test_one_cut_at_every_position_gives_the_same_events() -> None:
    for place in range(len(STREAM) + 1):
        payloads = read(STREAM[:place], STREAM[place:])

        assert payloads == PAYLOADS, f"cut at {place}"


@given(st.sets(st.integers(0, len(STREAM))))
def test_any_cuts_give_the_same_events(places: set[int]) -> None:
    edges = [0, *sorted(places), len(STREAM)]

    payloads = read(*(STREAM[a:b] for a, b in pairwise(edges)))

    assert payloads == PAYLOADS


@given(st.lists(st.text(st.characters(exclude_characters="\r\n", codec="utf-8"), min_size=1)))
def test_any_texts_come_back(texts: list[str]) -> None:
    stream = b"".join(b"data: %b\n\n" % text.encode() for text in texts)

    assert read(stream) == [text.encode() for text in texts]


def test_a_whole_event_after_half_a_line_is_not_taken_for_an_event() -> None:
    payloads = read(b"data: a", b"data: b\n\n")

    assert payloads == [b"adata: b"]


@pytest.mark.parametrize(
    "chunks",
    [
        [b"data: " + b"x" * 200],  # a line without an end
        [b"x" * 60, b"x" * 60],  # the same in pieces
        [b"data: " + b"x" * 200 + b"\n\n"],  # a whole event
        [b"data: " + b"x" * 40 + b"\n"] * 3,  # lines of one event
    ],
)
def test_what_outgrows_the_bound_is_malformed(chunks: list[bytes]) -> None:
    decoder = SseDecoder(event_max_bytes=100)

    for chunk in chunks[:-1]:
        decoder.feed(chunk)
    with pytest.raises(EngineError) as failure:
        decoder.feed(chunks[-1])

    assert failure.value.fault is EngineFault.MALFORMED


def test_the_bound_is_for_an_event_and_not_for_the_stream() -> None:
    decoder = SseDecoder(event_max_bytes=100)

    payloads = decoder.feed((b"data: " + b"x" * 80 + b"\n\n") * 50)

    assert payloads == [b"x" * 80] * 50
