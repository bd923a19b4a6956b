"""OpenAPI paths -> `routes.py`: which operation a request is for, and who may ask for it.

The data plane looks every request up here, once, before anything else happens, so the lookup is a
dict for fixed paths and a prefix-suffix test for the few paths with an id. A contract whose paths
cannot be told apart that way is refused at generation. Requirements: ORCH-3035, ORCH-3044.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from orch_tools.codegen_types import PLANES, load_contract

METHODS = ("get", "post", "put", "patch", "delete")

_HEADER = '''"""Routes of {title} {version}. Generated from {path}; do not edit."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from {package} import types


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


'''

_MATCH = '''

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
'''


class RouteError(Exception):
    """The contract has a path that the generated lookup cannot tell from another; names both."""


def request_schema(operation: dict[str, Any]) -> str | None:
    """The name of the operation's JSON body schema, or None without a body."""
    if "requestBody" not in operation:
        return None
    reference: str = operation["requestBody"]["content"]["application/json"]["schema"]["$ref"]
    return reference.rsplit("/", 1)[1]


def split_path(path: str) -> tuple[str, str, str] | None:
    """Prefix, parameter name and suffix of a path with one parameter; None without one.

    Raises `RouteError` for more than one parameter, or one that is not a whole segment.
    """
    if "{" not in path:
        return None
    prefix, rest = path.split("{", 1)
    name, suffix = rest.split("}", 1)
    if "{" in suffix or not prefix.endswith("/") or (suffix and not suffix.startswith("/")):
        raise RouteError(f"{path}: only one parameter, a whole segment, is supported")
    return prefix, name, suffix


def check_distinct(paths: list[str]) -> None:
    """Raises `RouteError` when a concrete path could belong to two of `paths`.

    With one whole-segment parameter each, two paths overlap only where they have the same number
    of segments and agree in all that neither leaves open.
    """
    for index, first in enumerate(paths):
        for second in paths[index + 1 :]:
            pairs = list(zip(first.split("/"), second.split("/"), strict=False))
            same_length = first.count("/") == second.count("/")
            if same_length and all(a == b or "{" in (a[:1], b[:1]) for a, b in pairs):
                raise RouteError(f"{first} and {second} overlap")


def constant(operation_id: str) -> str:
    """The name of an operation's Route constant."""
    return operation_id.upper()


def route_lines(path: str, method: str, operation: dict[str, Any]) -> list[str]:
    """The definition of one Route constant."""
    request = request_schema(operation)
    success = next(int(status) for status in operation["responses"] if status.startswith("2"))
    split = split_path(path)
    roles = ", ".join(f'"{role}"' for role in operation["x-roles"])
    return [
        f"{constant(operation['operationId'])} = Route(",
        f'    operation_id="{operation["operationId"]}",',
        f'    method="{method.upper()}",',
        f'    path="{path}",',
        f"    request={'types.' + request if request else None},",
        f"    success={success},",
        f"    roles=({roles},),",
        "    id_parameter=None," if split is None else f'    id_parameter="{split[1]}",',
        ")",
    ]


def table_lines(paths: dict[str, dict[str, str]]) -> list[str]:
    """The lookup tables; `paths` is path -> method -> constant."""
    fixed, allowed, with_id = [], [], []
    for path, methods in paths.items():
        names = ", ".join(f'"{method}"' for method in sorted(methods))
        split = split_path(path)
        if split is None:
            hits = ", ".join(f'"{method}": ({name}, None)' for method, name in methods.items())
            fixed.append(f'    "{path}": {{{hits}}},')
            allowed.append(f'    "{path}": frozenset(({names},)),')
            continue
        prefix, _, suffix = split
        hits = ", ".join(f'"{method}": {name}' for method, name in methods.items())
        with_id += [
            "    (",
            f'        "{prefix}",',
            f'        "{suffix}",',
            f"        {len(prefix)},",
            f"        {len(suffix)},",
            f"        {{{hits}}},",
            f"        frozenset(({names},)),",
            "    ),",
        ]
    return [
        "_FIXED: dict[str, dict[str, tuple[Route, str | None]]] = {",
        *fixed,
        "}",
        "_FIXED_ALLOWED: dict[str, frozenset[str]] = {",
        *allowed,
        "}",
        "# Prefix, suffix, their lengths, routes by method, allowed methods.",
        "_WITH_ID: tuple[tuple[str, str, int, int, dict[str, Route], frozenset[str]], ...] = (",
        *with_id,
        ")",
    ]


def routes_module(contract: dict[str, Any], package: str, path: str) -> str:
    """The text of `routes.py`. Raises `RouteError`."""
    info = contract["info"]
    lines: list[str] = []
    paths: dict[str, dict[str, str]] = {}
    for template, item in contract["paths"].items():
        for method in METHODS:
            if method in item:
                lines += route_lines(template, method, item[method])
                name = constant(item[method]["operationId"])
                paths.setdefault(template, {})[method.upper()] = name
    check_distinct(list(paths))
    names = [name for methods in paths.values() for name in methods.values()]
    lines += [
        "",
        "ROUTES: tuple[Route, ...] = (",
        *(f"    {name}," for name in names),
        ")",
        "",
        *table_lines(paths),
    ]
    header = _HEADER.format(
        title=info["title"], version=info["version"], path=path, package=package
    )
    return header + "\n".join(lines) + "\n" + _MATCH


def generate(root: Path) -> dict[str, str | bytes]:
    """`routes.py` of both planes: relative path -> content. Raises `RouteError`."""
    return {
        f"generated/{package}/routes.py": routes_module(load_contract(root, path), package, path)
        for path, package in PLANES.items()
    }
