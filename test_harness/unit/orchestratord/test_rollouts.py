"""Reload, canary, promote and rollback on virtual time: every phase, and what clients see of it."""

from __future__ import annotations

import pytest

from harness_kit.core_builders import make_pool
from harness_kit.service_clients import StreamClient, draft, token_events
from harness_kit.service_world import POOL, PROFILE, ServiceWorld, Setup, run_world
from harness_kit.virtual_engines import LOAD_S, Failure
from orchestratord.services.drafts import Draft
from orchestratord.services.drains import Conflict, UnknownTarget
from worker_adapters.mock.script import MockScript

ENGINE = MockScript(slots_total=4, token_delay_ms=10)
TWO = Setup(
    engines={"p-0": ENGINE, "p-1": ENGINE},
    pool=make_pool(sampler_profile_version=PROFILE),
)
OLD, NEW = "", "new"  # salts: what the model says
CANARY = f"{POOL}.canary"


async def started(world: ServiceWorld, of: Draft) -> StreamClient:
    await world.admit(of)
    return world.read(of)


def text(client: StreamClient) -> bytes:
    return b"".join(frame.raw for frame in client.tokens)


def said_by(salt: str, client: StreamClient) -> bool:
    """Whether the client has the whole answer of that model, and its end."""
    ended = client.terminal is not None and client.terminal.event == "end"
    return ended and text(client) == b"".join(token_events(client.draft, salt=salt))


def phase(world: ServiceWorld) -> str:
    status = world.life.rollouts.status(POOL)
    return "idle" if status is None else str(status["phase"])


def reloads(world: ServiceWorld, outcome: str) -> float:
    return world.metric("reloads_total", engine="llamacpp", pool_id=POOL, outcome=outcome)


async def switched(world: ServiceWorld) -> None:
    """The pool serves `new`."""
    world.life.rollouts.reload(POOL, "new")
    await world.advance(LOAD_S + 1.0)
    assert phase(world) == "done"


