"""Times and numbers as a person says them, in every sentence that the service writes.

Off every task's path: explanations, refusals of a launch and the command line. The invariant: one
figure reads alike wherever it is shown.
"""

from __future__ import annotations


def duration(duration_ms: float) -> str:
    """Milliseconds, 0 or more, as a person says them: 750 ms, 3.4 s, 2 min 5 s."""
    if duration_ms < 1000:
        return f"{duration_ms:.0f} ms"
    if duration_ms < 60_000:
        return f"{duration_ms / 1000:.3g} s"
    minutes, rest = divmod(round(duration_ms / 1000), 60)
    return f"{minutes} min {rest} s"


def counted(number: int, noun: str) -> str:
    """So many of a noun whose plural ends in s: 1 token, 2 tokens."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"
