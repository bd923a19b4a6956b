"""OrchControl v1: connexion serves `control.yaml` itself, so validation cannot drift from it.

The gate has authenticated already and hands over whole, length-delimited bodies; connexion checks
them against the contract and calls a handler by operation id. Requirements: ORCH-2103, ORCH-2104,
OC-CTRL-2001, OC-CTRL-2004, OC-CTRL-2060.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import msgspec
import yaml
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from orchestrator_core.errors import Code
from orchestratord.api.config_orders import ConfigOrders
from orchestratord.api.errors import HttpError, error_response, invalid
from orchestratord.api.http_server import Headers
from orchestratord.api.pool_manager_orders import PoolManagerOrders
from orchestratord.api.pool_orders import PoolOrders
from orchestratord.api.types import AsgiApp, Exchange, Message
from orchestratord.services.devices import DeviceService
from orchestratord.services.overview import OverviewService

with warnings.catch_warnings():
    # connexion imports starlette's test client, which warns about a library of its own.
    warnings.simplefilter("ignore")
    import connexion
    from connexion.exceptions import ProblemException
    from connexion.options import SwaggerUIOptions
    from connexion.resolver import Resolver

Answer = tuple[Any, int]


class ControlPlane:
    """The handlers, by operation id. What this version does not serve answers 501."""

    def __init__(
        self,
        overview: OverviewService,
        devices: DeviceService,
        orders: PoolOrders,
        config_orders: ConfigOrders,
        manager_orders: PoolManagerOrders,
    ) -> None:
        self._overview = overview
        self._devices = devices
        self.handlers: dict[str, Callable[..., Any]] = {
            "pool_health": self.pool_health,
            "list_replicasets": self.list_replicasets,
            "get_capabilities": self.get_capabilities,
            "list_devices": self.list_devices,
            **orders.handlers,
            **config_orders.handlers,
            **manager_orders.handlers,
        }

    async def pool_health(self, id: str) -> Answer:
        health = self._overview.pool_health(id)
        if health is None:
            raise invalid("id: no such pool", status=404)
        return health, 200

    async def list_replicasets(self) -> Answer:
        return self._overview.replica_sets(), 200

    async def get_capabilities(self) -> Answer:
        return self._overview.capabilities(), 200

    async def list_devices(self) -> Answer:
        return self._devices.devices(), 200

    def handler(self, operation_id: str) -> Callable[..., Any]:
        known = self.handlers.get(operation_id)
        return known if known is not None else _not_served(operation_id)


def _not_served(operation_id: str) -> Callable[..., Any]:
    async def handler(**_: Any) -> Answer:
        raise HttpError(501, Code.INTERNAL, f"{operation_id}: not served by this version")

    return handler


class ControlApp:
    """The control plane as the gate calls it: one request to connexion and back."""

    def __init__(self, control: ControlPlane, contract: str) -> None:
        self._app = _connexion_app(control, contract)

    async def __call__(self, exchange: Exchange) -> None:
        request = exchange.request
        try:
            request.body.decode()
        except UnicodeDecodeError as error:
            raise invalid(f"body: not valid JSON in UTF-8: {error}") from None
        headers = [
            (name, value)
            for name, value in request.headers.items()
            if name not in (b"transfer-encoding", b"content-length")
        ]
        # connexion takes no chunked bodies: it gets the whole one with its length.
        if request.body or request.method not in ("GET", "HEAD"):
            headers.append((b"content-length", b"%d" % len(request.body)))
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": request.method,
            "scheme": "http",
            "path": request.path,
            "raw_path": request.path.encode(),
            "query_string": request.query,
            "root_path": "",
            "headers": headers,
            "client": None,
            "server": None,
        }
        pending: list[Message] = [
            {"type": "http.request", "body": request.body, "more_body": False}
        ]
        status = 500
        answer_headers: Headers = []
        parts: list[bytes] = []

        async def receive() -> Message:
            return pending.pop() if pending else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                answer_headers.extend(
                    header for header in message["headers"] if header[0] != b"content-length"
                )
            else:
                parts.append(message.get("body", b""))

        await self._app(scope, receive, send)
        exchange.finish(status, answer_headers, b"".join(parts))


def _connexion_app(control: ControlPlane, contract: str) -> AsgiApp:
    """An ASGI app for the contract's text; its errors all carry the envelope."""
    document = yaml.safe_load(contract)
    # The gate checks keys and roles for both planes; connexion shall not do it again.
    document.pop("security", None)
    for path in document["paths"].values():
        for operation in path.values():
            if isinstance(operation, dict):
                operation.pop("security", None)
    # A malformed id is one that does not exist: the handler says 404, where connexion says 400.
    for parameter in document["components"]["parameters"].values():
        if parameter["in"] == "path":
            parameter["schema"] = {"type": "string"}
    app = connexion.AsyncApp(
        __name__,
        resolver=Resolver(control.handler),
        swagger_ui_options=SwaggerUIOptions(swagger_ui=False),
    )
    app.add_api(document, name="control")
    app.add_error_handler(HttpError, _http_error)
    app.add_error_handler(ProblemException, _problem)
    app.add_error_handler(HTTPException, _problem)
    app.add_error_handler(Exception, _unexpected)
    return app  # type: ignore[no-any-return]


def _response(error: HttpError) -> Response:
    answer = error_response(error)
    return connexion.lifecycle.ConnexionResponse(  # type: ignore[no-any-return]
        status_code=answer.status,
        headers={name.decode(): value.decode() for name, value in answer.headers},
        body=answer.body,
        content_type="application/json",
    )


def _http_error(_: Request, error: HttpError) -> Response:
    return _response(error)


def _problem(_: Request, error: Any) -> Response:
    """connexion's or Starlette's own refusals: the first line says what and where."""
    status: int = getattr(error, "status_code", 0) or getattr(error, "status", 0) or 500
    detail = str(getattr(error, "detail", "") or getattr(error, "title", "") or error)
    message = detail.splitlines()[0] if detail else "refused"
    if status >= 500:
        return _response(HttpError(status, Code.INTERNAL, message))
    return _response(invalid(f"body: {message}" if status == 400 else message, status=status))


def _unexpected(_: Request, error: Exception) -> Response:
    if isinstance(error, UnicodeDecodeError | msgspec.DecodeError):
        return _response(invalid(f"body: not valid JSON in UTF-8: {error}"))
    raise error
