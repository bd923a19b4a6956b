"""The response reader takes any cut of the bytes."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.http1 import MalformedResponse, ResponseReader

CHUNKED = (
    b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
    b"a\r\ndata: one\n\r\n"
    b"1\r\n\n\r\n"
    b"0b\r\ndata: two\n\n\r\n"
    b"0\r\n\r\n"
)
PLAIN = b"HTTP/1.1 202 Accepted\r\nContent-Length: 11\r\n\r\nhello world"


@given(cuts=st.lists(st.integers(0, len(CHUNKED)), max_size=12))
def test_a_chunked_body_comes_out_whole_however_it_is_cut(cuts: list[int]) -> None:
    reader = ResponseReader()
    edges = [0, *sorted(cuts), len(CHUNKED)]

    body = b"".join(
        reader.feed(CHUNKED[start:end]) for start, end in itertools.pairwise(edges) if start < end
    )

    assert body == b"data: one\n\ndata: two\n\n"
    assert (reader.status, reader.complete) == (200, True)


@given(cut=st.integers(1, len(PLAIN) - 1))
def test_a_body_with_a_length_is_complete_at_its_last_byte_and_not_before(cut: int) -> None:
    reader = ResponseReader()

    first = reader.feed(PLAIN[:cut])
    early = reader.complete
    second = reader.feed(PLAIN[cut:])

    assert not early
    assert first + second == b"hello world"
    assert (reader.status, reader.complete) == (202, True)


def test_a_response_without_a_body_is_complete_with_its_head() -> None:
    reader = ResponseReader()

    reader.feed(b"HTTP/1.1 204 No Content\r\nConnection: close\r\n\r\n")

    assert (reader.status, reader.complete, reader.closes) == (204, True, True)


def test_the_reader_is_ready_for_the_next_response_after_reset() -> None:
    reader = ResponseReader()
    reader.feed(CHUNKED)

    reader.reset()
    body = reader.feed(PLAIN)

    assert body == b"hello world"
    assert reader.complete


@pytest.mark.parametrize(
    "broken",
    [
        b"SSH-2.0-OpenSSH\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
    ],
)
def test_broken_framing_is_named(broken: bytes) -> None:
    reader = ResponseReader()

    with pytest.raises(MalformedResponse):
        reader.feed(broken)
