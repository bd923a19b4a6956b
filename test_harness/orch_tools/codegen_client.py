"""Typed clients from the OpenAPI files: one method per operation, asynchronous and blocking alike.

Input are `contracts/openapi/{data,control}.yaml`; output are
`generated/orchqueue_v1/{client,transport,async_transport,sse}.py` and
`generated/orchcontrol_v1/client.py`. Invariant: both flavours of a client come from the same list
of operations, so that neither can have a method the other lacks. Requirements: OC-CONFIG-6010,
ORCH-3025, ORCH-3202.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

_HEADER = "# Written by `python -m orch_tools regen` from {source}; edit that instead.\n"
_RUNTIME = "test_harness/orch_tools/client_runtime"
# Header parameters that every method has under a name of its own.
_CORRELATION, _LAST_EVENT = "X-Correlation-Id", "Last-Event-ID"
_METHODS = ("get", "put", "post", "delete", "patch")
_PYTHON_TYPES = {"string": "str", "integer": "int"}
# `traceparent` is for whoever has a tracer, which then has a transport of its own.
_KNOWN_HEADERS = {_CORRELATION, _LAST_EVENT, "traceparent"}


class ClientCodegenError(Exception):
    """The contract says something that no client method can say; the message names the place."""


@dataclass(frozen=True, slots=True)
class Plane:
    """One contract file and the package that its client goes to."""

    contract: str
    package: str
    client: str


PLANES = (
    Plane("contracts/openapi/data.yaml", "orchqueue_v1", "OrchQueueClient"),
    Plane("contracts/openapi/control.yaml", "orchcontrol_v1", "OrchControlClient"),
)


@dataclass(frozen=True, slots=True)
class Operation:
    """What a client method needs to know of one operation of the contract."""

    name: str
    method: str
    path: str
    summary: str
    path_names: tuple[str, ...]
    query_types: tuple[tuple[str, str], ...]
    body: str | None
    result: str | None
    is_stream: bool

    def type_names(self) -> Iterator[str]:
        """The schema types that the method's signature mentions."""
        for text in (self.body, self.result):
            if text:
                yield re.sub(r"^list\[(\w+)\]$", r"\1", text)


def generate_clients(root: Path) -> dict[str, str | bytes]:
    """Return the files of both clients.

    Raises `ClientCodegenError` for a contract it cannot express.
    """
    files: dict[str, str | bytes] = {}
    for plane in PLANES:
        document = yaml.safe_load((root / plane.contract).read_text("utf-8"))
        operations = tuple(operations_of(document, plane.contract))
        files[f"generated/{plane.package}/client.py"] = client_module(plane, operations)
    for name in ("transport", "async_transport", "sse"):
        source = f"{_RUNTIME}/{name}.py"
        text = (root / source).read_text("utf-8")
        files[f"generated/orchqueue_v1/{name}.py"] = _HEADER.format(source=source) + text
    return files


def operations_of(document: dict[str, Any], source: str) -> Iterator[Operation]:
    """Yield the operations of an OpenAPI document, in file order. Raises `ClientCodegenError`."""
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                shared = item.get("parameters", [])
                yield _operation(document, source, path, method, item[method], shared)


def _operation(
    document: dict[str, Any],
    source: str,
    path: str,
    method: str,
    entry: dict[str, Any],
    shared: list[dict[str, Any]],
) -> Operation:
    where = f"{source}: {method.upper()} {path}"
    name = entry.get("operationId", "")
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ClientCodegenError(f"{where}: operationId must be snake_case")
    query: list[tuple[str, str]] = []
    for reference in [*shared, *entry.get("parameters", [])]:
        parameter = _resolve(document, reference)
        if parameter["in"] == "query":
            kind = _resolve(document, parameter["schema"]).get("type")
            if kind not in _PYTHON_TYPES:
                raise ClientCodegenError(
                    f"{where}: query parameter {parameter['name']} is no plain value"
                )
            query.append((parameter["name"], _PYTHON_TYPES[kind]))
        elif parameter["in"] == "header" and parameter["name"] not in _KNOWN_HEADERS:
            raise ClientCodegenError(
                f"{where}: header {parameter['name']} has no place in a client method"
            )
    body = None
    if "requestBody" in entry:
        content = _resolve(document, entry["requestBody"])["content"]
        body = _type_of(content["application/json"]["schema"], where)
    result, is_stream = _result(document, entry["responses"], where)
    return Operation(
        name=name,
        method=method.upper(),
        path=path,
        summary=entry["summary"].rstrip("."),
        path_names=tuple(re.findall(r"{(\w+)}", path)),
        query_types=tuple(query),
        body=body,
        result=result,
        is_stream=is_stream,
    )


