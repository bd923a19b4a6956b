"""What two decodes of one task say of each other."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest

from orch_cli.determinism import Comparison, Decoded, Verdict, compare
from orchqueue_v1.types import DeterminismReport, TaskRequest

ID = "5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11"
REQUEST = TaskRequest(
    task_id=ID,
    session_id=ID,
    workload="completion",
    model_ref="m",
    engine="llamacpp",
    ctx=64,
    priority="batch",
    max_tokens=8,
    deadline_ms=1000,
)


def decoded(*tokens: str, **fields: Any) -> Decoded:
    """A stream with the record that belongs to it, but for `fields`."""
    facts: dict[str, Any] = {
        "task_id": ID,
        "key": "k",
        "seed": 1,
        "engine_version": "e1",
        "model_digest": "sha256:m",
        "sha256": hashlib.sha256("".join(tokens).encode()).hexdigest(),
        "tokens_out": len(tokens),
        "request": REQUEST,
    }
    return Decoded(list(tokens), DeterminismReport(**facts | fields))


pytestmark = pytest.mark.req("ORCH-3206", partial="that the service keeps the record")


def test_equal_bytes_under_one_key_are_a_proof() -> None:
    found = compare(decoded("a", "bc"), decoded("a", "bc"))

    assert found.verdict is Verdict.PROVED


def test_the_place_of_the_cuts_between_tokens_does_not_matter() -> None:
    assert compare(decoded("a", "bc"), decoded("ab", "c")).verdict is Verdict.PROVED


def test_other_bytes_under_one_key_diverge_at_the_first_other_token() -> None:
    found = compare(decoded("a", "b", "c"), decoded("a", "x", "c"))

    assert found == Comparison(
        Verdict.DIVERGED, "the same key gave other bytes from token 1 on", 1, "bc", "xc"
    )


def test_a_shorter_replay_diverges_where_it_ends() -> None:
    found = compare(decoded("a", "b"), decoded("a"))

    assert (found.verdict, found.differs_at, found.expected, found.got) == (
        Verdict.DIVERGED,
        1,
        "b",
        "",
    )


@pytest.mark.req("ORCH-3047", partial="two engines of different versions")
def test_another_engine_version_is_not_compared_and_named() -> None:
    other = decoded("x", key="k2", engine_version="e2")

    found = compare(decoded("a"), other)

    assert found.verdict is Verdict.NOT_COMPARABLE
    assert "engine_version e1 -> e2" in found.message


def test_a_record_of_another_text_is_not_the_streams() -> None:
    forged = decoded("a", sha256="0" * 64)

    assert compare(forged, decoded("a")).verdict is Verdict.NOT_THE_STREAM
