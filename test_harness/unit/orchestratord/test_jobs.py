"""How long finished jobs are kept, within which bound."""

from __future__ import annotations

import pytest

from harness_kit.job_builders import job
from orchestratord.services.jobs import JOB_OVERHEAD_BYTES, JobTable, Phase


def ended(table: JobTable, key: str, rows: list[int], at_ms: int, text: bytes = b"") -> None:
    one = job(key)
    table.add(one)
    for row in rows:
        table.use_row(one, row)
    if text:
        one.log.append([text])
    one.log.end("end", b"{}")
    table.retain(one, at_ms)


def test_a_finished_task_is_kept_for_its_retention_and_then_forgotten() -> None:
    table = JobTable(retain_ms=100, retain_bytes=10**9)
    ended(table, "a/1", [1, 2], at_ms=1000)

    assert table.expire(1099) == []
    assert table.get("a/1") is not None
    assert sorted(table.expire(1100)) == [1, 2]
    assert table.get("a/1") is None


def test_retained_bytes_are_bounded_oldest_first() -> None:
    table = JobTable(retain_ms=10**9, retain_bytes=2 * (JOB_OVERHEAD_BYTES + 5 + 2))
    for n in range(3):
        ended(table, f"a/{n}", [n], at_ms=1000 + n, text=b"12345")

    assert table.expire(2000) == [0]
    assert table.get("a/0") is None
    assert table.ended_bytes == 2 * (JOB_OVERHEAD_BYTES + 5 + 2)  # the text and the end


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_an_end_is_kept_as_long_as_its_admission_stays_in_a_shared_row() -> None:
    table = JobTable(retain_ms=100, retain_bytes=10**9)
    alive = job("a/alive")
    table.add(alive)
    table.use_row(alive, 1)
    ended(table, "a/done", [1, 5], at_ms=1000)

    freed = table.expire(2000)
    assert freed == []

    alive.log.end("end", b"{}")
    table.use_row(alive, 9)
    table.retain(alive, 2000)
    assert sorted(table.expire(3000)) == [1, 5, 9]


def test_rows_of_a_living_session_outlast_the_retention_of_its_tasks() -> None:
    table = JobTable(retain_ms=100, retain_bytes=10**9)
    one = job("a/1")
    one.session_until_ms = 5000
    table.add(one)
    table.use_row(one, 1)
    one.log.end("end", b"{}")
    table.retain(one, 1000)

    assert table.expire(2000) == []
    assert table.get("a/1") is None
    assert table.expire(5000) == [1]


def test_only_tasks_without_a_terminal_event_are_live() -> None:
    table = JobTable(retain_ms=100, retain_bytes=10**9)
    table.add(job("a/1"))
    ended(table, "a/2", [1], at_ms=1)

    live = list(table.live())

    assert [one.task.key for one in live] == ["a/1"]
    assert live[0].phase is Phase.WAITING


def test_a_clock_that_is_set_back_lengthens_no_retention() -> None:
    table = JobTable(retain_ms=100, retain_bytes=10**9)
    for n in range(3):
        ended(table, f"a/{n}", [n], at_ms=3_600_000 + n)
    assert table.expire(3_600_010) == []

    assert table.expire(1000) == []
    ended(table, "a/3", [3], at_ms=1050)

    assert table.expire(1099) == []
    assert sorted(table.expire(1100)) == [0, 1, 2]
    assert table.expire(1150) == [3]


def test_a_task_that_ended_before_the_clock_was_set_back_and_a_restart_is_kept_no_longer() -> None:
    table = JobTable(retain_ms=100, retain_bytes=10**9)
    one = job("a/1")
    one.ended_ms = 3_600_000
    table.add(one)
    table.use_row(one, 1)
    one.log.end("end", b"{}")

    table.retain(one, 1000)

    assert table.expire(1099) == []
    assert table.expire(1100) == [1]