def _resolve(document: dict[str, Any], value: dict[str, Any]) -> dict[str, Any]:
    while "$ref" in value:
        target: Any = document
        for part in value["$ref"].removeprefix("#/").split("/"):
            target = target[part]
        value = target
    return value


def _type_of(schema: dict[str, Any], where: str) -> str:
    if "$ref" in schema:
        return str(schema["$ref"].rsplit("/", 1)[1])
    if schema.get("type") == "array" and "$ref" in schema.get("items", {}):
        return f"list[{_type_of(schema['items'], where)}]"
    raise ClientCodegenError(f"{where}: bodies must be named schemas or lists of them")


def _result(
    document: dict[str, Any], responses: dict[str, Any], where: str
) -> tuple[str | None, bool]:
    successes = [code for code in responses if str(code).startswith("2")]
    if len(successes) != 1:
        raise ClientCodegenError(
            f"{where}: a client method needs exactly one success, not {successes}"
        )
    content = _resolve(document, responses[successes[0]]).get("content", {})
    if "text/event-stream" in content:
        return None, True
    if "application/json" in content:
        return _type_of(content["application/json"]["schema"], where), False
    return None, False


def client_module(plane: Plane, operations: tuple[Operation, ...]) -> str:
    """Return the text of one plane's `client.py`."""
    names = sorted({name for operation in operations for name in operation.type_names()})
    streams = any(operation.is_stream for operation in operations)
    lines = [
        _HEADER.format(source=plane.contract).rstrip(),
        f'"""Typed clients of `{plane.contract}`.',
        "",
        f"`Async{plane.client}` for asyncio, `{plane.client}` for threads; the same methods.",
        "Each raises `OrchError` and nothing else when the service refuses or cannot be reached;",
        "only what is `retriable` is worth another try (ORCH-3025). `observe` sees the head of",
        "each answer, where the `X-Budget-*` headers are.",
        '"""',
        "",
        "from __future__ import annotations",
        "",
    ]
    if streams:
        lines.append("from collections.abc import AsyncIterator, Iterator")
    lines += [
        "from types import TracebackType",
        "from typing import Self",
        "",
        "import msgspec",
        "",
    ]
    if streams:
        lines += [
            "from orchqueue_v1.sse import (",
            "    Reconnect,",
            "    StreamEvent,",
            "    read_stream,",
            "    read_stream_async,",
            ")",
        ]
    lines += [
        "from orchqueue_v1.transport import (",
        "    DEFAULT_TIMEOUT_S,",
        "    Endpoint,",
        "    Observer,",
        "    OrchError,",
        "    Request,",
        "    SyncTransport,",
        "    decode,",
        "    path_of,",
        ")",
        f"from {plane.package}.types import (",
        *(f"    {name}," for name in names),
        ")",
        "",
        f'__all__ = ["Async{plane.client}", "{plane.client}", "OrchError"]',
        "",
        "",
        "def _headers(correlation_id: str | None) -> dict[str, str]:",
        '    return {"X-Correlation-Id": correlation_id} if correlation_id else {}',
        "",
    ]
    for is_async in (True, False):
        lines += ["", *_class(plane, operations, is_async)]
    return "\n".join(lines).rstrip() + "\n"


