"""The generated clients tell what a live service answers them, through `response_tap`.

Used by `validated_responses` in a test run: the transports below every generated method pass each
response on before the client reads it, so that a client that forgives hides nothing. Invariant:
only services under test are told of; the servers that unit tests invent may answer what they like.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any
from urllib.parse import urlsplit

import pytest

from harness_kit.http_probe import parse_block
from harness_kit.response_tap import EVENT_STREAM, live_ports, tell, tell_event
from orchqueue_v1.async_transport import AsyncTransport
from orchqueue_v1.transport import Endpoint, Observer, Request, Response, SyncTransport

# The call that is under way in this thread or task: an observer is told of the response only.
_asking: ContextVar[Request] = ContextVar("asking")


def tap(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let both transports tell until the patch is undone."""
    for transport in (SyncTransport, AsyncTransport):
        monkeypatch.setattr(transport, "__init__", _observed(transport.__init__))
        for name in ("send", "open_stream"):
            monkeypatch.setattr(transport, name, _asked(getattr(transport, name)))
    monkeypatch.setattr(SyncTransport, "_chunks", _heard(SyncTransport._chunks))
    monkeypatch.setattr(AsyncTransport, "_chunks", _async_heard(AsyncTransport._chunks))


def _observed(original: Callable[..., None]) -> Callable[..., None]:
    def __init__(self: Any, endpoint: Endpoint, timeout_s: float, observe: Observer | None) -> None:
        self.told = urlsplit(endpoint.url).port in live_ports

        def both(response: Response) -> None:
            if self.told:
                asked = _asking.get()
                streams = response.headers.get("content-type", "").startswith(EVENT_STREAM)
                body = None if streams else response.body
                sent = _wire(asked, endpoint.headers(asked))
                tell(asked.method, asked.path, response.status, response.headers, body, sent)
            if observe is not None:
                observe(response)

        original(self, endpoint, timeout_s, both)

    return __init__


def _wire(asked: Request, headers: Mapping[str, str]) -> bytes:
    """The request as it went out, but for what the HTTP library adds."""
    lines = [f"{asked.method} {asked.path} HTTP/1.1", *(f"{n}: {v}" for n, v in headers.items())]
    return "\r\n".join(lines).encode() + b"\r\n\r\n" + (asked.body or b"")


def _asked(original: Callable[..., Any]) -> Callable[..., Any]:
    """Both kinds of `send` and `open_stream`: the request is the one of this thread or task."""

    def asked(self: Any, request: Request, *arguments: Any) -> Any:
        _asking.set(request)
        return original(self, request, *arguments)

    return asked


def _heard(original: Callable[..., Iterator[bytes]]) -> Callable[..., Iterator[bytes]]:
    def chunks(self: Any, raw: Any) -> Iterator[bytes]:
        left = b""
        for chunk in original(self, raw):
            left = _told(left + chunk) if self.told else b""
            yield chunk

    return chunks


def _async_heard(
    original: Callable[..., AsyncIterator[bytes]],
) -> Callable[..., AsyncIterator[bytes]]:
    async def chunks(self: Any, raw: Any) -> AsyncIterator[bytes]:
        left = b""
        async for chunk in original(self, raw):
            left = _told(left + chunk) if self.told else b""
            yield chunk

    return chunks


def _told(received: bytes) -> bytes:
    """Tell of the whole events; returns what is left."""
    *blocks, left = received.split(b"\n\n")
    for block in blocks:
        event = parse_block(block)
        if event is not None:
            tell_event(event.name, event.id, event.data)
    return left
