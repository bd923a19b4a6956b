"""Traces of arrivals as files: written, read back, refused."""

from __future__ import annotations

from pathlib import Path
from random import Random

import pytest

from orch_simulator.trace import TraceError, read_trace, write_trace
from orch_simulator.workload import Arrival, PoissonWorkload
from orchestrator_core.task import Priority

LINE = '{"at_ms": 5, "tenant": "a", "priority": "batch", "prompt_tokens": 1, "max_tokens": 9, '


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "trace.jsonl"


def test_what_was_written_is_read_back_unchanged(file: Path) -> None:
    workload = PoissonWorkload(200, 10.0, ("a", "b"), model_refs=("m", "n"))
    arrivals = list(workload.arrivals(Random(1)))

    passed_on = list(write_trace(file, arrivals))

    assert passed_on == arrivals
    assert list(read_trace(file)) == arrivals


def test_optional_fields_may_be_left_out(file: Path) -> None:
    file.write_text(
        LINE + '"deadline_ms": 70}\n\n' + LINE + '"deadline_ms": 70, "expected_tokens": 4}\n'
    )

    first, second = read_trace(file)

    assert first == Arrival(5, "a", Priority.BATCH, 1, 9, tokens_out=9, deadline_ms=70)
    assert (second.expected_tokens, second.tokens_out) == (4, 4)


def test_more_tokens_than_max_tokens_are_cut_as_an_engine_would(file: Path) -> None:
    file.write_text(LINE + '"deadline_ms": 70, "tokens_out": 50}\n')

    assert [arrival.tokens_out for arrival in read_trace(file)] == [9]


@pytest.mark.parametrize(
    ("tail", "said"),
    [
        ('"deadline_ms": 0}', "deadline_ms"),
        ('"deadline_ms": 70, "deadlin": 1}', "deadlin"),
        ('"deadline_ms": 70', "truncated"),
        ("}", "trailing"),
    ],
)
def test_a_line_that_is_no_arrival_is_named_with_its_number(
    file: Path, tail: str, said: str
) -> None:
    file.write_text(LINE + '"deadline_ms": 70}\n' + LINE + tail + "\n")

    with pytest.raises(TraceError, match=rf"line 2: .*{said}"):
        list(read_trace(file))


def test_a_trace_that_goes_back_in_time_is_refused(file: Path) -> None:
    early = LINE.replace('"at_ms": 5', '"at_ms": 4')
    file.write_text(LINE + '"deadline_ms": 70}\n' + early + '"deadline_ms": 70}\n')

    with pytest.raises(TraceError, match=r"line 2: at_ms 4 is before the line above it \(5\)"):
        list(read_trace(file))
