"""The pool host of a `ServiceWorld`: engines are launched, drained and stopped on virtual time.

Speaks `services.drains.Engines` over mock engines. A launched engine loads for `LOAD_S`, then it is
Ready or fails as the model's entry in `failing` says. Invariant: the directory hears of a replica
as the real pool host would tell it, Ready and lost in turns.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from worker_adapters.adapter_api.types import Health
from worker_adapters.mock.client import MockClient
from worker_adapters.mock.engine import LoopScheduler, MockEngine
from worker_adapters.mock.script import MockScript

if TYPE_CHECKING:
    from harness_kit.service_world import ServiceWorld

LOAD_S = 0.5
STOP_S = 0.1


@dataclass(frozen=True, slots=True)
class Failure:
    """Why an engine does not become Ready."""

    code: str
    message: str


class VirtualEngines:
    """Engines by name; `states` tells where each stands, in the words of the contract."""

    def __init__(self, world: ServiceWorld, pool_id: str) -> None:
        self._world = world
        self._pool_id = pool_id
        self.states = dict.fromkeys(world.engines, "Ready")
        self.models = dict.fromkeys(world.engines, "model")
        self.scripts: dict[str, MockScript] = {}  # of models that are not the pool's
        self.failing: dict[str, Failure] = {}
        self.launches = len(world.engines)
        self.urls: dict[str, str] = {}  # of those that somebody else runs
        self.room = 1000  # engines that fit at once
        self.external = False  # somebody else runs engines of the pool as well
        self._loads: dict[str, asyncio.TimerHandle] = {}

    # --- the orders --------------------------------------------------------------------------

    def replica_ids(self, pool_id: str) -> tuple[str, ...]:
        assert pool_id == self._pool_id
        return tuple(self.states)

    def launch_count(self, pool_id: str) -> int:
        return self.launches

    def has_external(self, pool_id: str) -> bool:
        return self.external

    def launch_model(self, pool_id: str, model: str, replica_ids: Sequence[str]) -> None:
        for name in replica_ids:
            assert name not in self.states
            self.models[name] = model
            self._world.engines[name] = MockEngine(self._script(model), LoopScheduler())
            self._load(name)

    def add_external(
        self,
        pool_id: str,
        replica_id: str,
        url: str,
        model_digest: str | None,
        labels: Sequence[tuple[str, str]],
    ) -> None:
        assert replica_id not in self.states
        self.urls[replica_id] = url
        self.models[replica_id] = "model"
        script = next(iter(self._world.setup.engines.values()))
        self._world.engines[replica_id] = MockEngine(script, LoopScheduler())
        self._load(replica_id)

    def drain_replica(self, pool_id: str, replica_id: str) -> bool:
        return self._turn(replica_id, "Ready", "Draining")

    def lift_replica(self, pool_id: str, replica_id: str) -> bool:
        return self._turn(replica_id, "Draining", "Ready")

    def stop_replica(
        self, pool_id: str, replica_id: str, grace_s: float, message: str
    ) -> Awaitable[None]:
        self.states[replica_id] = "Stopped"
        if (load := self._loads.pop(replica_id, None)) is not None:
            load.cancel()
        directory = self._world.life.replicas
        if directory.get(directory.home(pool_id, replica_id), replica_id) is not None:
            directory.replica_lost(pool_id, replica_id, Failure("drained", message))
        self._world.engines[replica_id].kill()
        return asyncio.sleep(STOP_S)

    def start_replica(self, pool_id: str, replica_id: str) -> None:
        if self.states[replica_id] == "Stopped":
            self._world.engines[replica_id].revive()
            self._load(replica_id)

    async def remove_replica(self, pool_id: str, replica_id: str, grace_s: float) -> None:
        if replica_id in self.states:
            await self.stop_replica(pool_id, replica_id, grace_s, "removed")
            self.states.pop(replica_id, None)
            self._world.engines.pop(replica_id, None)

    # --- engines -----------------------------------------------------------------------------

    def _turn(self, name: str, before: str, after: str) -> bool:
        if self.states.get(name) != before:
            return False
        self.states[name] = after
        return True

    def _script(self, model: str) -> MockScript:
        own = next(iter(self._world.setup.engines.values()))
        # Another model says other words, and is known by another digest.
        other = replace(own, salt=model, model_digest=f"sha256:{model}")
        return self.scripts.get(model, other)

    def _load(self, name: str) -> None:
        self.states[name] = "Preloading"
        fits = sum(state != "Stopped" for state in self.states.values()) <= self.room
        failure = self.failing.get(self.models[name])
        if not fits:
            failure = Failure("memory", f"{name} needs more memory than there is")
        loop, directory = self._world.loop, self._world.life.replicas

        def ready() -> None:
            self._loads.pop(name, None)
            engine = self._world.engines[name]
            if failure is not None:
                self.states[name] = "Unready"
                directory.preload_outcome(self._pool_id, name, False, failure)
            elif engine.health is Health.OK:
                self.states[name] = "Ready"
                work = loop.create_task(self._announce(name, engine))
                self._world.keep(work)

        self._loads[name] = loop.call_later(0.0 if not fits else LOAD_S, ready)

    async def _announce(self, name: str, engine: MockEngine) -> None:
        self._world.properties[name] = await MockClient(engine, None).properties()
        if self.states.get(name) == "Ready":
            self._world.probe(name)
