"""What a handler is given, and the ASGI vocabulary of the control plane's bridge."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine, MutableMapping
from dataclasses import dataclass
from typing import Any

from orchestratord.api.http_server import Headers, HttpConnection, HttpRequest
from orchestratord.api.keys import Principal

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
AsgiApp = Callable[[Scope, Receive, Send], Awaitable[None]]


@dataclass(slots=True)
class Exchange:
    """One authorised request and the way to answer it; `finish` is called exactly once."""

    request: HttpRequest
    connection: HttpConnection
    principal: Principal
    correlation_id: str
    path_id: str | None
    base_headers: Headers
    counted: Callable[[int], None]

    def finish(self, status: int, headers: Headers, body: bytes = b"") -> None:
        """Answer, and count the answer."""
        self.connection.respond(status, [*headers, *self.base_headers], body)
        self.counted(status)


# Answers at once, or gives a coroutine that will.
Handler = Callable[[Exchange], Coroutine[Any, Any, None] | None]
