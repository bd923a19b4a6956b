"""Leases of pool managers and what becomes of their engines, on virtual time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from structlog.testing import capture_logs

from harness_kit.core_builders import make_pool
from harness_kit.service_clients import StreamClient, draft, token_events
from harness_kit.service_world import POOL, PROFILE, ServiceWorld, Setup, run_world
from orchestrator_core.pool import FullPolicy
from orchestratord.services.pool_managers import (
    DEVICE_FAULTS,
    LEAVE_MS,
    MANAGERS_MAX,
    MEMORY_KINDS,
    PoolManagerService,
    Registration,
    RegistrationRefused,
    ReportedReplica,
    UnknownManager,
)
from pool_managerd import observer
from worker_adapters.mock.script import MockScript

ONE = Setup(
    engines={"r0": MockScript(slots_total=1, token_delay_ms=10)},
    pool=make_pool(sampler_profile_version=PROFILE, policy=FullPolicy.REJECT),
)
# A task of 100 tokens takes longer than the lease and the time to leave together.
SLOW = replace(ONE, engines={"r0": MockScript(slots_total=1, token_delay_ms=200)})
LEASE_MS = 3000
# Longer than an engine of the harness takes to be Ready, shorter than the lease.
UP_S = 1.0


def managers_of(world: ServiceWorld) -> PoolManagerService:
    return PoolManagerService(world.life.replicas, world.host, world.life.drains)


def reported(
    name: str = "e0", state: str = "Ready", port: int = 9001, pool_id: str = POOL
) -> ReportedReplica:
    return ReportedReplica(pool_id, name, f"http://127.0.0.1:{port}", state)


def beat(
    managers: PoolManagerService, *reports: ReportedReplica, name: str = "m", epoch: str = "1"
) -> Registration:
    return managers.register(name, epoch, LEASE_MS, reports)


async def stream_on_manager(world: ServiceWorld, seed: int) -> StreamClient:
    """A stream on the manager's engine: the other one is busy with a longer task."""
    await world.admit(draft(seed + 100, max_tokens=110))
    of = draft(seed, max_tokens=100)
    await world.admit(of)
    client = world.read(of)
    await world.advance(0.055)
    assert world.life.scheduling.scheduler.leased(POOL, "m.e0")
    return client


def assert_undisturbed(client: StreamClient) -> None:
    """All tokens, byte for byte, each once, and a good end."""
    tokens = token_events(client.draft)
    blocks = [block + b"\n\n" for block in client.raw.split(b"\n\n")]
    assert [block for block in blocks if block.startswith(b"event: token\n")] == tokens
    assert client.terminal is not None
    assert client.terminal.event == "end"


