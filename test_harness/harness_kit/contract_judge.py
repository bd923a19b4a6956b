"""Whether a response is one that the contracts allow: openapi-core over the hand-written YAML.

Behind `validated_responses` and the contract tests, so that neither the generated routes of the
data plane nor connexion's own reading of the control plane is its own judge (ORCH-2009). Stricter
than a client, which ignores what it does not know: here a field that no contract names is wrong,
because only so does a renamed optional field show.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

from harness_kit.contract_files import Operation, contract, operations
from harness_kit.response_tap import EVENT_STREAM

# What every service serves beside the contracts, by the first segment of the path.
BESIDE = frozenset({"livez", "readyz", "metrics", "docs", "openapi"})


class Mismatch(AssertionError):
    """A response or an event that no contract allows; says operation, status, place and rule."""


def operation_of(method: str, path: str) -> Operation | None:
    """The operation that answers, or any of its path where the path has no such method.

    None for a path of no contract.
    """
    segments = tuple(path.partition("?")[0].split("/"))
    for template, methods in _templates():
        if len(template) == len(segments) and all(
            part in ("{id}", segment) for part, segment in zip(template, segments, strict=True)
        ):
            return methods.get(method) or next(iter(methods.values()))
    return None


def documented_statuses() -> dict[str, list[int]]:
    """Every status that each operation documents, by operation id."""
    return {
        operation.id: sorted(int(status) for status in _responses(operation))
        for operation in operations()
    }


def check_response(
    operation: Operation, method: str, status: int, headers: Mapping[str, str], body: bytes
) -> None:
    """Judge status, headers and body; of a stream the head only. Raises `Mismatch`."""
    from openapi_core.testing import MockRequest, MockResponse
    from openapi_core.validation.response.exceptions import ResponseValidationError

    where = f"{operation.id} ({method} {operation.path}) {status}"
    if str(status) not in _responses(operation):
        raise Mismatch(f"{where}: the contract documents no such status")
    if method not in (operation.method, "HEAD") and status not in (401, 403, 405):
        raise Mismatch(f"{where}: the path knows no such method")
    if status == 204 and body:
        raise Mismatch(f"{where}: a body of {len(body)} bytes where there is none")
    if method == "HEAD":
        return
    if headers.get("content-type", "").startswith(EVENT_STREAM):
        body = b":\n\n"  # openapi-core wants a body; what a stream holds, its events say
    request = MockRequest("http://127.0.0.1", operation.method.lower(), operation.unknown_path)
    response = MockResponse(
        body, status, headers=dict(headers), content_type=headers.get("content-type", "")
    )
    try:
        _openapi(operation.plane).validate_response(request, response)
    except ResponseValidationError as error:
        raise Mismatch(f"{where}: {_rule(error)}") from error


def check_event(name: str, number: int | None, data: dict[str, Any]) -> None:
    """Judge one event of a task's stream. Raises `Mismatch`."""
    where = f"stream_task 200, event {name}"
    if name not in _payloads():
        raise Mismatch(f"{where}: the contract names no such event")
    block = {"event": name, "data": json.dumps(data)}
    if number is not None:
        block["id"] = str(number)
    _check(_event_schema(), block, where)
    if (number is None) != (name == "metrics"):
        raise Mismatch(f"{where}: all events but metrics have an id")
    _check(_payloads()[name], data, where)


def check_error(where: str, body: bytes) -> None:
    """Judge an error of what is served beside the contracts. Raises `Mismatch`."""
    try:
        document = json.loads(body)
    except ValueError as error:
        raise Mismatch(f"{where}: the body is no JSON") from error
    _check(_envelope(), document, where)


def _check(validator: Any, document: Any, where: str) -> None:
    for error in validator.iter_errors(document):
        raise Mismatch(f"{where}: {_place(error)}: {error.message}, rule {error.validator}")


def _rule(error: BaseException) -> str:
    """The first rule that was broken, down the chain of openapi-core's errors."""
    said = str(error)
    cause: BaseException | None = error
    while cause is not None:
        for broken in getattr(cause, "schema_errors", ()):
            return f"{said}: {_place(broken)}: {broken.message}, rule {broken.validator}"
        said = str(cause)
        cause = cause.__cause__
    return said


def _place(error: Any) -> str:
    return "$" + "".join(f"[{part!r}]" for part in error.absolute_path)


def _responses(operation: Operation) -> dict[str, Any]:
    methods = contract(operation.plane)["paths"][operation.path]
    found: dict[str, Any] = methods[operation.method.lower()]["responses"]
    return found


@cache
def _templates() -> list[tuple[tuple[str, ...], dict[str, Operation]]]:
    """Every path, those without a parameter first, with its operations by method."""
    by_path: dict[str, dict[str, Operation]] = {}
    for operation in operations():
        by_path.setdefault(operation.path, {})[operation.method] = operation
    ordered = sorted(by_path.items(), key=lambda entry: "{" in entry[0])
    return [(tuple(path.split("/")), methods) for path, methods in ordered]


def _closed(document: dict[str, Any]) -> dict[str, Any]:
    """A copy in which an object has the fields that it names and no others."""
    closed = copy.deepcopy(document)
    for schema in _objects(list(closed["components"]["schemas"].values())):
        schema["additionalProperties"] = False
    return closed


def _objects(pending: list[Any]) -> Iterator[dict[str, Any]]:
    while pending:
        schema = pending.pop()
        if not isinstance(schema, dict):
            continue
        if "properties" in schema and not schema.keys() & {"allOf", "anyOf"}:
            yield schema
        pending += [*schema.get("properties", {}).values(), schema.get("items")]


@cache
def _strict_contract(plane: str) -> dict[str, Any]:
    return _closed(contract(plane))


@cache
def _openapi(plane: str) -> Any:
    from openapi_core import Config, OpenAPI

    document = copy.deepcopy(_strict_contract(plane))
    for methods in document["paths"].values():
        for operation in methods.values():
            for response in operation["responses"].values():
                # Its events are judged one by one: `check_event`.
                if stream := response.get("content", {}).get(EVENT_STREAM):
                    stream["schema"] = {}
    config = Config(extra_media_type_deserializers={EVENT_STREAM: lambda body, **_: {}})
    return OpenAPI.from_dict(document, config=config)


def _validator(reference: str) -> Any:
    from openapi_schema_validator import OAS30Validator

    components = _strict_contract("data")["components"]
    return OAS30Validator({"$ref": reference, "components": components})


@cache
def _payloads() -> dict[str, Any]:
    events = contract("data")["components"]["schemas"]["StreamEvent"]["x-event-schemas"]
    return {name: _validator(reference) for name, reference in events.items()}


@cache
def _event_schema() -> Any:
    return _validator("#/components/schemas/StreamEvent")


@cache
def _envelope() -> Any:
    return _validator("#/components/schemas/ErrorEnvelope")
