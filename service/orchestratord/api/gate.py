"""The front door of both planes: correlation id, route, key and role, then the handler.

On a task's path: the first code of ours that sees a request. Every answer carries
`X-Correlation-Id`; every error carries the envelope (ORCH-2006, ORCH-2009). A missing key is 401,
an unknown one or one without the role 403 (ORCH-3035, OC-CTRL-2040).
"""

from __future__ import annotations

import secrets
from collections.abc import Callable

import structlog

from orchcontrol_v1.routes import Route as ControlRoute
from orchcontrol_v1.routes import match as match_control
from orchestrator_core.errors import Code
from orchestratord.api.data_plane import JSON_TYPE, DataPlane, Request, read_body, respond
from orchestratord.api.errors import HttpError, error_response, invalid
from orchestratord.api.keys import KeyRing, Principal
from orchestratord.api.public_pages import PublicPages
from orchestratord.api.types import AsgiApp, Message, Receive, Scope, Send
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
    return secrets.token_hex(16)


class Gate:
    """One ASGI app for one port; `planes` says what this port serves."""

    def __init__(
        self,
        data: DataPlane | None,
        control: AsgiApp | None,
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
        self.on_listening: Callable[[], None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers: dict[bytes, bytes] = dict(scope["headers"])
        correlation = correlation_id(headers.get(b"x-correlation-id"))
        base = [(b"x-correlation-id", correlation.encode())]
        operation = "unknown"
        try:
            operation, status = await self._serve(scope, receive, send, headers, correlation, base)
        except HttpError as error:
            answer = error_response(error)
            status = answer.status
            await respond(send, status, [JSON_TYPE, *base, *answer.headers], answer.body)
            self._telemetry.http_error(error.code)
        except Exception:
            log.exception("request.failed", correlation_id=correlation, path=scope["path"])
            self._telemetry.http_request(operation, 500)
            answer = error_response(
                HttpError(500, Code.INTERNAL, "an internal error; the log has the correlation id")
            )
            if scope["llama_orch.connection"].cycle.response_started:
                raise
            await respond(send, 500, [JSON_TYPE, *base], answer.body)
            return
        self._telemetry.http_request(operation, status)

    async def _serve(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: dict[bytes, bytes],
        correlation: str,
        base: list[tuple[bytes, bytes]],
    ) -> tuple[str, int]:
        method, path = scope["method"], scope["path"]
        if self._data is not None:
            found = match_data(method, path)
            if isinstance(found, tuple):
                route, path_id = found
                principal = self._authorise(headers, route.roles)
                request = Request(
                    scope, receive, send, principal, correlation, path_id, headers, base
                )
                return route.operation_id, await self._data.handlers[route.operation_id](request)
            if found is not None:
                raise _wrong_method(method, found)
        if self._control is not None:
            control = match_control(method, path)
            if isinstance(control, tuple):
                return await self._serve_control(control[0], scope, receive, send, headers, base)
            if control is not None:
                raise _wrong_method(method, control)
        page = self._pages.find(path)
        if page is None:
            raise invalid(f"path: nothing is served at {path}", status=404)
        if method not in ("GET", "HEAD"):
            raise _wrong_method(method, frozenset(("GET", "HEAD")))
        if page.operation == "metrics" and not self._metrics_public:
            self._authorise(headers, ("metrics",))
        status, page_headers, body = page.render()
        if method == "HEAD":
            page_headers = [*page_headers, (b"content-length", b"%d" % len(body))]
            await send(
                {
                    "type": "http.response.start",
                    "status": status,
                    "headers": [*page_headers, *base],
                }
            )
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await respond(send, status, [*page_headers, *base], body)
        return page.operation, status

    async def _serve_control(
        self,
        route: ControlRoute,
        scope: Scope,
        receive: Receive,
        send: Send,
        headers: dict[bytes, bytes],
        base: list[tuple[bytes, bytes]],
    ) -> tuple[str, int]:
        assert self._control is not None
        self._authorise(headers, route.roles)
        # connexion takes neither chunked bodies nor unbounded ones: it gets the whole body.
        body = await read_body(receive, headers, self._max_body_bytes)
        if body:
            try:
                body.decode()
            except UnicodeDecodeError as error:
                raise invalid(f"body: not valid JSON in UTF-8: {error}") from None
        scope["headers"] = [
            (name, value)
            for name, value in scope["headers"]
            if name not in (b"transfer-encoding", b"content-length")
        ]
        if body or route.request is not None:
            scope["headers"].append((b"content-length", b"%d" % len(body)))
        pending = [{"type": "http.request", "body": body, "more_body": False}]
        status = 500

        async def receive_body() -> Message:
            return pending.pop() if pending else await receive()

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [*message.get("headers", []), *base]
            await send(message)

        await self._control(scope, receive_body, send_with_id)
        return route.operation_id, status

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
    return HttpError(
        405,
        Code.INVALID_PARAMS,
        f"method: {method} is not served here, only {names}",
        headers=((b"allow", names.encode()),),
    )
