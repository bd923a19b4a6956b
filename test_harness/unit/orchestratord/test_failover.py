"""The text of a second run against what was shown of the first."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestratord.services.failover import PrefixCheck


def cut(text: bytes, places: list[int]) -> list[bytes]:
    edges = sorted({0, len(text), *(p % (len(text) + 1) for p in places)})
    return [text[a:b] for a, b in itertools.pairwise(edges)]


@pytest.mark.req("ORCH-3201", partial="the stream")
@given(
    sent=st.binary(max_size=30),
    rest=st.binary(max_size=30),
    places=st.lists(st.integers(0, 60)),
    reads=st.integers(1, 4),
)
def test_equal_text_is_suppressed_and_the_rest_goes_on(
    sent: bytes, rest: bytes, places: list[int], reads: int
) -> None:
    check = PrefixCheck(sent)
    pieces = cut(sent + rest, places)

    fresh: list[bytes] = []
    for start in range(0, len(pieces), reads):
        accepted = check.accept(pieces[start : start + reads])
        assert accepted is not None
        fresh += accepted

    assert b"".join(fresh) == rest
    assert all(fresh)
    assert check.complete


@pytest.mark.req("ORCH-3201", partial="the stream")
@given(
    sent=st.binary(min_size=1, max_size=30),
    where=st.integers(0, 29),
    places=st.lists(st.integers(0, 60)),
)
def test_one_other_byte_is_a_mismatch(sent: bytes, where: int, places: list[int]) -> None:
    where %= len(sent)
    other = bytearray(sent)
    other[where] ^= 1
    check = PrefixCheck(sent)

    outcomes = []
    for piece in cut(bytes(other), places):
        outcomes.append(check.accept([piece]))
        if outcomes[-1] is None:
            break

    assert outcomes[-1] is None


def test_a_shorter_second_run_is_not_complete() -> None:
    check = PrefixCheck(b"abc")

    assert check.accept([b"ab"]) == []
    assert not check.complete
