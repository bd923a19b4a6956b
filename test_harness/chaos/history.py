"""What clients saw of their tasks during a chaos run, as plain data: the invariants judge it.

Written by the client that owns the task (`journeys`), read after all clients are done.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from harness_kit.http_probe import Answer, Event


@dataclass(slots=True)
class TaskHistory:
    """One task, from its first POST to its terminal event."""

    document: dict[str, Any]
    tenant: str
    # What a strict stream has to say; None where nobody has computed it.
    expected: str | None = None
    answers: list[Answer] = field(default_factory=list)
    """Of every POST of the document, in order; a POST that got no answer has none."""
    joined: list[Event] = field(default_factory=list)
    """The numbered events, in the order in which the client got them over all its connections."""
    again: list[Event] | None = None
    """The numbered events that a second reader got from the start."""
    at_cancel: list[Event] | None = None
    """The numbered events of a read from the start, begun after a cancel was answered 204."""
    joined_at_cancel: int = 0
    """How many events the client had when its cancel was answered."""
    outlived_a_crash: bool = False
    """Whether the orchestrator may have been killed meanwhile: an end that is no completion then
    cuts the log back to what was decoded again, for those who read it anew."""
    refused_reads: list[Answer] = field(default_factory=list)
    """Answers to the stream's GET, or to a cancel, that were not 200 or 204."""
    broken: list[str] = field(default_factory=list)
    """What was no HTTP, no SSE, or no event of the contract; or that the client gave up."""

    @property
    def id(self) -> str:
        return str(self.document["task_id"])

    @property
    def strict(self) -> bool:
        return bool(self.document.get("determinism", "strict") == "strict")

    @property
    def admitted(self) -> bool:
        return any(answer.status == 202 for answer in self.answers)

    @property
    def terminal(self) -> Event | None:
        """The last event where it is a terminal one."""
        last = self.joined[-1] if self.joined else None
        return last if last is not None and last.terminal else None

    @property
    def outcome(self) -> str:
        """completed, canceled or failed by the terminal event; refused; or lost."""
        terminal = self.terminal
        if not self.admitted:
            return "refused"
        if terminal is None:
            return "lost"
        if terminal.name == "error":
            return "failed"
        return "canceled" if terminal.data.get("canceled") else "completed"


@dataclass(frozen=True, slots=True)
class Footprint:
    """What the service's process holds while it has nothing to do."""

    rss_bytes: int
    descriptors: int
