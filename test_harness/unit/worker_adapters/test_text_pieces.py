"""Pieces are whole characters, escaped for JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker_adapters.adapter_api.text_pieces import CharacterJoiner, escape

pytestmark = [pytest.mark.req("ORCH-3058", partial="all but how pieces of characters are joined")]


@given(st.text(st.characters(codec="utf-8")))
def test_an_escaped_text_reads_back_and_stays_on_one_line(text: str) -> None:
    piece = escape(text)

    assert json.loads(b'"' + piece + b'"') == text
    assert b"\n" not in piece
    assert b"\r" not in piece


def test_characters_are_not_turned_into_escapes() -> None:
    assert escape('é"\n雨') == 'é\\"\\n雨'.encode()


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.data())
def test_utf8_cut_anywhere_is_joined(text: str, data: st.DataObject) -> None:
    raw = text.encode()
    place = data.draw(st.integers(0, len(raw)))
    joiner = CharacterJoiner()

    parts = [joiner.join_bytes(raw[:place]), joiner.join_bytes(raw[place:]), joiner.flush()]

    assert "".join(parts) == text


@given(st.text(st.characters(codec="utf-8"), min_size=1), st.data())
def test_surrogate_pairs_cut_anywhere_are_joined(text: str, data: st.DataObject) -> None:
    units = text.encode("utf-16-le")
    place = 2 * data.draw(st.integers(0, len(units) // 2))
    halves = [units[:place], units[place:]]
    joiner = CharacterJoiner()

    parts = [joiner.join_surrogates(half.decode("utf-16-le", "surrogatepass")) for half in halves]

    assert "".join(parts) + joiner.flush() == text


def test_a_half_that_stays_alone_becomes_a_replacement_character() -> None:
    joiner = CharacterJoiner()

    first = joiner.join_surrogates("a\ud83c")
    second = joiner.join_bytes("b🌧".encode()[:-1])
    rest = joiner.flush()

    assert (first, second, rest) == ("a", "\ufffdb", "\ufffd")
    assert joiner.flush() == ""
