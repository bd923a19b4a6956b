"""When a change of the configuration has to wait for an operator's order on the same pool."""

from __future__ import annotations

from typing import cast

import pytest

from harness_kit.core_builders import make_pool
from harness_kit.service_world import POOL, PROFILE, ServiceWorld, Setup, run_world
from orchestratord.configuration.differences import Difference, Effect
from orchestratord.reconfiguration import Reconfiguration
from pool_managerd.pool_host import PoolHost
from worker_adapters.mock.script import MockScript

pytestmark = pytest.mark.req("ORCH-3031", partial="that the running service follows")

ENGINE = MockScript(slots_total=4, token_delay_ms=10)
TWO = Setup(
    engines={"p-0": ENGINE, "p-1": ENGINE},
    pool=make_pool(sampler_profile_version=PROFILE),
)
HEAVY = Difference(f"pools[{POOL}].ctx", 512, 1024, Effect.REPLACE)
LIGHT = Difference(f"pools[{POOL}].queue.capacity", 1, 2, Effect.LIVE)
ELSEWHERE = Difference("pools[q].ctx", 512, 1024, Effect.REPLACE)
OF_NO_POOL = Difference("streams.retain_s", 1, 2, Effect.LIVE)


def changes_of(world: ServiceWorld) -> Reconfiguration:
    life = world.life
    return Reconfiguration(
        jobs=life.jobs,
        hub=life.hub,
        scheduling=life.scheduling,
        admission=life.admission,
        cancellation=life.cancellation,
        sessions=life.sessions,
        slo=life.slo,
        replicas=life.replicas,
        telemetry=life.telemetry,
        pool_host=cast(PoolHost, world.host),  # nothing here reaches it
        drains=life.drains,
        rollouts=life.rollouts,
        took_over=lambda config: None,
    )


def test_a_drained_pool_takes_what_is_live_and_no_other_engines() -> None:
    async def scenario(world: ServiceWorld) -> None:
        changes = changes_of(world)
        before = changes.conflict([HEAVY, LIGHT])

        world.life.drains.drain(POOL, 1000)
        heavy, light = changes.conflict([LIGHT, HEAVY]), changes.conflict([LIGHT])
        others = changes.conflict([ELSEWHERE, OF_NO_POOL])
        world.life.drains.resume(POOL)

        assert before is None
        assert heavy == f"pools[{POOL}]: the pool is drained: resume it first"
        assert (light, others, changes.conflict([HEAVY])) == (None, None, None)

    run_world(scenario, TWO)


def test_a_reload_under_way_keeps_other_engines_waiting() -> None:
    async def scenario(world: ServiceWorld) -> None:
        changes = changes_of(world)
        world.life.rollouts.reload(POOL, "new")

        heavy, light = changes.conflict([HEAVY]), changes.conflict([LIGHT])
        await world.advance(2.0)

        assert heavy == f"pools[{POOL}]: the pool is being reloaded (preloading)"
        assert (light, changes.conflict([HEAVY])) == (None, None)

    run_world(scenario, TWO)


def test_a_canary_keeps_every_change_of_its_pool_waiting() -> None:
    async def scenario(world: ServiceWorld) -> None:
        changes = changes_of(world)
        world.life.rollouts.reload(POOL, "new", percent=50)
        await world.advance(2.0)

        light, others = changes.conflict([LIGHT]), changes.conflict([ELSEWHERE])

        assert light == (f"pools[{POOL}]: a canary runs there: promote it or roll it back first")
        assert others is None

    run_world(scenario, TWO)
