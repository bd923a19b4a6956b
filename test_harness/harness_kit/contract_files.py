"""The hand-written contracts as tests read them: the oracle beside the service's generated code."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

CONTRACTS = Path(__file__).resolve().parents[2] / "contracts"
PLANES = ("data", "control")
_METHODS = ("get", "post", "put", "delete", "patch")

# One id per kind of path that no test creates.
UNKNOWN_IDS = {
    "tasks": "00000000-0000-4000-8000-000000000000",
    "sessions": "00000000-0000-4000-8000-000000000000",
    "pools": "no-such-pool",
    "pool-managers": "no-such-manager",
    "catalog": "no-such-model",
    "artifacts": "no-such-artifact",
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One operation of a contract; `path` still has its `{id}`."""

    plane: str
    id: str
    method: str
    path: str
    roles: tuple[str, ...]
    has_body: bool

    @property
    def unknown_path(self) -> str:
        """Its path with an id that does not exist."""
        return self.path.replace("{id}", UNKNOWN_IDS.get(self.path.split("/")[2], ""))


@cache
def contract(plane: str) -> dict[str, Any]:
    """The OpenAPI document of a plane, parsed; shared, so not to be changed."""
    text = (CONTRACTS / "openapi" / f"{plane}.yaml").read_text(encoding="utf-8")
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def operations() -> Iterator[Operation]:
    """Every operation of both planes."""
    for plane in PLANES:
        for path, methods in contract(plane)["paths"].items():
            for method in _METHODS:
                if (operation := methods.get(method)) is not None:
                    yield Operation(
                        plane,
                        operation["operationId"],
                        method.upper(),
                        path,
                        tuple(operation["x-roles"]),
                        "requestBody" in operation,
                    )


def schema(plane: str, name: str) -> dict[str, Any]:
    """A component schema, references not resolved."""
    found: dict[str, Any] = contract(plane)["components"]["schemas"][name]
    return found
