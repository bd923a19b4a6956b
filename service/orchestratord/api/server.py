"""uvicorn, with two changes: a stream writes to its connection directly, and errors that uvicorn
answers itself use our envelope.

uvicorn parses HTTP and keeps connections (an own server is a later step, see
requirements/decisions/0001). A token, however, must not cost a coroutine: the protocol hands itself
to the application in the scope, and the stream handler writes chunks to its transport from the
turn of the event loop in which the token arrived. Touches these names of uvicorn: `scope`,
`transport`, `flow`, `pause_writing`, `resume_writing`, `connection_lost`.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import Callable, Generator
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

SCOPE_KEY = "llama_orch.connection"

_BAD_REQUEST = (
    b'{"code":"INVALID_PARAMS","message":"the request is not valid HTTP","retriable":false}'
)


class Connection(HttpToolsProtocol):
    """One client connection."""

    on_lost: Callable[[], None] | None = None
    on_writable: Callable[[], None] | None = None

    def on_headers_complete(self) -> None:
        super().on_headers_complete()
        self.scope[SCOPE_KEY] = self  # type: ignore[literal-required]

    def send_400_response(self, msg: str) -> None:
        self.transport.write(
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_BAD_REQUEST), _BAD_REQUEST)
        )
        self.transport.close()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self.on_writable is not None:
            self.on_writable()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self.on_lost is not None:
            self.on_lost()


class Server(uvicorn.Server):
    """A uvicorn server that leaves signals to us and says when it listens."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.listening = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self.listening.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        yield


def build_server(app: Any, keep_alive_s: int = 75) -> Server:
    """A server for `app`; sockets are given to `serve`."""
    config = uvicorn.Config(
        app,
        http=Connection,
        loop="none",  # the running loop is ours already
        ws="none",
        lifespan="off",
        interface="asgi3",
        access_log=False,
        log_config=None,
        server_header=False,
        date_header=False,
        timeout_keep_alive=keep_alive_s,
        backlog=4096,
    )
    return Server(config)