@pytest.mark.req("ORCH-2102", "ORCH-3031", "OC-CTRL-2003", partial="all but HTTP and processes")
class TestReload:
    def test_streams_end_on_the_old_model_and_new_tasks_get_the_new_one(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            before = [await started(world, draft(n, max_tokens=100)) for n in range(4)]

            world.life.rollouts.reload(POOL, "new")
            await world.advance(LOAD_S - 0.1)
            preloading = await started(world, draft(10))
            phase_before = phase(world)
            await world.advance(0.2)
            phase_after = phase(world)
            after = [await started(world, draft(20 + n)) for n in range(4)]
            by_name = await started(world, draft(30, model_ref="new"))
            await world.advance(2.0)

            assert (phase_before, phase_after, phase(world)) == ("preloading", "switching", "done")
            assert all(said_by(OLD, client) for client in (*before, preloading))
            assert all(said_by(NEW, client) for client in (*after, by_name))
            assert world.host.states == {"p-r1-0": "Ready", "p-r1-1": "Ready"}
            assert reloads(world, "switched") == 1
            assert world.life.replicas.pools[POOL].model == "new"

        run_world(scenario, TWO)

    def test_the_old_digest_is_not_served_any_more_and_the_new_one_is(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            old_digest = f"sha256:{'0' * 64}"
            before = await started(world, draft(1, model_ref=old_digest))
            await switched(world)

            refused = world.submit(draft(2, model_ref=old_digest))
            exact = await started(world, draft(3, model_ref="sha256:new"))
            await world.advance(1.0)

            assert said_by(OLD, before)
            assert not refused.admitted
            assert said_by(NEW, exact)

        run_world(scenario, TWO)

    @pytest.mark.parametrize("code", ["exited", "self-test", "preload-timeout"])
    def test_a_model_that_does_not_come_up_leaves_everything_as_it_was(self, code: str) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.host.failing["new"] = Failure(code, "it is broken")
            client = await started(world, draft(1, max_tokens=100))

            world.life.rollouts.reload(POOL, "new")
            await world.advance(2.0)
            after = await started(world, draft(2))
            await world.advance(1.0)

            status = world.life.rollouts.status(POOL)
            assert status is not None
            assert (status["phase"], "it is broken" in status["message"]) == ("failed", True)
            assert said_by(OLD, client)
            assert said_by(OLD, after)
            assert world.host.states == {"p-0": "Ready", "p-1": "Ready"}
            assert reloads(world, "failed") == 1

        run_world(scenario, TWO)

    def test_what_outlasts_the_deadline_ends_as_in_a_drain(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            client = await started(world, draft(1, max_tokens=300))

            world.life.rollouts.reload(POOL, "new", deadline_ms=200)
            await world.advance(LOAD_S + 0.5)

            assert client.terminal is not None
            assert client.terminal.data["code"] == "WORKER_RESET"
            assert client.terminal.data["retriable"]
            assert phase(world) == "done"

        run_world(scenario, TWO)

    def test_what_does_not_fit_beside_the_old_engines_comes_after_them(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.host.room = 2
            running = await started(world, draft(1, max_tokens=50))
            world.life.rollouts.reload(POOL, "new")
            await world.advance(0.2)
            stopping = dict(world.host.states)
            await world.advance(2.0)
            after = await started(world, draft(2))
            await world.advance(1.0)

            assert stopping == {"p-0": "Draining", "p-1": "Draining"}
            assert said_by(OLD, running)
            assert said_by(NEW, after)
            assert world.host.states == {"p-r1-0": "Ready", "p-r1-1": "Ready"}
            assert phase(world) == "done"

        run_world(scenario, TWO)

    def test_where_that_fails_the_old_engines_come_back(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.host.room = 2
            world.host.failing["new"] = Failure("exited", "it is broken")
            world.life.rollouts.reload(POOL, "new")
            await world.advance(3.0)
            after = await started(world, draft(2))
            await world.advance(1.0)

            assert phase(world) == "failed"
            assert world.host.states == {"p-0": "Ready", "p-1": "Ready"}
            assert said_by(OLD, after)

        run_world(scenario, TWO)

    def test_orders_that_make_no_sense_say_what_to_do(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            rollouts = world.life.rollouts
            with pytest.raises(UnknownTarget):
                rollouts.reload("nope", "new")
            with pytest.raises(Conflict, match="nothing to go back to"):
                rollouts.rollback(POOL)
            with pytest.raises(Conflict, match="no canary"):
                rollouts.promote(POOL)
            rollouts.reload(POOL, "new")
            with pytest.raises(Conflict, match="is being reloaded"):
                rollouts.reload(POOL, "newer")
            await world.advance(2.0)
            world.life.drains.drain(POOL, 1000)
            with pytest.raises(Conflict, match="resume it first"):
                rollouts.reload(POOL, "newer")
            world.life.drains.resume(POOL)
            world.host.external = True
            with pytest.raises(Conflict, match="make two pools of it"):
                rollouts.reload(POOL, "newer")
            world.host.launches = 0
            with pytest.raises(Conflict, match="somebody else runs"):
                rollouts.reload(POOL, "newer")

        run_world(scenario, TWO)

    def test_a_pool_that_is_drained_meanwhile_keeps_its_model(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.life.rollouts.reload(POOL, "new")
            await world.advance(0.1)
            world.life.drains.drain(POOL, 1000)
            await world.advance(2.0)

            assert phase(world) == "failed"
            assert world.host.states == {"p-0": "Stopped", "p-1": "Stopped"}

        run_world(scenario, TWO)


@pytest.mark.req("ORCH-2102", "ORCH-3033", "OC-CTRL-2003", partial="all but HTTP and processes")
class TestRollback:
    def test_while_it_preloads_nothing_has_happened(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.life.rollouts.reload(POOL, "new")
            await world.advance(0.1)
            world.life.rollouts.rollback(POOL)
            await world.advance(1.0)
            after = await started(world, draft(1))
            await world.advance(1.0)

            assert phase(world) == "rolled_back"
            assert world.host.states == {"p-0": "Ready", "p-1": "Ready"}
            assert said_by(OLD, after)

        run_world(scenario, TWO)

    def test_while_the_old_engines_drain_they_take_over_again_at_once(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            long = await started(world, draft(1, max_tokens=300))
            world.life.rollouts.reload(POOL, "new")
            await world.advance(LOAD_S + 0.1)
            on_new = await started(world, draft(2, max_tokens=50))
            in_between = phase(world)

            world.life.rollouts.rollback(POOL)
            await world.settle()
            after = await started(world, draft(3))
            await world.advance(5.0)

            assert in_between == "switching"
            assert phase(world) == "rolled_back"
            assert said_by(OLD, long)
            assert said_by(NEW, on_new)
            assert said_by(OLD, after)
            assert world.host.states == {"p-0": "Ready", "p-1": "Ready"}

        run_world(scenario, TWO)

    def test_when_they_are_gone_it_is_a_reload_backwards(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await switched(world)

            world.life.rollouts.rollback(POOL)
            during = phase(world)
            await world.advance(3.0)
            after = await started(world, draft(1))
            await world.advance(1.0)
            world.life.rollouts.rollback(POOL)
            await world.advance(3.0)

            assert (during, phase(world)) == ("rolling_back", "rolled_back")
            assert said_by("model", after)  # started again, with the reference of before
            assert world.life.replicas.pools[POOL].model == "model"
            assert len(world.host.states) == 2
            assert reloads(world, "rolled-back") == 1

        run_world(scenario, TWO)

    def test_ids_come_again_so_that_reloads_do_not_add_up(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            seen = set()
            for number in range(6):
                world.life.rollouts.reload(POOL, f"m{number}")
                await world.advance(3.0)
                seen |= set(world.host.states)

            assert seen == {"p-r1-0", "p-r1-1", "p-r2-0", "p-r2-1"}

        run_world(scenario, TWO)


@pytest.mark.req("ORCH-3033", partial="all but HTTP and processes")
class TestCanary:
    async def canary(self, world: ServiceWorld, percent: int = 50) -> None:
        world.life.rollouts.reload(POOL, "new", percent=percent)
        await world.advance(LOAD_S + 0.1)
        assert phase(world) == "canary"

    def test_a_share_of_the_tasks_goes_there_and_counts_for_itself(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await self.canary(world)
            clients = [await started(world, draft(n)) for n in range(40)]
            await world.advance(2.0)

            new = [said_by(NEW, client) for client in clients]
            old = [said_by(OLD, client) for client in clients]
            assert all(a != b for a, b in zip(new, old, strict=True))
            assert 10 <= sum(new) <= 30  # 20 +- 3.2; three sigma
            finished = {
                pool: world.metric(
                    "tasks_finished_total", engine="llamacpp", pool_id=pool,
                    priority="interactive", outcome="completed",
                )
                for pool in (POOL, CANARY)
            }  # fmt: skip
            assert finished == {POOL: sum(old), CANARY: sum(new)}
            assert reloads(world, "canary") == 1

        run_world(scenario, TWO)

    def test_tenants_can_be_named_instead(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.life.rollouts.reload(POOL, "new", tenants=["beta"])
            await world.advance(LOAD_S + 0.1)

            clients = {t: await started(world, draft(1, tenant=t)) for t in ("acme", "beta")}
            await world.advance(1.0)

            assert said_by(OLD, clients["acme"])
            assert said_by(NEW, clients["beta"])

        run_world(scenario, TWO)

    def test_promotion_disturbs_no_stream_on_either_side(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await self.canary(world)
            clients = [await started(world, draft(n, max_tokens=60)) for n in range(8)]
            await world.advance(0.2)

            world.life.rollouts.promote(POOL)
            next_one = world.submit(draft(100))  # in the same instant
            await world.settle()
            after = world.read(next_one.draft)
            await world.advance(5.0)

            assert all(said_by(OLD, c) or said_by(NEW, c) for c in clients)
            assert any(said_by(OLD, c) for c in clients)
            assert any(said_by(NEW, c) for c in clients)
            assert said_by(NEW, after)
            assert phase(world) == "done"
            assert list(world.life.replicas.pools) == [POOL]
            assert world.host.states == {"p-r1-0": "Ready", "p-r1-1": "Ready"}
            assert reloads(world, "promoted") == 1

        run_world(scenario, TWO)

    def test_rollback_disturbs_no_stream_on_either_side(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await self.canary(world)
            clients = [await started(world, draft(n, max_tokens=60)) for n in range(24)]
            await world.advance(0.2)

            world.life.rollouts.rollback(POOL)
            await world.settle()
            after = [await started(world, draft(100 + n)) for n in range(8)]
            await world.advance(5.0)

            assert all(said_by(OLD, c) or said_by(NEW, c) for c in clients)
            assert all(said_by(OLD, c) for c in after)
            assert phase(world) == "rolled_back"
            assert list(world.life.replicas.pools) == [POOL]
            assert world.host.states == {"p-0": "Ready", "p-1": "Ready"}

        run_world(scenario, TWO)

    def test_after_a_crash_the_configured_model_has_the_canary_s_tasks(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await self.canary(world, percent=99)
            waiting = [draft(n, max_tokens=100) for n in range(12)]
            for of in waiting:
                await world.admit(of)
            queued = [
                of for of in waiting
                if (job := world.life.jobs.get(of.key)) is not None
                and job.pool_id == CANARY and not job.attempts
            ]  # fmt: skip
            assert queued

            world.crash()
            for name in list(world.engines):
                if name.startswith("p-r"):
                    del world.engines[name]
            world.restart()
            await world.advance(10.0)

            assert all(said_by(OLD, world.read(of)) for of in queued)

        run_world(scenario, TWO)
