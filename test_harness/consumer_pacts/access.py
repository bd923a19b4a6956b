"""What every operation answers to whom it does not serve: 401, 403, and 404 for what is not there.

Made from the contracts, so that a new operation is refused in a pact as well (OC-CTRL-2040).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from consumer_pacts.control_plane import BODIES, NOT_SERVED
from consumer_pacts.data_plane import READY, task
from consumer_pacts.interaction import Interaction, envelope, id_of
from harness_kit.contract_files import UNKNOWN_IDS, Operation, operations
from harness_kit.service_process import CONTROL_KEY, DATA_KEY, METRICS_KEY


def refusals(plane: str) -> Iterator[Interaction]:
    """Requests that nobody, somebody unknown, and somebody else sends, for each operation."""
    for operation in operations():
        if operation.plane != plane:
            continue
        yield _refused(operation, "without a key", None, 401, {"WWW-Authenticate": "Bearer"}, READY)
        yield _refused(operation, "with a key of nobody", "a-key-of-nobody", 403, {}, READY)
        yield _refused(
            operation,
            "with a key of another role",
            METRICS_KEY,
            403,
            {},
            "the key has no role but metrics",
        )
        if "{id}" in operation.path and operation.id not in {*NOT_SERVED, *_TAKES_ANY_ID}:
            yield _unknown(operation)


# An id that is not known yet is a registration.
_TAKES_ANY_ID = frozenset({"register_pool_manager"})


def _refused(
    operation: Operation,
    how: str,
    key: str | None,
    status: int,
    headers: dict[str, str],
    given: str,
) -> Interaction:
    return Interaction(
        operation.id,
        f"{operation.id} {how}",
        given,
        status,
        envelope("ADMISSION_REJECT", "send a key with the role"),
        headers,
        key,
        **_target(operation),
    )


def _unknown(operation: Operation) -> Interaction:
    return Interaction(
        operation.id,
        f"{operation.id} of what does not exist",
        "nothing of that id exists",
        404,
        envelope("INVALID_PARAMS", "id: not known"),
        key=DATA_KEY if "data" in operation.roles else CONTROL_KEY,
        **_target(operation),
    )


def _target(operation: Operation) -> dict[str, Any]:
    kind = operation.path.split("/")[2]
    body = (
        task("open", id_of(operation.id))
        if operation.id == "submit_task"
        else BODIES.get(operation.id)
    )
    return {"path_id": UNKNOWN_IDS[kind] if "{id}" in operation.path else None, "body": body}
