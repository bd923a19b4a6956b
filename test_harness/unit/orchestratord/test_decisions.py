"""What is kept of decisions, and for how long."""

from __future__ import annotations

import msgspec
import pytest

from harness_kit.job_builders import job
from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.task import Priority
from orchestratord.services import decision_log, records
from orchestratord.services.decision_log import MAX_REFUSED, RefusedTasks
from orchestratord.services.decisions import (
    DECISION_BYTES,
    MAX_DECISIONS,
    Decision,
    Moved,
    Preempted,
    Refused,
)

FULL = Refusal(
    Code.ADMISSION_REJECT,
    Reason.QUEUE_FULL,
    "the queue is full",
    retriable=True,
    retry_after_ms=750,
    policy_label="reject",
    pool_id="p",
    figures=(("waiting", 3), ("queue_capacity", 3)),
)


def preempted(at_ms: int) -> Preempted:
    return Preempted(at_ms, "urgent", "r0", 10, 2, 1)


def refused(at_ms: int = 5) -> Refused:
    return decision_log.refused(at_ms, FULL)


def test_values_are_what_played_a_part_and_the_figures_stand_among_them() -> None:
    assert refused().values() == {
        "code": "ADMISSION_REJECT",
        "cause": "the queue is full",
        "retry_after_ms": 750,
        "pool_id": "p",
        "policy": "reject",
        "waiting": 3,
        "queue_capacity": 3,
    }
    assert Moved(5, "pool", "p", pool_id="q").values() == {"from_pool_id": "p", "pool_id": "q"}


def test_a_zero_and_a_no_are_values() -> None:
    found = Moved(5, "worker-lost", "p", from_replica_id="r0", tokens_out=0).values()

    assert found == {"from_pool_id": "p", "from_replica_id": "r0", "tokens_out": 0}


def test_of_too_many_decisions_the_first_and_the_newest_stay() -> None:
    one = job()

    for at_ms in range(MAX_DECISIONS + 10):
        one.note(preempted(at_ms))

    kept = [decision.at_ms for decision in one.decisions]
    assert kept == [0, *range(11, MAX_DECISIONS + 10)]


def test_a_decision_counts_against_the_memory_of_ended_tasks() -> None:
    one = job()
    before = one.retained_bytes

    one.note(preempted(1))
    one.note(preempted(2))

    assert one.retained_bytes == before + 2 * DECISION_BYTES


class TestRefusedTasks:
    def test_only_the_last_ones_are_known(self) -> None:
        tasks = RefusedTasks()

        for number in range(MAX_REFUSED + 2):
            tasks.add(f"acme/{number}", Priority.BATCH, refused())

        assert len(tasks) == MAX_REFUSED
        assert tasks.get("acme/1") is None
        assert tasks.get("acme/2") is not None

    def test_who_tries_again_is_kept_longer(self) -> None:
        tasks = RefusedTasks()
        for number in range(MAX_REFUSED):
            tasks.add(f"acme/{number}", Priority.BATCH, refused())

        tasks.add("acme/0", Priority.BATCH, refused())
        tasks.add("acme/new", Priority.BATCH, refused())

        again = tasks.get("acme/0")
        assert again is not None
        assert len(again.decisions) == 2
        assert tasks.get("acme/1") is None

    def test_one_that_never_gives_up_is_bounded_as_well(self) -> None:
        tasks = RefusedTasks()

        for at_ms in range(MAX_DECISIONS + 1):
            tasks.add("acme/a", Priority.BATCH, refused(at_ms))

        known = tasks.get("acme/a")
        assert known is not None
        assert len(known.decisions) == MAX_DECISIONS
        assert known.decisions[-1].at_ms == MAX_DECISIONS

    def test_once_admitted_its_refusals_are_the_tasks_own(self) -> None:
        tasks = RefusedTasks()
        tasks.add("acme/a", Priority.BATCH, refused(7))

        story: list[Decision] = tasks.admitted("acme/a")

        assert [decision.at_ms for decision in story] == [7]
        assert tasks.get("acme/a") is None
        assert tasks.admitted("acme/a") == []


@pytest.mark.parametrize(
    ("outcome", "kind"),
    [
        ("completed", "ended"),
        ("failed", "ended"),
        ("canceled", "canceled"),
        ("dropped", "evicted"),
        ("expired", "evicted"),
    ],
)
def test_an_end_is_of_its_kind(outcome: str, kind: str) -> None:
    assert decision_log.ended(job(), outcome, "whatever", None).kind == kind


@pytest.mark.parametrize(
    ("event", "data", "expected"),
    [
        ("end", b'{"tokens_out":4,"decode_ms":9}', ("ended", "completed", "completed")),
        ("end", b'{"tokens_out":4,"canceled":true}', ("canceled", "client", "canceled")),
        ("error", b'{"code":"WORKER_RESET","message":"m"}', ("ended", "worker-reset", "failed")),
    ],
)
def test_an_end_that_an_older_version_wrote_is_told_from_its_event(
    event: str, data: bytes, expected: tuple[str, str, str]
) -> None:
    older = ["ended", "acme", "t1", event, data, b"", 4, True, 1_000]  # as version 1 wrote it
    record = records.decode(msgspec.msgpack.encode(older))
    assert isinstance(record, records.TaskEnded)

    end = decision_log.ended_before(job(), record)

    assert (end.kind, end.reason, end.outcome) == expected
    assert end.tokens_out == 4
