"""Collapsed stacks become shares of time."""

from __future__ import annotations

from bench.profiling import python_times, self_times

STACKS = (
    "main (a.py);run (loop.py);write (socket.c) 6\nmain (a.py);run (loop.py) 3\nmain (a.py) 1\n"
)


def test_self_time_belongs_to_the_innermost_frame() -> None:
    assert self_times(STACKS) == [
        ("write (socket.c)", 0.6),
        ("run (loop.py)", 0.3),
        ("main (a.py)", 0.1),
    ]


def test_native_time_belongs_to_the_python_function_that_asked_for_it() -> None:
    stacks = (
        "run (app.py:1);send (app.py:9);write (libc.so.6) 6\nrun (app.py:1) 1\npoll (libc.so.6) 3\n"
    )

    assert python_times(stacks) == [
        ("send (app.py:9)", 0.6),
        ("(native)", 0.3),
        ("run (app.py:1)", 0.1),
    ]


def test_an_empty_profile_has_no_frames() -> None:
    assert self_times("") == []
