"""Reload, canary, promote and rollback: another model for a pool, without losing a task.

    preloading ──► switching ──► done            plain: all at once
    preloading ──► canary ──► switching ──► done       promoted
    any of them ──► rolling_back ──► rolled_back       and preloading ──► failed

New engines come up beside the old ones and stay hidden from the core until all of them are Ready.
Then one step of the event loop cordons the old ones, moves the names and puts the new ones in
service: no task is between two models. The old ones drain meanwhile, and a rollback before they are
gone is the same step the other way. Where there is not enough memory for both, the old ones go
first, and come back if the new ones fail. Invariant: until the switch no client notices anything
but, in that last case, the wait. Nothing of this outlives the service: a restart serves what the
configuration says. Requirements: ORCH-2102, ORCH-3031, ORCH-3033, OC-CTRL-2003.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Sequence
from dataclasses import replace
from typing import Any, assert_never

import structlog

from orchestrator_core.events import PoolDraining
from orchestrator_core.pool import CanaryShare
from orchestratord.services.drains import Conflict, DrainService, Engines, UnknownTarget
from orchestratord.services.replicas import ReplicaDirectory
from orchestratord.services.rollout import ReloadPhase, Rollout
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.telemetry import Telemetry
from worker_adapters.adapter_api.types import UNKNOWN_DIGEST

log = structlog.get_logger("orchestratord.rollouts")

DEADLINE_MS = 60_000
# The pool host's cause of a start that there is no memory for.
NO_MEMORY = "memory"


class _Failed(Exception):
    """The new engines cannot be made Ready."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class RolloutService:
    """Owns the reloads; one at a time for each pool."""

    def __init__(
        self,
        scheduling: SchedulingService,
        replicas: ReplicaDirectory,
        engines: Engines,
        drains: DrainService,
        telemetry: Telemetry,
    ) -> None:
        self._scheduling = scheduling
        self._replicas = replicas
        self._engines = engines
        self._drains = drains
        self._telemetry = telemetry
        self._rollouts: dict[str, Rollout] = {}
        # The names a pool has had from the start: they stay good whatever it serves.
        self._names: dict[str, frozenset[str]] = {}
        replicas.on_hidden = self._stir

    # --- orders ------------------------------------------------------------------------------

    def reload(
        self,
        pool_id: str,
        model: str,
        deadline_ms: int | None = None,
        percent: int = 0,
        tenants: Sequence[str] = (),
    ) -> None:
        """Begin to serve `model`; with a share, as a canary. Raises `UnknownTarget`, and `Conflict`
        where that cannot begin now."""
        self._check(pool_id)
        last = self._rollouts.get(pool_id)
        if last is not None and last.under_way:
            raise Conflict(f"pool {pool_id} is being reloaded ({last.phase}): roll that back first")
        if self._drains.is_draining(pool_id):
            raise Conflict(f"pool {pool_id} is drained: resume it first")
        rollout = Rollout(
            pool_id,
            self._replicas.pools[pool_id].model,
            model,
            DEADLINE_MS if deadline_ms is None else deadline_ms,
            percent,
            frozenset(tenants),
        )
        log.warning(
            "reload.started",
            **rollout.names,
            advice="change the model in the configuration file too: a restart serves what is there",
        )
        self._start(rollout, self._advance(rollout))

    def promote(self, pool_id: str) -> None:
        """The canary takes over all traffic. Raises `UnknownTarget`, and `Conflict` where there is
        none."""
        self._check(pool_id)
        rollout = self._rollouts.get(pool_id)
        if rollout is None or rollout.phase is not ReloadPhase.CANARY:
            raise Conflict(f"pool {pool_id} has no canary to promote")
        self._begin_switch(rollout)
        self._replicas.merge(pool_id, rollout.canary_id)
        self._end_switch(rollout, "promoted")
        self._start(rollout, self._retire_old(rollout))

    def rollback(self, pool_id: str) -> None:
        """Back to the model before the last reload, wherever that stands; nothing where it is there
        already. Raises `UnknownTarget`, and `Conflict` where nothing was reloaded."""
        self._check(pool_id)
        rollout = self._rollouts.get(pool_id)
        if rollout is None:
            raise Conflict(f"pool {pool_id} was not reloaded: there is nothing to go back to")
        match rollout.phase:
            case ReloadPhase.PRELOADING:
                self._move(rollout, ReloadPhase.ROLLING_BACK)
                self._start(rollout, self._give_up(rollout))
            case ReloadPhase.CANARY:
                self._move(rollout, ReloadPhase.ROLLING_BACK)
                self._start(rollout, self._end_canary(rollout))
            case ReloadPhase.SWITCHING:
                self._move(rollout, ReloadPhase.ROLLING_BACK)
                self._start(rollout, self._switch_back(rollout))
            case ReloadPhase.DONE:
                self._turn(rollout)
                self._move(rollout, ReloadPhase.ROLLING_BACK)
                self._start(rollout, self._advance(rollout))
            case ReloadPhase.FAILED if rollout.backwards:
                self._move(rollout, ReloadPhase.ROLLING_BACK)
                self._start(rollout, self._advance(rollout))
            case ReloadPhase.FAILED | ReloadPhase.ROLLING_BACK | ReloadPhase.ROLLED_BACK:
                pass  # it serves the old one, or is about to
            case _:
                assert_never(rollout.phase)

    def status(self, pool_id: str) -> dict[str, Any] | None:
        """`ReloadStatus` of the contract; None where the pool was never reloaded."""
        rollout = self._rollouts.get(self._replicas.host_of(pool_id))
        return None if rollout is None else rollout.status()

    def forget(self, pool_id: str) -> None:
        """The pool is gone: what was reloaded there is nobody's past."""
        rollout = self._rollouts.pop(pool_id, None)
        if rollout is not None and rollout.work is not None:
            rollout.work.cancel()
        self._names.pop(pool_id, None)

    async def close(self) -> None:
        """The service stops: no rollout goes on; the pool host ends the engines."""
        works = [r.work for r in self._rollouts.values() if r.work is not None]
        for work in works:
            work.cancel()
        await asyncio.gather(*works, return_exceptions=True)

    # --- the way forward ---------------------------------------------------------------------

    async def _advance(self, rollout: Rollout) -> None:
        pool_id = rollout.pool_id
        rollout.old = self._drains.members(pool_id)
        try:
            await self._preload(rollout)
        except _Failed as failure:
            self._failed(rollout, str(failure))
            return
        if self._drains.is_draining(pool_id):
            await self._drains.discard(pool_id, rollout.new)
            self._failed(rollout, f"pool {pool_id} was drained meanwhile")
            return
        if rollout.is_canary:
            self._begin_canary(rollout)
            return
        self._begin_switch(rollout)
        self._replicas.reveal(pool_id, rollout.new, pool_id)
        self._end_switch(rollout, "rolled-back" if rollout.backwards else "switched")
        await self._retire_old(rollout)

    async def _preload(self, rollout: Rollout) -> None:
        """All new engines are Ready, and hidden; where there is not enough memory the old ones are
        gone by then. Raises `_Failed`; then nothing of the new ones is left, and the old ones
        serve, or are started again."""
        pool_id = rollout.pool_id
        try:
            await self._launch(rollout)
            return
        except _Failed as failure:
            if failure.code != NO_MEMORY or rollout.is_canary:
                raise
            cause = str(failure)
        rollout.message = f"the old engines stop first: {cause}"
        log.warning("reload.old_first", **rollout.names, cause=cause)
        why = f"{rollout.new_model} does not fit beside {rollout.old_model}"
        try:
            await self._drains.pause(pool_id, rollout.old, rollout.deadline_ms, why)
            await self._launch(rollout)
        except BaseException:
            self._drains.reinstate(pool_id, rollout.old)
            raise
        rollout.message = ""

    async def _launch(self, rollout: Rollout) -> None:
        pool_id = rollout.pool_id
        rollout.new = names = self._new_names(pool_id)
        self._replicas.hide(pool_id, names, rollout.new_model)
        self._engines.launch_model(pool_id, rollout.new_model, names)
        try:
            while not all(self._replicas.hidden_ready(pool_id, name) for name in names):
                for name in names:
                    if (lost := self._replicas.hidden_lost(pool_id, name)) is not None:
                        raise _Failed(lost.code, f"replica {name}: {lost.message}")
                rollout.changed.clear()
                await rollout.changed.wait()
        except BaseException:
            await self._drains.discard(pool_id, names)
            raise

    def _new_names(self, pool_id: str) -> tuple[str, ...]:
        """Ids that nobody has; the same ones come again, so that metrics do not grow."""
        taken = set(self._engines.replica_ids(pool_id))
        generation = 1
        while any(name.startswith(f"{pool_id}-r{generation}-") for name in taken):
            generation += 1
        count = self._engines.launch_count(pool_id)
        return tuple(f"{pool_id}-r{generation}-{number}" for number in range(count))

    def _begin_canary(self, rollout: Rollout) -> None:
        traits = self._replicas.pools[rollout.pool_id]
        share = CanaryShare(rollout.pool_id, rollout.percent, rollout.tenants)
        refs = self._refs(rollout, rollout.new_model, rollout.new)
        spec = replace(traits.spec, id=rollout.canary_id, model_refs=refs, canary=share)
        self._replicas.add_pool(replace(traits, spec=spec, model=rollout.new_model))
        self._replicas.reveal(rollout.pool_id, rollout.new, rollout.canary_id)
        self._move(rollout, ReloadPhase.CANARY)
        self._count(rollout, "canary")

    def _begin_switch(self, rollout: Rollout) -> None:
        """First half of the one step in which the pool gets its other model."""
        pool_id = rollout.pool_id
        rollout.old = tuple(n for n in self._drains.members(pool_id) if n not in rollout.new)
        for name in rollout.old:
            self._replicas.cordon(pool_id, name, True)
        refs = self._refs(rollout, rollout.new_model, rollout.new)
        self._replicas.serve(pool_id, rollout.new_model, refs, rollout.old)

    def _end_switch(self, rollout: Rollout, outcome: str) -> None:
        back = rollout.backwards
        self._move(rollout, ReloadPhase.ROLLING_BACK if back else ReloadPhase.SWITCHING)
        self._count(rollout, outcome)

    async def _retire_old(self, rollout: Rollout) -> None:
        await self._drains.retire(rollout.pool_id, rollout.old, rollout.deadline_ms)
        back = rollout.backwards
        self._move(rollout, ReloadPhase.ROLLED_BACK if back else ReloadPhase.DONE)

    # --- the way back ------------------------------------------------------------------------

    @staticmethod
    def _turn(rollout: Rollout) -> None:
        """From now on it is a reload to what was served before."""
        rollout.old_model, rollout.new_model = rollout.new_model, rollout.old_model
        rollout.percent, rollout.tenants = 0, frozenset()
        rollout.backwards = True

    async def _give_up(self, rollout: Rollout) -> None:
        """The new engines were not in service yet; their task has ended and cleaned up."""
        self._move(rollout, ReloadPhase.ROLLED_BACK)
        self._count(rollout, "rolled-back")

    async def _end_canary(self, rollout: Rollout) -> None:
        canary_id = rollout.canary_id
        # Nothing new goes there, and what waits goes to the pool itself.
        self._scheduling.step(PoolDraining(canary_id))
        await self._drains.retire(canary_id, rollout.new, rollout.deadline_ms, whole_pool=True)
        self._replicas.remove_pool(canary_id)
        self._move(rollout, ReloadPhase.ROLLED_BACK)
        self._count(rollout, "rolled-back")

    async def _switch_back(self, rollout: Rollout) -> None:
        """Old engines that are still there take over again at once."""
        pool_id = rollout.pool_id
        left = self._engines.replica_ids(pool_id)
        old = tuple(name for name in rollout.old if name in left)
        if not any(self._replicas.get(pool_id, name) for name in old):  # they went just now
            self._turn(rollout)
            await self._advance(rollout)
            return
        for name in rollout.new:
            self._replicas.cordon(pool_id, name, True)
        refs = self._refs(rollout, rollout.old_model, old)
        self._replicas.serve(pool_id, rollout.old_model, refs, rollout.new)
        self._drains.reinstate(pool_id, old)
        self._count(rollout, "rolled-back")
        await self._drains.retire(pool_id, rollout.new, rollout.deadline_ms)
        self._move(rollout, ReloadPhase.ROLLED_BACK)

    # --- common to both ----------------------------------------------------------------------

    def _refs(self, rollout: Rollout, model: str, names: Sequence[str]) -> frozenset[str]:
        """What a task may call `model` in this pool: its names, and those that the pool has had
        from the start, but for one that is a digest: whoever asks for that wants those bytes."""
        pool_id = rollout.pool_id
        known = self._replicas.pools[pool_id].spec.model_refs
        names_ever = {name for name in known if "sha256:" not in name}
        refs = set(self._names.setdefault(pool_id, frozenset(names_ever)))
        for name in names:
            digest = self._digest(pool_id, name)
            if digest is not None and digest != UNKNOWN_DIGEST:
                refs.add(digest)
        return frozenset(refs | {model})

    def _digest(self, pool_id: str, name: str) -> str | None:
        if self._replicas.is_hidden(pool_id, name):
            properties = self._replicas.hidden_ready(pool_id, name)
            return None if properties is None else properties.model_digest
        known = self._replicas.get(self._replicas.home(pool_id, name), name)
        return None if known is None else known.properties.model_digest

    def _check(self, pool_id: str) -> None:
        traits = self._replicas.pools.get(pool_id)
        if traits is None:
            raise UnknownTarget("id: no such pool")
        self._drains.check_free(pool_id)
        if traits.spec.canary is not None:
            raise Conflict(f"pool {pool_id} is a canary: the order goes to {traits.spec.canary.of}")
        if not self._engines.launch_count(pool_id):
            raise Conflict(
                f"pool {pool_id} has only engines that somebody else runs: drain and resume its "
                "replicas one by one while you restart them with the other model"
            )

        if self._engines.has_external(pool_id):
            raise Conflict(
                f"pool {pool_id} has engines of ours and of somebody else: they would no longer "
                "serve the same model; make two pools of it"
            )

    def _start(self, rollout: Rollout, steps: Coroutine[Any, Any, None]) -> None:
        """`steps` go on for the pool, once what went on before has ended and cleaned up."""
        before = self._rollouts.get(rollout.pool_id)
        ending = before.work if before is not None else None
        self._rollouts[rollout.pool_id] = rollout
        if not rollout.at_ms:
            self._move(rollout, rollout.phase)
        rollout.work = asyncio.create_task(
            self._run(rollout, steps, ending), name=f"reload {rollout.pool_id}"
        )

    async def _run(
        self,
        rollout: Rollout,
        steps: Coroutine[Any, Any, None],
        ending: asyncio.Task[None] | None,
    ) -> None:
        try:
            if ending is not None:
                ending.cancel()
                await asyncio.wait({ending})
            await steps
        except Exception as error:
            # A defect here must not look like a reload that goes on for ever.
            log.exception("reload.defect", pool_id=rollout.pool_id)
            self._failed(rollout, repr(error))
        finally:
            steps.close()

    def _failed(self, rollout: Rollout, message: str) -> None:
        rollout.message = message
        self._move(rollout, ReloadPhase.FAILED)
        self._count(rollout, "failed")

    def _move(self, rollout: Rollout, phase: ReloadPhase) -> None:
        rollout.phase = phase
        rollout.at_ms = self._scheduling.clock_ms()
        write = log.error if phase is ReloadPhase.FAILED else log.info
        write("reload.phase", **rollout.names, phase=phase, cause=rollout.message)

    def _count(self, rollout: Rollout, outcome: str) -> None:
        if (traits := self._replicas.pools.get(rollout.pool_id)) is not None:
            self._telemetry.reloaded(traits.spec, outcome)

    def _stir(self, pool_id: str) -> None:
        if (rollout := self._rollouts.get(pool_id)) is not None:
            rollout.changed.set()
