"""The evidence file: stable bytes, merging of runs, and the differences that CI names."""

from __future__ import annotations

from pathlib import Path

import pytest

from orch_tools.evidence import EvidenceError, differences, merge, read_evidence, write_evidence


def test_the_file_is_the_same_whatever_order_the_outcomes_came_in(tmp_path: Path) -> None:
    write_evidence(tmp_path / "one", {"B": {"t2": "passed", "t1": "failed"}, "A": {"t": "passed"}})
    write_evidence(tmp_path / "two", {"A": {"t": "passed"}, "B": {"t1": "failed", "t2": "passed"}})

    expected = (
        '{\n "A": {\n  "t": "passed"\n },\n "B": {\n  "t1": "failed",\n  "t2": "passed"\n }\n}\n'
    )

    assert (tmp_path / "one").read_text() == expected
    assert (tmp_path / "two").read_text() == expected


def test_in_a_merge_a_failure_of_either_run_stays_a_failure() -> None:
    older = {"A": {"t1": "failed", "t2": "passed"}}
    newer = {"A": {"t1": "passed", "t2": "failed"}, "B": {"t3": "passed"}}

    merged = merge(older, newer)

    assert merged == {"A": {"t1": "failed", "t2": "failed"}, "B": {"t3": "passed"}}
    assert older == {"A": {"t1": "failed", "t2": "passed"}}


def test_differences_name_what_changed_appeared_and_vanished() -> None:
    committed = {"A": {"same": "passed", "worse": "passed", "gone": "passed"}}
    fresh = {"A": {"same": "passed", "worse": "failed"}, "B": {"new": "passed"}}

    lines = differences(committed, fresh)

    assert lines == [
        "A: gone: committed passed, this run not run",
        "A: worse: committed passed, this run failed",
        "B: new: committed not recorded, this run passed",
    ]


@pytest.mark.parametrize("text", ["", "[]", '{"A": {"t": "skipped"}}', '{"A": {"t": ["x"]}}'])
def test_what_is_not_evidence_is_refused_by_file_name(tmp_path: Path, text: str) -> None:
    path = tmp_path / "evidence.json"
    path.write_text(text)

    with pytest.raises(EvidenceError, match=r"evidence\.json"):
        read_evidence(path)
