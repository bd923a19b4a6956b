"""Bounded waits for what another process or task will do; tests never wait for time to pass."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable

# Often enough to be quick, seldom enough to leave a busy two-core machine alone.
POLL_S = 0.01


def wait_until(
    condition: Callable[[], bool], timeout_s: float, what: str = "the condition"
) -> None:
    """Return as soon as `condition()` is true; AssertionError after `timeout_s` seconds."""
    end = time.monotonic() + timeout_s
    pause = threading.Event()
    while not condition():
        assert time.monotonic() < end, f"{what} did not come true within {timeout_s} s"
        pause.wait(POLL_S)


async def wait_until_async(
    condition: Callable[[], bool], timeout_s: float, what: str = "the condition"
) -> None:
    """As `wait_until`, with the event loop running in between."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, f"{what} did not come true within {timeout_s} s"
        await asyncio.sleep(POLL_S)
