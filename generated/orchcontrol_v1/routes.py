"""Routes of OrchControl v1 1.0.0. Generated from contracts/openapi/control.yaml; do not edit."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from orchcontrol_v1 import types


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


REGISTER_MODEL = Route(
    operation_id="register_model",
    method="POST",
    path="/v1/catalog/models",
    request=types.CatalogModel,
    success=201,
    roles=("control",),
    id_parameter=None,
)
GET_MODEL = Route(
    operation_id="get_model",
    method="GET",
    path="/v1/catalog/models/{id}",
    request=None,
    success=200,
    roles=("control",),
    id_parameter="id",
)
VERIFY_MODEL = Route(
    operation_id="verify_model",
    method="POST",
    path="/v1/catalog/models/{id}/verify",
    request=None,
    success=202,
    roles=("control",),
    id_parameter="id",
)
SET_MODEL_STATE = Route(
    operation_id="set_model_state",
    method="POST",
    path="/v1/catalog/models/{id}/state",
    request=types.ModelStateRequest,
    success=202,
    roles=("control",),
    id_parameter="id",
)
DRAIN_POOL = Route(
    operation_id="drain_pool",
    method="POST",
    path="/v1/pools/{id}/drain",
    request=types.DrainRequest,
    success=202,
    roles=("control",),
    id_parameter="id",
)
RELOAD_POOL = Route(
    operation_id="reload_pool",
    method="POST",
    path="/v1/pools/{id}/reload",
    request=types.ReloadRequest,
    success=202,
    roles=("control",),
    id_parameter="id",
)
POOL_HEALTH = Route(
    operation_id="pool_health",
    method="GET",
    path="/v1/pools/{id}/health",
    request=None,
    success=200,
    roles=(
        "data",
        "control",
    ),
    id_parameter="id",
)
CORDON_POOL = Route(
    operation_id="cordon_pool",
    method="POST",
    path="/v1/pools/{id}/cordon",
    request=types.CordonRequest,
    success=202,
    roles=("control",),
    id_parameter="id",
)
RESUME_POOL = Route(
    operation_id="resume_pool",
    method="POST",
    path="/v1/pools/{id}/resume",
    request=types.CordonRequest,
    success=202,
    roles=("control",),
    id_parameter="id",
)
PROMOTE_POOL = Route(
    operation_id="promote_pool",
    method="POST",
    path="/v1/pools/{id}/promote",
    request=None,
    success=202,
    roles=("control",),
    id_parameter="id",
)
ROLLBACK_POOL = Route(
    operation_id="rollback_pool",
    method="POST",
    path="/v1/pools/{id}/rollback",
    request=None,
    success=202,
    roles=("control",),
    id_parameter="id",
)
LIST_POOL_MANAGERS = Route(
    operation_id="list_pool_managers",
    method="GET",
    path="/v1/pool-managers",
    request=None,
    success=200,
    roles=("control",),
    id_parameter=None,
)
REGISTER_POOL_MANAGER = Route(
    operation_id="register_pool_manager",
    method="PUT",
    path="/v1/pool-managers/{id}",
    request=types.PoolManagerReport,
    success=200,
    roles=("control",),
    id_parameter="id",
)
DEREGISTER_POOL_MANAGER = Route(
    operation_id="deregister_pool_manager",
    method="DELETE",
    path="/v1/pool-managers/{id}",
    request=None,
    success=202,
    roles=("control",),
    id_parameter="id",
)
GET_CONFIG = Route(
    operation_id="get_config",
    method="GET",
    path="/v1/config",
    request=None,
    success=200,
    roles=("control",),
    id_parameter=None,
)
RELOAD_CONFIG = Route(
    operation_id="reload_config",
    method="POST",
    path="/v1/config/reload",
    request=types.ConfigReloadRequest,
    success=200,
    roles=("control",),
    id_parameter=None,
)
REVERT_CONFIG = Route(
    operation_id="revert_config",
    method="POST",
    path="/v1/config/revert",
    request=None,
    success=200,
    roles=("control",),
    id_parameter=None,
)
LIST_DEVICES = Route(
    operation_id="list_devices",
    method="GET",
    path="/v1/devices",
    request=None,
    success=200,
    roles=(
        "data",
        "control",
    ),
    id_parameter=None,
)
LIST_REPLICASETS = Route(
    operation_id="list_replicasets",
    method="GET",
    path="/v1/replicasets",
    request=None,
    success=200,
    roles=(
        "data",
        "control",
    ),
    id_parameter=None,
)
GET_CAPABILITIES = Route(
    operation_id="get_capabilities",
    method="GET",
    path="/v1/capabilities",
    request=None,
    success=200,
    roles=(
        "data",
        "control",
    ),
    id_parameter=None,
)
CREATE_ARTIFACT = Route(
    operation_id="create_artifact",
    method="POST",
    path="/v1/artifacts",
    request=types.Artifact,
    success=201,
    roles=("data",),
    id_parameter=None,
)
GET_ARTIFACT = Route(
    operation_id="get_artifact",
    method="GET",
    path="/v1/artifacts/{id}",
    request=None,
    success=200,
    roles=("data",),
    id_parameter="id",
)

ROUTES: tuple[Route, ...] = (
    REGISTER_MODEL,
    GET_MODEL,
    VERIFY_MODEL,
    SET_MODEL_STATE,
    DRAIN_POOL,
    RELOAD_POOL,
    POOL_HEALTH,
    CORDON_POOL,
    RESUME_POOL,
    PROMOTE_POOL,
    ROLLBACK_POOL,
    LIST_POOL_MANAGERS,
    REGISTER_POOL_MANAGER,
    DEREGISTER_POOL_MANAGER,
    GET_CONFIG,
    RELOAD_CONFIG,
    REVERT_CONFIG,
    LIST_DEVICES,
    LIST_REPLICASETS,
    GET_CAPABILITIES,
    CREATE_ARTIFACT,
    GET_ARTIFACT,
)

_FIXED: dict[str, dict[str, tuple[Route, str | None]]] = {
    "/v1/catalog/models": {"POST": (REGISTER_MODEL, None)},
    "/v1/pool-managers": {"GET": (LIST_POOL_MANAGERS, None)},
    "/v1/config": {"GET": (GET_CONFIG, None)},
    "/v1/config/reload": {"POST": (RELOAD_CONFIG, None)},
    "/v1/config/revert": {"POST": (REVERT_CONFIG, None)},
    "/v1/devices": {"GET": (LIST_DEVICES, None)},
    "/v1/replicasets": {"GET": (LIST_REPLICASETS, None)},
    "/v1/capabilities": {"GET": (GET_CAPABILITIES, None)},
    "/v1/artifacts": {"POST": (CREATE_ARTIFACT, None)},
}
_FIXED_ALLOWED: dict[str, frozenset[str]] = {
    "/v1/catalog/models": frozenset(("POST",)),
    "/v1/pool-managers": frozenset(("GET",)),
    "/v1/config": frozenset(("GET",)),
    "/v1/config/reload": frozenset(("POST",)),
    "/v1/config/revert": frozenset(("POST",)),
    "/v1/devices": frozenset(("GET",)),
    "/v1/replicasets": frozenset(("GET",)),
    "/v1/capabilities": frozenset(("GET",)),
    "/v1/artifacts": frozenset(("POST",)),
}
# Prefix, suffix, their lengths, routes by method, allowed methods.
_WITH_ID: tuple[tuple[str, str, int, int, dict[str, Route], frozenset[str]], ...] = (
    (
        "/v1/catalog/models/",
        "",
        19,
        0,
        {"GET": GET_MODEL},
        frozenset(("GET",)),
    ),
    (
        "/v1/catalog/models/",
        "/verify",
        19,
        7,
        {"POST": VERIFY_MODEL},
        frozenset(("POST",)),
    ),
    (
        "/v1/catalog/models/",
        "/state",
        19,
        6,
        {"POST": SET_MODEL_STATE},
        frozenset(("POST",)),
    ),
    (
        "/v1/pools/",
        "/drain",
        10,
        6,
        {"POST": DRAIN_POOL},
        frozenset(("POST",)),
    ),
    (
        "/v1/pools/",
        "/reload",
        10,
        7,
        {"POST": RELOAD_POOL},
        frozenset(("POST",)),
    ),
    (
        "/v1/pools/",
        "/health",
        10,
        7,
        {"GET": POOL_HEALTH},
        frozenset(("GET",)),
    ),
    (
        "/v1/pools/",
        "/cordon",
        10,
        7,
        {"POST": CORDON_POOL},
        frozenset(("POST",)),
    ),
    (
        "/v1/pools/",
        "/resume",
        10,
        7,
        {"POST": RESUME_POOL},
        frozenset(("POST",)),
    ),
    (
        "/v1/pools/",
        "/promote",
        10,
        8,
        {"POST": PROMOTE_POOL},
        frozenset(("POST",)),
    ),
    (
        "/v1/pools/",
        "/rollback",
        10,
        9,
        {"POST": ROLLBACK_POOL},
        frozenset(("POST",)),
    ),
    (
        "/v1/pool-managers/",
        "",
        18,
        0,
        {"PUT": REGISTER_POOL_MANAGER, "DELETE": DEREGISTER_POOL_MANAGER},
        frozenset(
            (
                "DELETE",
                "PUT",
            )
        ),
    ),
    (
        "/v1/artifacts/",
        "",
        14,
        0,
        {"GET": GET_ARTIFACT},
        frozenset(("GET",)),
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
