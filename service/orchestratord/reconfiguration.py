"""Applies what differs between two configurations to the running service (ORCH-3031).

Part of the composition root: only it knows every part that takes something from the configuration.
What is `live` changes in one step of the event loop. Engines that have to be replaced follow behind
it: another model of a launched pool is a reload (both models beside each other, no wait); of
external replicas the new ones come first, then the others go one by one; anything else drains the
pool's engines and starts new ones, while what waits keeps its place. The invariant: a pool has one
such change under way, and meanwhile no order of an operator concerns it.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

import structlog

from orch_config import Config
from orch_config.types import Pool
from orchestrator_core.events import LimitsChanged, PoolDraining
from orchestratord import settings
from orchestratord.api.gate import Gate
from orchestratord.api.http_server import HttpServer
from orchestratord.configuration.differences import Difference, Effect
from orchestratord.infra.logging import LineBuffer
from orchestratord.services.admission import AdmissionService
from orchestratord.services.cancellation import CancellationService
from orchestratord.services.drains import STOP_GRACE_S, DrainService
from orchestratord.services.jobs import JobTable
from orchestratord.services.replicas import ReplicaDirectory
from orchestratord.services.rollout import OVER, ReloadPhase
from orchestratord.services.rollouts import DEADLINE_MS, RolloutService
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.sessions import SessionService
from orchestratord.services.slo import SloService
from orchestratord.services.streams import ReaderHub
from orchestratord.services.telemetry import Telemetry
from pool_managerd.pool_host import PoolHost
from pool_managerd.settings import PoolSettings

log = structlog.get_logger("orchestratord.config")


class Reconfiguration:
    """`hot_reload.Changes` for this service; `ports` are its gates and servers."""

    def __init__(
        self,
        *,
        jobs: JobTable,
        hub: ReaderHub,
        scheduling: SchedulingService,
        admission: AdmissionService,
        cancellation: CancellationService,
        sessions: SessionService,
        slo: SloService,
        replicas: ReplicaDirectory,
        telemetry: Telemetry,
        pool_host: PoolHost,
        drains: DrainService,
        rollouts: RolloutService,
        took_over: Callable[[Config], None],
    ) -> None:
        """`took_over(config)` hears which configuration is in force."""
        self._jobs = jobs
        self._hub = hub
        self._scheduling = scheduling
        self._admission = admission
        self._cancellation = cancellation
        self._sessions = sessions
        self._slo = slo
        self._replicas = replicas
        self._telemetry = telemetry
        self._pool_host = pool_host
        self._drains = drains
        self._rollouts = rollouts
        self._took_over = took_over
        self.ports: list[tuple[Gate, HttpServer]] = []
        self.logs: LineBuffer | None = None
        self._under_way: dict[str, asyncio.Task[None]] = {}

    def conflict(self, changes: Sequence[Difference]) -> str | None:
        """A pool that another change, a reload or a drain has in hand."""
        for pool_id in dict.fromkeys(map(_pool_of, changes)):
            if pool_id is None:
                continue
            if pool_id in self._under_way:
                return f"pools[{pool_id}]: the last change of the configuration is still under way"
            status = self._rollouts.status(pool_id) if pool_id in self._replicas.pools else None
            if status is not None and status["phase"] == ReloadPhase.CANARY:
                return f"pools[{pool_id}]: a canary runs there: promote it or roll it back first"
            if all(c.effect is Effect.LIVE for c in changes if _pool_of(c) == pool_id):
                continue
            if status is not None and status["phase"] not in OVER:
                return f"pools[{pool_id}]: the pool is being reloaded ({status['phase']})"
            if self._drains.is_draining(pool_id):
                return f"pools[{pool_id}]: the pool is drained: resume it first"
        return None

    def apply(self, config: Config, changes: Sequence[Difference]) -> None:
        """Everything that is live now, engines behind it."""
        self._apply_live(config)
        pools = {pool.id: pool for pool in config.pools}
        for pool_id in dict.fromkeys(map(_pool_of, changes)):
            if pool_id is None:
                continue
            own = [change for change in changes if _pool_of(change) == pool_id]
            if pool_id not in pools:
                self._scheduling.step(PoolDraining(pool_id))  # now: nothing more is admitted
                self._begin(pool_id, self._remove(pool_id))
            elif own[0].effect is Effect.ADD:
                self._add(config, pools[pool_id])
            else:
                self._change(config, pools[pool_id], own)

    async def close(self) -> None:
        """The service stops: no change goes on; the pool host ends the engines."""
        works = list(self._under_way.values())
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    def _apply_live(self, config: Config) -> None:
        budgeted = settings.has_budget(config)
        if self.logs is not None:
            self.logs.redact(settings.secret_values(config))
        for gate, server in self.ports:
            gate.reconfigure(
                settings.key_ring(config),
                config.server.max_body_bytes,
                config.server.metrics_public,
            )
            server.max_body_bytes = config.server.max_body_bytes
        self._jobs.retain_ms = config.streams.retain_s * 1000
        self._jobs.retain_bytes = config.streams.retain_bytes
        cancels = config.streams.on_disconnect == "cancel"
        self._hub.on_abandoned = self._cancellation.request if cancels else None
        self._scheduling.step(LimitsChanged(settings.limits(config)))
        self._sessions.reconfigure(config.sessions.ttl_ms, budgeted=budgeted)
        self._admission.reconfigure(settings.sampler_profiles(config), exact_counts=budgeted)
        self._slo.reconfigure(settings.slo_objectives(config), settings.slo_notice_s(config))
        self._took_over(config)

    def _add(self, config: Config, pool: Pool) -> None:
        traits = settings.pool_traits(config, pool)
        self._replicas.add_pool(traits)
        self._telemetry.pool_added(traits.spec, settings.log_fields(pool))
        self._pool_host.add_pool(settings.pool_settings(pool))

    def _change(self, config: Config, pool: Pool, changes: Sequence[Difference]) -> None:
        traits = settings.pool_traits(config, pool)
        heavy = [change for change in changes if change.effect is Effect.REPLACE]
        self._telemetry.pool_added(traits.spec, settings.log_fields(pool))
        if not heavy:
            self._replicas.reconfigure(traits)
            return
        new = settings.pool_settings(pool)
        if _only(heavy, f"pools[{pool.id}].model") and pool.launch is not None:
            self._replicas.reconfigure(traits)
            self._rollouts.reload(pool.id, pool.model)
            self._pool_host.reconfigure(new)
        elif _only(heavy, f"pools[{pool.id}].replicas"):
            self._replicas.reconfigure(traits)
            self._begin(pool.id, self._exchange(pool.id, new))
        else:
            # Names and context hold at once for what is admitted; the engines that had other ones
            # get no more of it.
            members = self._drains.members(pool.id)
            own = [name for name in members if not self._pool_host.is_added(pool.id, name)]
            self._replicas.replace_pool(traits)
            for name in own:
                self._replicas.cordon(pool.id, name, True)
            self._begin(pool.id, self._replace(pool.id, own, new))

    async def _exchange(self, pool_id: str, new: PoolSettings) -> None:
        """New external replicas come, then the others go; one that only moved does so alone."""
        gone = self._pool_host.changed_external(new)
        before = self._pool_host.replica_ids(pool_id)
        self._pool_host.reconfigure(new)
        self._pool_host.populate(pool_id)
        for name in self._pool_host.replica_ids(pool_id):
            if name not in before:
                await self._pool_host.first_outcome(pool_id, name)
        for name in gone:
            await self._drains.retire(pool_id, [name], DEADLINE_MS)
            self._pool_host.populate(pool_id)
            await self._pool_host.first_outcome(pool_id, name)

    async def _replace(self, pool_id: str, names: Sequence[str], new: PoolSettings) -> None:
        """These replicas drain and go, then those of `new` start."""
        await self._drains.retire(pool_id, names, DEADLINE_MS)
        self._pool_host.reconfigure(new)
        self._pool_host.populate(pool_id)

    async def _remove(self, pool_id: str) -> None:
        names = self._drains.members(pool_id)
        await self._drains.retire(pool_id, names, DEADLINE_MS, whole_pool=True, for_good=True)
        self._rollouts.forget(pool_id)
        self._replicas.remove_pool(pool_id)
        await self._pool_host.remove_pool(pool_id, STOP_GRACE_S)

    def _begin(self, pool_id: str, steps: Coroutine[Any, Any, None]) -> None:
        work = asyncio.create_task(steps, name=f"change of {pool_id}")
        self._under_way[pool_id] = work
        self._drains.hold(pool_id)
        work.add_done_callback(lambda done: self._ended(pool_id, done))

    def _ended(self, pool_id: str, work: asyncio.Task[None]) -> None:
        del self._under_way[pool_id]
        self._drains.release(pool_id)
        if work.cancelled():
            return
        if (error := work.exception()) is not None:
            log.error("config.change_failed", pool_id=pool_id, exc_info=error)
        else:
            log.info("config.change_ended", pool_id=pool_id)


def _pool_of(change: Difference) -> str | None:
    """The pool that a key is of; None for any other key."""
    if not change.key.startswith("pools["):
        return None
    return change.key.removeprefix("pools[").partition("]")[0]


def _only(changes: Sequence[Difference], key: str) -> bool:
    return all(change.key == key or change.key.startswith(f"{key}[") for change in changes)
