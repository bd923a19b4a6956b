"""How times and numbers are said."""

from __future__ import annotations

import pytest

from orchestrator_core.units import counted, duration


@pytest.mark.parametrize(
    ("duration_ms", "text"),
    [(0, "0 ms"), (999, "999 ms"), (3400, "3.4 s"), (59_900, "59.9 s"), (125_000, "2 min 5 s")],
)
def test_times_as_people_say_them(duration_ms: int, text: str) -> None:
    assert duration(duration_ms) == text


def test_one_is_singular_and_none_is_not() -> None:
    assert [counted(number, "token") for number in (0, 1, 2)] == ["0 tokens", "1 token", "2 tokens"]