@pytest.mark.req("OC-POOL-3001", "OC-POOL-3003", "ORCH-3010", partial="processes and HTTP")
class TestLease:
    def test_a_reported_engine_takes_work_once_it_was_probed(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            managers = managers_of(world)

            told = beat(managers, reported(), reported("e1", pool_id="elsewhere"))
            at_once = world.life.replicas.get(POOL, "m.e0")
            await world.advance(UP_S)

            assert told == Registration((POOL,), ("elsewhere",))
            assert at_once is None
            assert world.life.replicas.get(POOL, "m.e0") is not None
            assert world.host.urls == {"m.e0": "http://127.0.0.1:9001"}
            (view,) = managers.views()
            assert (view.id, view.lease_ms_remaining, view.replicas) == ("m", 2000, 1)

        run_world(scenario, ONE)

    def test_heartbeats_keep_it_and_their_absence_ends_it(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            managers = managers_of(world)
            for _ in range(5):
                beat(managers, reported())
                await world.advance(2.9)
            kept = world.life.replicas.get(POOL, "m.e0")

            with capture_logs() as logs:
                await world.advance(1.0)
                beat(managers, reported(), epoch="2")
                await world.advance(UP_S)

            assert kept is not None
            assert [line["event"] for line in logs if line["event"].startswith("manager.")] == [
                "manager.lease_expired",
                "manager.returned",
            ]
            assert world.life.replicas.get(POOL, "m.e0") not in (None, kept)

        run_world(scenario, ONE)

    def test_another_start_waits_until_the_lease_of_the_last_one_is_over(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            managers = managers_of(world)
            beat(managers, reported(), epoch="1")
            await world.advance(LEASE_MS / 1000 - 0.01)

            with pytest.raises(RegistrationRefused, match=r"^epoch: another start"):
                beat(managers, reported(), epoch="2")
            await world.advance(0.02)
            beat(managers, reported(), epoch="2")

            assert len(managers) == 1

        run_world(scenario, ONE)

    def test_there_are_no_more_managers_than_allowed(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            managers = managers_of(world)
            for number in range(MANAGERS_MAX):
                beat(managers, name=f"m{number}")

            with pytest.raises(RegistrationRefused, match=rf"^id: {MANAGERS_MAX} "):
                beat(managers, name="one-more")
            beat(managers, name="m0")
            await managers.close()

            assert len(managers) == MANAGERS_MAX

        run_world(scenario, ONE)

    def test_a_strict_stream_moves_when_the_lease_has_been_over_for_a_while(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            managers = managers_of(world)
            beat(managers, reported())
            await world.advance(UP_S)
            beat(managers, reported())
            client = await stream_on_manager(world, 1)

            await world.advance((LEASE_MS + LEAVE_MS) / 1000 - 0.5)
            before = world.life.replicas.get(POOL, "m.e0")
            await world.advance(1.0)
            there = world.life.replicas.get(POOL, "m.e0")
            await world.advance(60.0)

            assert before is not None
            assert there is None
            assert_undisturbed(client)
            assert managers.views() == []

        run_world(scenario, SLOW)


@pytest.mark.req("ORCH-2101", partial="processes and HTTP")
class TestReplicas:
    def test_one_that_drains_ends_its_stream_and_takes_no_more_until_it_is_ready(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            managers = managers_of(world)
            beat(managers, reported())
            await world.advance(UP_S)

            beat(managers, reported(state="Draining"))
            await world.settle()
            during = world.life.replicas.is_cordoned(POOL, "m.e0"), world.host.states["m.e0"]
            beat(managers, reported())

            assert during == (True, "Draining")
            assert not world.life.replicas.is_cordoned(POOL, "m.e0")
            assert world.host.states["m.e0"] == "Ready"

        run_world(scenario, ONE)

    def test_an_operators_cordon_outlives_a_drain_of_the_manager(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            managers = managers_of(world)
            beat(managers, reported())
            await world.advance(UP_S)
            world.life.drains.cordon(POOL, "m.e0")

            beat(managers, reported(state="Draining"))
            beat(managers, reported())

            assert world.life.replicas.is_cordoned(POOL, "m.e0")

        run_world(scenario, ONE)

    @pytest.mark.parametrize("state", ["Unready", "Backoff", "Preloading", "Stopped"])
    def test_one_that_is_not_ready_is_gone_at_once(self, state: str) -> None:
        async def scenario(world: ServiceWorld) -> None:
            managers = managers_of(world)
            beat(managers, reported())
            await world.advance(UP_S)
            client = await stream_on_manager(world, 1)

            beat(managers, reported(state=state))
            await world.settle()
            there = world.life.replicas.get(POOL, "m.e0")
            await world.advance(30.0)

            assert there is None
            assert_undisturbed(client)
            assert "m.e0" not in world.host.states

        run_world(scenario, ONE)

    def test_one_with_another_address_takes_the_place_of_the_last(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            managers = managers_of(world)
            beat(managers, reported(port=9001))
            await world.advance(UP_S)

            beat(managers, reported(port=9002))
            await world.advance(UP_S)

            assert world.host.urls["m.e0"] == "http://127.0.0.1:9002"
            assert world.life.replicas.get(POOL, "m.e0") is not None

        run_world(scenario, ONE)

    def test_a_name_of_the_configuration_is_not_taken_over(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            managers = managers_of(world)
            world.host.states["m.e0"] = "Ready"

            with capture_logs() as logs:
                beat(managers, reported())

            assert [line["event"] for line in logs if line["log_level"] == "warning"] == [
                "manager.name_taken"
            ]
            assert managers.views()[0].replicas == 0

        run_world(scenario, ONE)


@pytest.mark.req("ORCH-2101", partial="processes and HTTP")
class TestGoodbye:
    def test_its_streams_end_in_peace_and_then_it_is_unknown(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            managers = managers_of(world)
            beat(managers, reported())
            await world.advance(UP_S)
            client = await stream_on_manager(world, 1)

            first = managers.deregister("m")
            with pytest.raises(RegistrationRefused, match="good-bye"):
                beat(managers, reported())
            await world.advance(0.5)
            second = managers.deregister("m")
            during = world.life.scheduling.scheduler.leased(POOL, "m.e0")
            await world.advance(5.0)

            assert (first.replicas, second.replicas, first.lease_ms_remaining) == (1, 1, 0)
            assert during
            assert_undisturbed(client)
            assert world.metric("failovers_total") == 0
            with pytest.raises(UnknownManager):
                managers.deregister("m")

        run_world(scenario, ONE)

    def test_one_without_engines_is_gone_at_once(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            managers = managers_of(world)
            beat(managers)

            view = managers.deregister("m")

            assert view.replicas == 0
            assert managers.views() == []

        run_world(scenario, ONE)


@pytest.mark.req("OC-POOL-3030", partial="VRAM and RAM use, and engines of the service's own")
def test_what_became_of_engines_between_two_reports_is_counted_once() -> None:
    def error(code: str, at_ms: int) -> dict[str, object]:
        return {"code": code, "message": "why", "at_ms": at_ms}

    async def scenario(world: ServiceWorld) -> None:
        managers = managers_of(world)
        first = replace(reported(), restarts=5, last_error=error("gpu-lost", 1))
        lost = replace(first, restarts=7, state="Backoff", last_error=error("gpu-lost", 2))
        starved = replace(lost, last_error=error("host-oom", 3))

        for report in (first, first, lost, lost, starved):
            beat(managers, report)

        labels = {"engine": "llamacpp", "pool_id": POOL}
        assert world.metric("replica_restarts_total", **labels, replica_id="m.e0") == 2
        assert world.metric("driver_reset_events_total", **labels, reason="gpu-lost") == 1
        assert world.metric("oom_events_total", **labels, reason="host-ram") == 1

    run_world(scenario, ONE)


def test_what_is_counted_is_what_the_engines_of_ours_count() -> None:
    assert {str(code): kind for code, kind in observer.MEMORY_KINDS.items()} == MEMORY_KINDS
    assert {str(code): fault for code, fault in observer.DEVICE_FAULTS.items()} == DEVICE_FAULTS