def _class(plane: Plane, operations: tuple[Operation, ...], is_async: bool) -> list[str]:
    awaits, defs = ("await ", "async def") if is_async else ("", "def")
    prefix, flavour = ("Async", "asyncio") if is_async else ("", "blocking; any thread may use it")
    enter, leave = ("__aenter__", "__aexit__") if is_async else ("__enter__", "__exit__")
    lines = [
        f"class {prefix}{plane.client}:",
        f'    """Client of {plane.contract.rsplit("/", 1)[1]} ({flavour}).',
        "",
        "    Args: `url` like http://127.0.0.1:8080; `timeout_s` bounds one call, not a stream.",
        "    Raises: ValueError for a URL that is none.",
        '    """',
        "",
        "    def __init__(",
        "        self,",
        "        url: str,",
        "        api_key: str | None = None,",
        "        *,",
        "        timeout_s: float = DEFAULT_TIMEOUT_S,",
        "        observe: Observer | None = None,",
        "    ) -> None:",
        *(
            [
                "        # Imported here: who needs no event loop shall not pay for aiohttp.",
                "        from orchqueue_v1.async_transport import AsyncTransport",
                "",
            ]
            if is_async
            else []
        ),
        f"        self._transport = {'Async' if is_async else 'Sync'}Transport(",
        "            Endpoint(url, api_key), timeout_s, observe",
        "        )",
        "",
        f"    {defs} {enter}(self) -> Self:",
        "        return self",
        "",
        f"    {defs} {leave}(",
        "        self,",
        "        kind: type[BaseException] | None,",
        "        error: BaseException | None,",
        "        trace: TracebackType | None,",
        "    ) -> None:",
        f"        {awaits}self.close()",
        "",
        f"    {defs} close(self) -> None:",
        '        """Close what is open; the client can be used again."""',
        f"        {awaits}self._transport.close()",
    ]
    for operation in operations:
        lines.append("")
        if operation.is_stream:
            lines += _stream_method(operation, is_async)
        else:
            lines += _method(operation, is_async)
    return [*lines, ""]


def _path_expression(operation: Operation) -> str:
    template = re.sub(r"{\w+}", "{}", operation.path)
    arguments = [f'"{template}"', *_path_arguments(operation)]
    if operation.query_types:
        pairs = ", ".join(f'"{name}": {name}' for name, _ in operation.query_types)
        arguments.append(f"query={{{pairs}}}")
    return f"path_of({', '.join(arguments)})"


def _path_arguments(operation: Operation) -> list[str]:
    # `id` would hide the builtin, and `task_id` says which of the ids is meant.
    noun = operation.path.split("/")[2].removesuffix("s").replace("-", "_")
    return [f"{noun}_id" if name == "id" else name for name in operation.path_names]


def _positional(operation: Operation) -> list[str]:
    return [f"{name}: str" for name in _path_arguments(operation)]


def _method(operation: Operation, is_async: bool) -> list[str]:
    awaits, defs = ("await ", "async def") if is_async else ("", "def")
    arguments = ["self", *_positional(operation)]
    if operation.body:
        arguments.append(f"body: {operation.body}")
    arguments.append("*")
    arguments += [f"{name}: {kind} | None = None" for name, kind in operation.query_types]
    arguments.append("correlation_id: str | None = None")
    lines = [
        f"    {defs} {operation.name}(",
        f"        {', '.join(arguments)}",
        f"    ) -> {operation.result or 'None'}:",
        f'        """{operation.summary}. Raises `OrchError`."""',
    ]
    parts = [f'"{operation.method}"', _path_expression(operation)]
    parts.append("msgspec.json.encode(body)" if operation.body else "None")
    parts.append("_headers(correlation_id)")
    lines += [
        "        request = Request(",
        *(f"            {part}," for part in parts),
        "        )",
    ]
    call = f"{awaits}self._transport.send(request)"
    if operation.result:
        lines.append(f"        return decode({call}, {operation.result})")
    else:
        lines.append(f"        {call}")
    return lines


def _stream_method(operation: Operation, is_async: bool) -> list[str]:
    reader = "read_stream_async" if is_async else "read_stream"
    result = "AsyncIterator[StreamEvent]" if is_async else "Iterator[StreamEvent]"
    arguments = ["self", *_positional(operation), "last_event_id: int | None = None", "*"]
    arguments += ["reconnect: Reconnect | None = None", "correlation_id: str | None = None"]
    return [
        f"    def {operation.name}(",
        *(f"        {argument}," for argument in arguments),
        f"    ) -> {result}:",
        f'        """{operation.summary}.',
        "",
        "        Goes on by itself after a broken connection; no event with an id comes twice.",
        "        Raises `OrchError`: refused (404), out of tries, or an event is missing.",
        '        """',
        "        request = Request(",
        f'            "{operation.method}",',
        f"            {_path_expression(operation)},",
        "            None,",
        "            _headers(correlation_id),",
        "        )",
        f"        return {reader}(self._transport, request, last_event_id, reconnect)",
    ]
