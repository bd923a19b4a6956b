"""How pools are, in the words of the contract: the pool host's view joined with what services know.

Part of the composition root: only it sees both sides. Read by `GET /v1/pools/{id}/health`,
`/readyz` and the replica sets. Requirements: ORCH-2103, ORCH-3201, OC-CTRL-2001, OC-POOL-3003.
"""

from __future__ import annotations

from typing import Any

from orchestratord.services.dispatch import Dispatcher
from orchestratord.services.drains import DrainService
from orchestratord.services.pool_managers import PoolManagerService, ReportedReplica
from orchestratord.services.replicas import ReplicaDirectory
from orchestratord.services.rollouts import RolloutService
from pool_managerd.observer import Cause
from pool_managerd.pool_host import PoolHost
from pool_managerd.replica import ReplicaView

# A pool's state by those of its replicas, as `PoolHost` has it; who is Ready and not in service is
# still being probed.
_BEST_FIRST = {
    "Ready": "Preloading",
    "SelfTest": "Preloading",
    "Preloading": "Preloading",
    "Draining": "Draining",
    "Unready": "Unready",
    "Backoff": "Unready",
    "Broken": "Unready",
}


class PoolHealthView:
    """`overview.PoolHealthSource` of this service."""

    def __init__(
        self,
        pool_host: PoolHost,
        replicas: ReplicaDirectory,
        drains: DrainService,
        rollouts: RolloutService,
        dispatcher: Dispatcher,
        managers: PoolManagerService,
    ) -> None:
        self._pool_host = pool_host
        self._replicas = replicas
        self._drains = drains
        self._rollouts = rollouts
        self._dispatcher = dispatcher
        self._managers = managers

    def pool_health(self, pool_id: str) -> dict[str, Any]:
        """The pool host's view in the words of the contract (`PoolHealthSource`)."""
        host_id = self._replicas.host_of(pool_id)
        view = self._pool_host.health(
            host_id, lambda name: self._replicas.home(host_id, name) == pool_id
        )
        draining = self._drains.is_draining(pool_id)
        health: dict[str, Any] = {
            "live": view.live,
            "ready": view.ready and not draining,
            "draining": view.draining or draining,
            "state": "Draining" if view.ready and draining else view.state,
            "model_ref": self._replicas.pools[pool_id].model,
        }
        if (reload := self._rollouts.status(pool_id)) is not None:
            health["reload"] = reload
        if view.last_error is not None:
            health["last_error"] = _last_error(view.last_error)
        own = {replica.id: self._replica_health(pool_id, replica) for replica in view.replicas}
        for name, report in self._managers.reported(pool_id).items():
            own[name] = _as_reported(own.get(name), name, report)
        health["replicas"] = [own[name] for name in sorted(own)]
        if not view.replicas and own:
            # Engines of managers that are not in service yet, or not any more.
            states = {replica["state"] for replica in own.values()}
            best = (public for state, public in _BEST_FIRST.items() if state in states)
            health["state"] = next(best, view.state)
            errors = [each["last_error"] for each in own.values() if "last_error" in each]
            if errors:
                health["last_error"] = max(errors, key=lambda error: int(error["at_ms"]))
        return health

    def _replica_health(self, pool_id: str, view: ReplicaView) -> dict[str, Any]:
        """`ReplicaHealth` of the contract."""
        take_overs = self._dispatcher.take_overs.of(pool_id, view.id)
        health: dict[str, Any] = {
            "id": view.id,
            "state": str(view.state),
            "cordoned": self._replicas.is_cordoned(pool_id, view.id),
            "model_ref": self._replicas.model_of(self._replicas.host_of(pool_id), view.id),
            "restarts": view.restarts,
            "failovers": take_overs.failovers,
            "mismatches": take_overs.mismatches,
        }
        if view.properties is not None:
            health["model_digest"] = view.properties.model_digest
            health["engine_version"] = view.properties.engine_version
        if view.last_error is not None:
            health["last_error"] = _last_error(view.last_error)
        return health

    def replica_state(self, pool_id: str, replica_id: str) -> str:
        host_id = self._replicas.host_of(pool_id)
        states = {r.id: r.state for r in self._pool_host.health(host_id).replicas}
        return str(states.get(replica_id, "Unloaded"))


def _as_reported(
    known: dict[str, Any] | None, name: str, report: ReportedReplica
) -> dict[str, Any]:
    """`ReplicaHealth` of a manager's replica: what only the manager knows of its engine, beside
    what is `known` here of one that is in service."""
    health = known or {"id": name, "state": report.state, "cordoned": False}
    health["restarts"] = report.restarts
    if report.last_error is not None and "last_error" not in health:
        health["last_error"] = dict(report.last_error)
    return health


def _last_error(cause: Cause) -> dict[str, Any]:
    """`LastError` of the contract."""
    return {"code": str(cause.code), "message": cause.message, "at_ms": cause.at_ms}
