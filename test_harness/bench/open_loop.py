"""Requests at a fixed rate over a fixed set of connections, whatever the answers do.

Client end of the bench's admission measure. Request j is due at j / rate and belongs to connection
j mod n; while that one still waits for an answer, it queues there. Invariant: `total_ms` runs from
the time a request was due, so that a slow server cannot slow the clock down (no coordinated
omission); `service_ms` runs from its first byte and leaves out the client's own lateness.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass

from bench.dialects import Dialect
from bench.load import ERRORS_MAX, Connection, Outcome, Tally, now_s

TICK_S = 0.001  # the resolution of the loop's timers


@dataclass(frozen=True, slots=True)
class OpenLoop:
    """Settings of an open-loop run."""

    connections: int
    rate_per_s: float
    seconds: float
    timeout_s: float = 60.0


class OpenLoopRun:
    """One open-loop run; `go` once."""

    def __init__(self, host: str, port: int, dialect: Dialect, settings: OpenLoop) -> None:
        self.dialect, self._settings = dialect, settings
        self.tally = Tally()
        self._connections = [
            Connection(self, host, port, quickack=False) for _ in range(settings.connections)
        ]
        self._waiting: dict[Connection, deque[tuple[int, float]]] = {
            connection: deque() for connection in self._connections
        }
        self._total = round(settings.rate_per_s * settings.seconds)
        self._issued = self._finished_count = 0
        self._start_s = 0.0

    async def go(self) -> Outcome:
        """Send all requests and wait for their answers, or for the time-out."""
        loop = asyncio.get_running_loop()
        self._finished = loop.create_future()
        await asyncio.gather(*(connection.open() for connection in self._connections))
        self._start_s = now_s()
        self._tick()
        try:
            await asyncio.wait_for(
                self._finished, self._settings.seconds + self._settings.timeout_s
            )
        except TimeoutError:
            self.tally.errors.append(f"time-out with {self._finished_count} of {self._total}")
        for connection in self._connections:
            connection.close()
        return self.tally.outcome(now_s() - self._start_s)

    def done(self, connection: Connection) -> None:
        """Send what queued on this connection, oldest first."""
        self._finished_count += 1
        if self._finished_count == self._total:
            self._finished.set_result(None)
        elif self._waiting[connection]:
            number, due_s = self._waiting[connection].popleft()
            asyncio.get_running_loop().call_soon(connection.begin, number, due_s)
            connection.busy = True

    def _tick(self) -> None:
        rate = self._settings.rate_per_s
        now = now_s()
        while self._issued < self._total:
            due_s = self._start_s + self._issued / rate
            if due_s > now:
                break
            connection = self._connections[self._issued % len(self._connections)]
            if connection.busy:
                self._waiting[connection].append((self._issued, due_s))
            else:
                connection.begin(self._issued, due_s)
            self._issued += 1
        if self._issued < self._total and len(self.tally.errors) < ERRORS_MAX:
            asyncio.get_running_loop().call_later(TICK_S, self._tick)
