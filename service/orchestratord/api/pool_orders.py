"""An operator's orders to pools over HTTP: drain, cordon, resume, reload, promote, rollback.

Each answers 202 with the pool's health as it is then; the order goes on behind it. Requirements:
ORCH-2101, ORCH-2102, ORCH-3031, ORCH-3033, OC-CTRL-2002, OC-CTRL-2003.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from orchestratord.api.errors import invalid
from orchestratord.services.drains import Conflict, DrainService, UnknownTarget
from orchestratord.services.overview import OverviewService
from orchestratord.services.rollouts import RolloutService

Answer = tuple[Any, int]


class PoolOrders:
    """The handlers, by operation id."""

    def __init__(
        self, overview: OverviewService, drains: DrainService, rollouts: RolloutService
    ) -> None:
        self._overview = overview
        self._drains = drains
        self._rollouts = rollouts
        self.handlers: dict[str, Callable[..., Any]] = {
            "drain_pool": self.drain_pool,
            "cordon_pool": self.cordon_pool,
            "resume_pool": self.resume_pool,
            "reload_pool": self.reload_pool,
            "promote_pool": self.promote_pool,
            "rollback_pool": self.rollback_pool,
        }

    async def drain_pool(self, id: str, body: dict[str, Any]) -> Answer:
        replica_id = body.get("replica_id")
        return self._done(id, lambda: self._drains.drain(id, body["deadline_ms"], replica_id))

    async def cordon_pool(self, id: str, body: dict[str, Any]) -> Answer:
        return self._done(id, lambda: self._drains.cordon(id, body.get("replica_id")))

    async def resume_pool(self, id: str, body: dict[str, Any]) -> Answer:
        return self._done(id, lambda: self._drains.resume(id, body.get("replica_id")))

    async def reload_pool(self, id: str, body: dict[str, Any]) -> Answer:
        # With both, the share is of the tasks of all other tenants.
        percent, tenants = body.get("canary_percent", 0), body.get("canary_tenants", ())
        return self._done(
            id,
            lambda: self._rollouts.reload(
                id, body["new_model_ref"], body.get("deadline_ms"), percent, tenants
            ),
        )

    async def promote_pool(self, id: str) -> Answer:
        return self._done(id, lambda: self._rollouts.promote(id))

    async def rollback_pool(self, id: str) -> Answer:
        return self._done(id, lambda: self._rollouts.rollback(id))

    def _done(self, pool_id: str, order: Callable[[], None]) -> Answer:
        try:
            order()
        except UnknownTarget as error:
            raise invalid(str(error), status=404) from None
        except Conflict as error:
            raise invalid(str(error), status=409) from None
        return self._overview.pool_health(pool_id), 202
