"""CPU figures come from /proc as they are."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest

from bench.proc import NotReady, Process, cpu_s, foreign_cpu_s, peak_rss_mib, stat_fields, tree


def test_a_process_name_with_blanks_and_brackets_shifts_no_field() -> None:
    fields = stat_fields("42 (a) b (c)) S 7 42 42 0 -1 4194304 9 9 9 9 123 45 6 7 20 0")

    assert (fields[0], fields[1]) == ("S", "7")
    assert (fields[11], fields[12]) == ("123", "45")


def test_own_cpu_agrees_with_the_clock_of_the_process() -> None:
    end_s = time.process_time() + 0.03
    while time.process_time() < end_s:
        pass

    # /proc counts in ticks of 10 ms, user and system apart.
    assert cpu_s([os.getpid()]) == pytest.approx(time.process_time(), abs=0.05)


def test_what_has_ended_costs_nothing() -> None:
    assert cpu_s([2**22 + 1]) == 0.0
    assert peak_rss_mib([2**22 + 1]) == 0.0
    assert peak_rss_mib([os.getpid()]) > 5.0


def test_own_work_is_not_foreign() -> None:
    all_of_it = foreign_cpu_s([])

    assert foreign_cpu_s([os.getpid()]) <= all_of_it


def test_a_program_that_ends_early_is_reported_with_its_last_words(tmp_path: Path) -> None:
    process = Process(["/bin/sh", "-c", "echo no such flag; exit 3"], tmp_path / "log")

    with pytest.raises(NotReady, match=r"status 3: no such flag"):
        process.wait_listening(timeout_s=10.0)


def test_the_listening_line_gives_the_port_and_stop_ends_the_tree(tmp_path: Path) -> None:
    line = '{"event": "listening", "host": "127.0.0.1", "port": 4711}'
    process = Process(["/bin/sh", "-c", f"sleep 600 & echo '{line}'; wait"], tmp_path / "log")

    port = process.wait_listening(timeout_s=10.0)
    pids = process.tree()
    process.stop()

    assert port == 4711
    assert len(pids) == 2
    assert sys.platform == "linux"
    assert process.pid not in tree(os.getpid())
