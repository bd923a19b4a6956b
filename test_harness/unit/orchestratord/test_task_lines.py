"""The log lines of a task's life, whole and without a name twice."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness_kit import job_builders
from harness_kit.core_builders import make_pool
from orchestrator_core.errors import Code, Reason, Refusal
from orchestratord.services import decision_log
from orchestratord.services.decisions import (
    Admitted,
    Decision,
    Dispatched,
    Moved,
    Preempted,
    Resumed,
)
from orchestratord.services.jobs import Job
from orchestratord.services.task_lines import TaskLines

ADMITTED = Admitted(5, "queued", "p", 3, 120, weight=8)
DISPATCHED = Dispatched(6, "fair-turn", "p", "r0", 1, 4, 0.5, 0.25, False, 0.0)
RESUMED = Resumed(9, "preempted", "p", "r0", 2, 1, 0.5, 0.25, False, 0.0)
PREEMPTED = Preempted(7, "urgent", "r0", 11, 4, 1)
MOVED = Moved(8, "pool", from_pool_id="q", pool_id="p")


class Lines:
    """What was written; a name that stands twice in a line fails the test."""

    def __init__(self, *, told: bool = True) -> None:
        self.read: list[dict[str, Any]] = []
        self.lines = TaskLines(self.take)
        if told:
            self.lines.pool_added(make_pool(), {"quant": "q4_1", "ctx": 8192})

    def take(self, line: bytes) -> None:
        pairs: list[list[tuple[str, Any]]] = []
        json.loads(line, object_pairs_hook=pairs.append)
        self.read.append(dict(pairs[-1]))
        assert len(self.read[-1]) == len(pairs[-1]), line


def job(**changes: Any) -> Job:
    made = job_builders.job()
    made.pool_id, made.replica_id, made.engine_version = "p", "r0", "mock 1"
    for name, value in changes.items():
        setattr(made, name, value)
    return made


@pytest.mark.parametrize("told", [True, False])
@pytest.mark.parametrize("decision", [ADMITTED, DISPATCHED, RESUMED, PREEMPTED, MOVED])
@pytest.mark.req("ORCH-3027", "ORCH-3094", partial="all other lines")
def test_a_line_has_the_fields_of_a_task_and_the_values_of_the_decision_once(
    decision: Decision, told: bool
) -> None:
    known, seen = job(), Lines(told=told)
    if not told and decision is ADMITTED:
        decision = Admitted(5, "queued", "p", 3, 120)  # nobody knows of a weight

    seen.lines.decided(known, decision)

    expected = seen.lines.fields(known) | decision.values()
    expected |= {"event": f"task.{decision.kind}", "level": "info"}
    expected |= {"at_ms": decision.at_ms, "reason": decision.reason}
    assert seen.read == [expected]
    assert seen.read[0]["weight"] == (8 if told else None)
    assert seen.read[0]["pool_id"] == "p"


@pytest.mark.parametrize(("preemptions", "made_way", "warm"), [(0, False, True), (2, False, False)])
def test_what_changes_in_a_life_is_as_it_is_now(
    preemptions: int, made_way: bool, warm: bool
) -> None:
    known, seen = job(), Lines()
    seen.lines.decided(known, ADMITTED)
    known.preemptions, known.made_way, known.kv_warm = preemptions, made_way, warm
    known.replica_id, known.engine_version = "r1", "mock 2"

    seen.lines.decided(known, MOVED)

    line = seen.read[1]
    assert (line["preempted"], line["kv_warmth"]) == (preemptions > 0, warm)
    assert (line["replica_id"], line["engine_version"]) == ("r1", "mock 2")


def test_what_is_said_of_a_pool_again_stands_in_the_next_line() -> None:
    known, seen = job(), Lines()
    seen.lines.decided(known, DISPATCHED)

    seen.lines.pool_added(make_pool(), {"quant": "q8_0"})
    seen.lines.decided(known, DISPATCHED)
    seen.lines.pool_removed("p")
    seen.lines.decided(known, DISPATCHED)

    assert [line.get("quant") for line in seen.read] == ["q4_1", "q8_0", None]
    assert [line["weight"] for line in seen.read] == [8, 8, None]


@pytest.mark.parametrize("on_time", [True, False])
@pytest.mark.parametrize("figures", [(), (("waiting", 3.0), ("ctx", 9.0))])
def test_an_end_says_whether_it_was_on_time_and_its_figures(
    on_time: bool, figures: tuple[tuple[str, float], ...]
) -> None:
    refusal = Refusal(Code.ADMISSION_REJECT, Reason.SHED, "full", figures=figures)
    known, seen = job(ended_ms=50), Lines()
    ended = decision_log.ended(known, "dropped", "shed-low-priority", refusal)

    seen.lines.ended(known, ended, on_time)

    line = seen.read[0]
    assert (line["event"], line["decision"], line["at_ms"]) == ("task.ended", "evicted", 50)
    assert (line["outcome"], line["reason"]) == ("dropped", "shed-low-priority")
    assert line["on_time_probability"] == (1.0 if on_time else 0.0)
    assert (line.get("waiting"), line["ctx"]) == ((3.0, 9.0) if figures else (None, 8192))
