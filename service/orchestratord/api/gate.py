"""The front door of both planes: correlation id, route, key and role, then the handler.

On a task's path: the first code of ours that sees a request. Every answer carries
`X-Correlation-Id`; every error carries the envelope (ORCH-2006, ORCH-2009). A missing key is 401,
an unknown one or one without the role 403 (ORCH-3035, OC-CTRL-2040). Handlers of the hot path
answer from callbacks; only those that need it become tasks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from functools import partial
from typing import Any

import structlog

from orchcontrol_v1.routes import match as match_control
from orchestrator_core.errors import Code
from orchestratord.api.control_plane import ControlApp
from orchestratord.api.data_plane import JSON_TYPE, DataPlane
from orchestratord.api.errors import HttpError, error_response, invalid
from orchestratord.api.http_server import Headers, HttpConnection, HttpRequest, minted_id
from orchestratord.api.keys import KeyRing, Principal
from orchestratord.api.public_pages import PublicPages
from orchestratord.api.types import Exchange
from orchestratord.services.telemetry import Telemetry
from orchqueue_v1.routes import match as match_data

log = structlog.get_logger("orchestratord.api")

MAX_CORRELATION_ID = 128
_VISIBLE = bytes(range(0x21, 0x7F))
_ANYBODY = Principal("anonymous", "default", frozenset({"data", "control", "metrics"}))


def correlation_id(presented: bytes | None) -> str:
    """The client's id where it is up to 128 visible ASCII characters, else a minted one."""
    if presented and len(presented) <= MAX_CORRELATION_ID and not presented.strip(_VISIBLE):
        return presented.decode("ascii")
    return minted_id()


class Gate:
    """The application of one port; `data` and `control` say which planes it serves."""

    def __init__(
        self,
        data: DataPlane | None,
        control: ControlApp | None,
        pages: PublicPages,
        keys: KeyRing | None,
        telemetry: Telemetry,
        max_body_bytes: int,
        metrics_public: bool,
    ) -> None:
        self._data = data
        self._control = control
        self._pages = pages
        self._keys = keys
        self._telemetry = telemetry
        self._max_body_bytes = max_body_bytes
        self._metrics_public = metrics_public
        self._tasks: set[asyncio.Task[None]] = set()

    def reconfigure(self, keys: KeyRing | None, max_body_bytes: int, metrics_public: bool) -> None:
        """Other keys and bounds, from the next request on."""
        self._keys = keys
        self._max_body_bytes = max_body_bytes
        self._metrics_public = metrics_public

    def __call__(self, request: HttpRequest, connection: HttpConnection) -> None:
        correlation = correlation_id(request.headers.get(b"x-correlation-id"))
        exchange = Exchange(
            request,
            connection,
            _ANYBODY,
            correlation,
            None,
            [(b"x-correlation-id", correlation.encode())],
            partial(self._telemetry.http_request, "none"),
        )
        try:
            work = self._route(exchange)
        except Exception as error:  # noqa: BLE001 - whatever it is, the client gets an envelope
            self._fail(exchange, error)
            return
        if work is not None:
            task = asyncio.get_running_loop().create_task(self._watched(exchange, work))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _watched(self, exchange: Exchange, work: Coroutine[Any, Any, None]) -> None:
        try:
            await work
        except Exception as error:  # noqa: BLE001 - as above
            self._fail(exchange, error)

    def _fail(self, exchange: Exchange, error: Exception) -> None:
        """Answer with the envelope of what went wrong."""
        if not isinstance(error, HttpError):
            log.error(
                "request.failed",
                correlation_id=exchange.correlation_id,
                path=exchange.request.path,
                exc_info=error,
            )
            error = HttpError(
                500, Code.INTERNAL, "an internal error; the log has the correlation id"
            )
        answer = error_response(error)
        exchange.finish(answer.status, [JSON_TYPE, *answer.headers], answer.body)
        self._telemetry.http_error(error.code)

    def _route(self, exchange: Exchange) -> Coroutine[Any, Any, None] | None:
        request = exchange.request
        method, path = request.method, request.path
        if self._data is not None:
            found = match_data(method, path)
            if isinstance(found, tuple):
                route, exchange.path_id = found
                self._admit(exchange, route.operation_id, route.roles)
                return self._data.handlers[route.operation_id](exchange)
            if found is not None:
                raise _wrong_method(method, found)
        if self._control is not None:
            control = match_control(method, path)
            if isinstance(control, tuple):
                operation, exchange.path_id = control
                self._admit(exchange, operation.operation_id, operation.roles)
                return self._control(exchange)
            if control is not None:
                raise _wrong_method(method, control)
        self._serve_page(exchange)
        return None

    def _admit(self, exchange: Exchange, operation: str, roles: tuple[str, ...]) -> None:
        exchange.counted = partial(self._telemetry.http_request, operation)
        exchange.principal = self._authorise(exchange.request.headers, roles)
        if exchange.request.oversize:
            raise HttpError(
                413,
                Code.INVALID_PARAMS,
                f"body: larger than server.max_body_bytes ({self._max_body_bytes})",
            )

    def _serve_page(self, exchange: Exchange) -> None:
        request = exchange.request
        page = self._pages.find(request.path)
        if page is None:
            raise invalid("path: nothing is served there", status=404)
        if request.method not in ("GET", "HEAD"):
            raise _wrong_method(request.method, frozenset(("GET", "HEAD")))
        roles = () if page.public or self._metrics_public else ("metrics",)
        if roles:
            self._admit(exchange, page.operation, roles)
        exchange.counted = partial(self._telemetry.http_request, page.operation)
        exchange.finish(*page.render())

    def _authorise(self, headers: dict[bytes, bytes], roles: tuple[str, ...]) -> Principal:
        """Who asks. Raises `HttpError` 401 without a key, 403 with a wrong or insufficient one."""
        if self._keys is None:
            return _ANYBODY
        key = headers.get(b"x-api-key")
        if key is None:
            scheme, _, token = headers.get(b"authorization", b"").partition(b" ")
            key = token.strip() if scheme.lower() == b"bearer" else None
        if not key:
            raise HttpError(
                401,
                Code.ADMISSION_REJECT,
                "send a key as X-API-Key or Authorization: Bearer",
                headers=((b"www-authenticate", b"Bearer"),),
            )
        principal = self._keys.find(key)
        if principal is None:
            raise HttpError(403, Code.ADMISSION_REJECT, "the key is not known")
        if principal.roles.isdisjoint(roles):
            wanted = " or ".join(roles)
            raise HttpError(403, Code.ADMISSION_REJECT, f"the key lacks the role {wanted}")
        return principal


def _wrong_method(method: str, allowed: frozenset[str]) -> HttpError:
    names = ", ".join(sorted(allowed))
    headers: Headers = [(b"allow", names.encode())]
    return HttpError(
        405,
        Code.INVALID_PARAMS,
        f"method: {method} is not served here, only {names}",
        headers=tuple(headers),
    )
