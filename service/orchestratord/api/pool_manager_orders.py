"""Pool managers over HTTP: register and heartbeat, deregister, list.

connexion has checked the report against the contract; here is what a schema cannot say. Invariant:
a report with a mistake changes nothing. Requirements: ORCH-2101, OC-POOL-3001, OC-POOL-3003.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from orchestratord.api.errors import invalid
from orchestratord.services.pool_managers import (
    ManagerView,
    PoolManagerService,
    RegistrationRefused,
    ReportedReplica,
    UnknownManager,
)

Answer = tuple[Any, int]

# The contract's `PoolManagerId`; connexion does not look at path parameters.
_MANAGER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
# Anything else (`unknown`) is what an engine says that cannot tell.
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


class PoolManagerOrders:
    """The handlers, by operation id."""

    def __init__(self, managers: PoolManagerService) -> None:
        self._managers = managers
        self.handlers: dict[str, Callable[..., Any]] = {
            "list_pool_managers": self.list_pool_managers,
            "register_pool_manager": self.register_pool_manager,
            "deregister_pool_manager": self.deregister_pool_manager,
        }

    async def list_pool_managers(self) -> Answer:
        return [_document(view) for view in self._managers.views()], 200

    async def register_pool_manager(self, id: str, body: dict[str, Any]) -> Answer:
        if not _MANAGER_ID.fullmatch(id):
            raise invalid("id: no such pool manager", status=404)
        reports = _reports(body["replicas"])
        try:
            told = self._managers.register(id, body["epoch"], body["lease_ms"], reports)
        except RegistrationRefused as error:
            raise invalid(str(error), status=409) from None
        return {
            "lease_ms": body["lease_ms"],
            "pools": list(told.pools),
            "unknown_pools": list(told.unknown_pools),
        }, 200

    async def deregister_pool_manager(self, id: str) -> Answer:
        try:
            return _document(self._managers.deregister(id)), 202
        except UnknownManager as error:
            raise invalid(str(error), status=404) from None


def _document(view: ManagerView) -> dict[str, Any]:
    return {
        "id": view.id,
        "lease_ms_remaining": view.lease_ms_remaining,
        "replicas": view.replicas,
    }


def _reports(entries: list[dict[str, Any]]) -> list[ReportedReplica]:
    seen: set[tuple[str, str]] = set()
    reports = []
    for place, entry in enumerate(entries):
        key = (entry["pool_id"], entry["id"])
        if key in seen:
            message = f"replicas[{place}].id: {key[1]!r} stands twice in pool {key[0]}"
            raise invalid(message, status=409)
        seen.add(key)
        digest = entry.get("model_digest", "")
        reports.append(
            ReportedReplica(
                pool_id=entry["pool_id"],
                id=entry["id"],
                url=entry["url"],
                state=entry["state"],
                labels=tuple(sorted(entry.get("labels", {}).items())),
                model_digest=digest if _DIGEST.fullmatch(digest) else None,
                engine_version=entry.get("engine_version"),
                restarts=entry.get("restarts", 0),
                last_error=entry.get("last_error"),
            )
        )
    return reports
