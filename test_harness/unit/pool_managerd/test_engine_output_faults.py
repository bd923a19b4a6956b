"""Faults in what a living engine prints: told once, when their line ends, however it is read."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pool_managerd.engine_output import LINE_BYTES, EngineOutput
from pool_managerd.failure_classes import Failure
from pool_managerd.observer import CauseCode

pytestmark = pytest.mark.req("ORCH-3038", partial="what follows from it")

FAULT = b"CUDA error: unspecified launch failure\n"
BEFORE = b"slot 0 released\n" * 5


def watched() -> tuple[EngineOutput, list[Failure]]:
    """An output without a file, and what it told."""
    told: list[Failure] = []
    output = EngineOutput(Path("/dev/null/none"))
    output.on_fault = told.append
    output.begin()
    return output, told


def test_a_fault_is_told_when_its_line_is_complete() -> None:
    output, told = watched()

    output.write(BEFORE + FAULT[:-1])
    unfinished = list(told)
    output.write(b"\n")

    assert unfinished == []
    assert told == [Failure(CauseCode.CUDA_ERROR, FAULT.decode().strip())]


def test_a_life_has_one_fault_and_the_next_one_another() -> None:
    output, told = watched()

    output.write(FAULT * 3)
    output.write(FAULT)
    first = len(told)
    output.begin()
    output.write(FAULT)

    assert (first, len(told)) == (1, 2)


def test_a_line_begun_in_one_life_is_not_ended_in_the_next() -> None:
    output, told = watched()

    output.write(b"CUDA error: ")
    output.begin()
    output.write(b"unspecified\n")

    assert told == []


def test_an_endless_line_is_looked_at_in_pieces_and_kept_bounded() -> None:
    output, told = watched()

    for _ in range(50):
        output.write(b"x" * 1000)
    output.write(b"\n" + FAULT)

    assert len(output._line) <= LINE_BYTES
    assert len(told) == 1


@given(st.lists(st.integers(1, len(BEFORE + FAULT + BEFORE)), max_size=8))
def test_however_the_output_is_cut_the_fault_is_told_once(cuts: list[int]) -> None:
    output, told = watched()
    text = BEFORE + FAULT + BEFORE
    places = [0, *sorted(cuts), len(text)]

    for start, end in pairwise(places):
        output.write(text[start:end])

    assert [failure.code for failure in told] == [CauseCode.CUDA_ERROR]
