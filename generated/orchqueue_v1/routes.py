"""Routes of OrchQueue v1 1.0.0. Generated from contracts/openapi/data.yaml; do not edit."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from orchqueue_v1 import types


@dataclass(frozen=True, slots=True)
class Route:
    """One operation. `roles`: any of them suffices. `id_parameter` names the path's parameter."""

    operation_id: str
    method: str
    path: str
    request: type[msgspec.Struct] | None
    success: int
    roles: tuple[str, ...]
    id_parameter: str | None


SUBMIT_TASK = Route(
    operation_id="submit_task",
    method="POST",
    path="/v1/tasks",
    request=types.TaskRequest,
    success=202,
    roles=("data",),
    id_parameter=None,
)
STREAM_TASK = Route(
    operation_id="stream_task",
    method="GET",
    path="/v1/tasks/{id}/stream",
    request=None,
    success=200,
    roles=("data",),
    id_parameter="id",
)
CANCEL_TASK = Route(
    operation_id="cancel_task",
    method="POST",
    path="/v1/tasks/{id}/cancel",
    request=None,
    success=204,
    roles=("data",),
    id_parameter="id",
)
EXPLAIN_TASK = Route(
    operation_id="explain_task",
    method="GET",
    path="/v1/tasks/{id}/explanation",
    request=None,
    success=200,
    roles=(
        "data",
        "control",
    ),
    id_parameter="id",
)
GET_DETERMINISM = Route(
    operation_id="get_determinism",
    method="GET",
    path="/v1/tasks/{id}/determinism",
    request=None,
    success=200,
    roles=("data",),
    id_parameter="id",
)
GET_SESSION = Route(
    operation_id="get_session",
    method="GET",
    path="/v1/sessions/{id}",
    request=None,
    success=200,
    roles=("data",),
    id_parameter="id",
)
DELETE_SESSION = Route(
    operation_id="delete_session",
    method="DELETE",
    path="/v1/sessions/{id}",
    request=None,
    success=204,
    roles=("data",),
    id_parameter="id",
)

ROUTES: tuple[Route, ...] = (
    SUBMIT_TASK,
    STREAM_TASK,
    CANCEL_TASK,
    EXPLAIN_TASK,
    GET_DETERMINISM,
    GET_SESSION,
    DELETE_SESSION,
)

_FIXED: dict[str, dict[str, tuple[Route, str | None]]] = {
    "/v1/tasks": {"POST": (SUBMIT_TASK, None)},
}
_FIXED_ALLOWED: dict[str, frozenset[str]] = {
    "/v1/tasks": frozenset(("POST",)),
}
# Prefix, suffix, their lengths, routes by method, allowed methods.
_WITH_ID: tuple[tuple[str, str, int, int, dict[str, Route], frozenset[str]], ...] = (
    (
        "/v1/tasks/",
        "/stream",
        10,
        7,
        {"GET": STREAM_TASK},
        frozenset(("GET",)),
    ),
    (
        "/v1/tasks/",
        "/cancel",
        10,
        7,
        {"POST": CANCEL_TASK},
        frozenset(("POST",)),
    ),
    (
        "/v1/tasks/",
        "/explanation",
        10,
        12,
        {"GET": EXPLAIN_TASK},
        frozenset(("GET",)),
    ),
    (
        "/v1/tasks/",
        "/determinism",
        10,
        12,
        {"GET": GET_DETERMINISM},
        frozenset(("GET",)),
    ),
    (
        "/v1/sessions/",
        "",
        13,
        0,
        {"GET": GET_SESSION, "DELETE": DELETE_SESSION},
        frozenset(
            (
                "DELETE",
                "GET",
            )
        ),
    ),
)


def match(method: str, path: str) -> tuple[Route, str | None] | frozenset[str] | None:
    """The operation for a request.

    Args:
        method: upper case, as the request line has it.
        path: percent-decoded, without the query.

    Returns:
        The route and the text of its path parameter (None where it has none; never empty, never
        with a slash in it, otherwise unchecked); the allowed methods where the path exists but
        not with this method (405); None where no such path exists (404). A trailing slash is
        another path.
    """
    by_method = _FIXED.get(path)
    if by_method is not None:
        return by_method.get(method) or _FIXED_ALLOWED[path]
    for prefix, suffix, start, end, routes, allowed in _WITH_ID:
        if path.startswith(prefix) and path.endswith(suffix):
            value = path[start : len(path) - end]
            if value and "/" not in value:
                route = routes.get(method)
                return allowed if route is None else (route, value)
    return None
