"""Collapsed stacks become shares of time."""

from __future__ import annotations

from bench.profiling import inclusive_times, self_times

STACKS = (
    "main (a.py);run (loop.py);write (socket.c) 6\nmain (a.py);run (loop.py) 3\nmain (a.py) 1\n"
)


def test_self_time_belongs_to_the_innermost_frame() -> None:
    assert self_times(STACKS) == [
        ("write (socket.c)", 0.6),
        ("run (loop.py)", 0.3),
        ("main (a.py)", 0.1),
    ]


def test_a_recursive_frame_counts_once_in_its_inclusive_time() -> None:
    found = dict(inclusive_times("a;b;a 2\na;c 2\n"))

    assert found == {"a": 1.0, "b": 0.5, "c": 0.5}


def test_an_empty_profile_has_no_frames() -> None:
    assert self_times("") == []
