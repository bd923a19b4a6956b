"""Where the harness's HTTP clients say what a live service answered, so that it can be judged.

Clients (`http_probe`, the generated ones in `tapped_clients`) tell; a listener hears
(`validated_responses` in a test run). Without a listener telling does nothing, so the same clients
serve outside of pytest. Invariant: whoever tells is never held up nor failed by who hears.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

EVENT_STREAM = "text/event-stream"


class Listener(Protocol):
    """Hears every response once, and every event of a stream."""

    def hear(
        self,
        method: str,
        path: str,
        status: int,
        headers: Mapping[str, str],
        body: bytes | None,
        sent: bytes = b"",
    ) -> None:
        """A response; `body` is None where its events are told one by one, names lower case.
        `sent` is the whole request, as it went over the wire."""

    def hear_event(self, name: str, number: int | None, data: dict[str, Any]) -> None:
        """One server-sent event of a task's stream."""


listeners: list[Listener] = []
# Ports of services under test; clients that also talk to invented servers tell of these only.
live_ports: set[int] = set()


def tell(
    method: str,
    path: str,
    status: int,
    headers: Mapping[str, str],
    body: bytes | None,
    sent: bytes = b"",
) -> None:
    """Pass a response on to who listens."""
    for listener in listeners:
        listener.hear(method, path, status, headers, body, sent)


def tell_event(name: str, number: int | None, data: dict[str, Any]) -> None:
    """Pass an event on to who listens."""
    for listener in listeners:
        listener.hear_event(name, number, data)
