"""Clients under chaos: each follows one task to its terminal event, whatever happens meanwhile.

As a real client does: without an answer it asks again with the same id, a cut stream it resumes
with Last-Event-ID, an answer it takes as it is. Invariant: everything that it gets stands in the
task's history; a client that waited for `PATIENCE_S` gives up and says so there.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

from chaos.history import TaskHistory
from harness_kit.http_probe import Answer, Event, HttpProbe, ProbeClosed, ProbeError

# Longer than every fault and what follows it together.
PATIENCE_S = 150.0
ANSWER_S = 20.0
# How long a client waits before it asks a service that is not there once more.
RETRY_S = 0.1

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Journey:
    """What one client will do; places are counted in numbered events."""

    document: dict[str, Any]
    tenant: str
    key: str
    expected: str | None
    posts_twice: bool = False
    vanishes_after: int | None = None
    cancels_after: int | None = None
    reads_again: bool = False


class Client:
    """One client; `port` says where the service listens now."""

    def __init__(self, journey: Journey, port: Callable[[], int]) -> None:
        self.history = TaskHistory(journey.document, journey.tenant, journey.expected)
        self._journey = journey
        self._port = port
        self._give_up_at_s = time.monotonic() + PATIENCE_S
        self._pause = threading.Event()
        self._vanished = journey.vanishes_after is None
        self._cancelled = journey.cancels_after is None

    def go(self) -> TaskHistory:
        """The whole journey."""
        if self._post().status != 202:
            return self.history
        if self._journey.posts_twice:
            self._post()
        if self._journey.cancels_after == 0:  # it may wait still
            self._cancelled = True
            self._cancel()
        self._read(self.history.joined, steered=True)
        if self._journey.reads_again:
            self.history.again = []
            self._read(self.history.again)
        if self._journey.posts_twice:
            self._post()
        return self.history

    def _post(self) -> Answer:
        def post(probe: HttpProbe) -> Answer:
            return probe.post("/v1/tasks", self._journey.document)

        answer = self._insist(post)
        if answer is None:
            return Answer(0, {}, b"")
        self.history.answers.append(answer)
        return answer

    def _read(self, events: list[Event], *, steered: bool = False) -> None:
        """Read the stream to its terminal event over as many connections as it takes."""

        def read(probe: HttpProbe) -> bool:
            after = events[-1].id if events else None
            stream = probe.stream(self.history.id, after)
            if stream.status != 200:
                self.history.refused_reads.append(stream.answer())
                probe.close()
                return False
            for event in stream:
                if event.id is not None:
                    events.append(event)
                if steered and self._steer(probe, len(events)):
                    return False
            return bool(events) and events[-1].terminal

        while not (events and events[-1].terminal) and self._patient():
            if not self._insist(read):
                self._pause.wait(RETRY_S)

    def _steer(self, probe: HttpProbe, count: int) -> bool:
        """Cancel or vanish where the journey says so; whether the connection is gone."""
        if not self._cancelled and count >= (self._journey.cancels_after or 0):
            self._cancelled = True
            self._cancel()
        if not self._vanished and count >= (self._journey.vanishes_after or 0):
            self._vanished = True
            probe.vanish()
            return True
        return False

    def _cancel(self) -> None:
        def cancel(probe: HttpProbe) -> Answer:
            return probe.post(f"/v1/tasks/{self.history.id}/cancel")

        while self._patient():
            answer = self._insist(cancel)
            if answer is not None and answer.status == 204:
                self.history.joined_at_cancel = len(self.history.joined)
                seen: list[Event] = []
                self._read(seen)
                self.history.at_cancel = seen
                return
            if answer is not None:
                self.history.refused_reads.append(answer)
            self._pause.wait(RETRY_S)

    def _insist(self, ask: Callable[[HttpProbe], T]) -> T | None:
        """Ask until the service is there to answer; None where patience ended."""
        while self._patient():
            try:
                with HttpProbe(self._port(), self._journey.key, ANSWER_S) as probe:
                    return ask(probe)
            except (ProbeClosed, OSError):
                self._pause.wait(RETRY_S)
            except (ProbeError, ValueError) as error:
                self.history.broken.append(f"{type(error).__name__}: {error}")
                self._pause.wait(RETRY_S)
        self.history.broken.append(f"its client gave up after {PATIENCE_S:.0f} s")
        return None

    def _patient(self) -> bool:
        return time.monotonic() < self._give_up_at_s
