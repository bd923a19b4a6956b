"""Shares, quotas and rates after a crash, from the records that the services themselves wrote."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from harness_kit.core_builders import T0_MS, make_pool
from harness_kit.service_clients import draft
from harness_kit.service_world import PROFILE, ServiceWorld, Setup, run_world
from orchestrator_core.errors import Reason, Refusal
from orchestrator_core.limits import Limits
from orchestrator_core.pool import PreemptionMode, PreemptionPolicy, TenantPolicy
from orchestrator_core.task import Determinism, Priority
from orchestratord.services import records
from worker_adapters.mock.script import MockScript

# 4 tokens a task, 10 ms a token, one slot: a task takes 40 ms.
TASK_S = 0.04


def setup_of(*tenants: TenantPolicy, pool: dict[str, Any] | None = None, **changes: Any) -> Setup:
    spec = make_pool(sampler_profile_version=PROFILE, tenants=tenants, **(pool or {}))
    return Setup(pool=spec, **changes)


WEIGHTED = (TenantPolicy("acme", weight=3), TenantPolicy("umbra", weight=1))


def order_of_decodes(crashes_s: list[float]) -> list[str]:
    """Equal backlogs of two tenants, and crashes so long after each other: tenants in the order in
    which the engine first heard of their tasks."""
    order: list[str] = []

    async def scenario(world: ServiceWorld) -> None:
        tenant_of = {}
        for number in range(40):
            tenant = ("acme", "umbra")[number % 2]
            of = draft(number, tenant=tenant)
            tenant_of[of.task_id] = tenant
            await world.admit(of)
        for after_s in crashes_s:
            await world.advance(after_s)
            world.crash()
            world.restart()
        await world.advance(60 * TASK_S)
        order.extend(tenant_of[task] for task in dict.fromkeys(world.decodes))

    run_world(scenario, setup_of(*WEIGHTED))
    return order


@pytest.mark.req("ORCH-3203", partial="a process that dies")
@pytest.mark.req("ORCH-3075", partial="that shares survive a restart")
@pytest.mark.parametrize(
    "crashes_s", [[0.3], [0.05, 0.05, 0.05], [0.21, 0.13, 0.0, 0.33, 0.09]], ids=str
)
def test_the_order_over_crashes_is_that_of_a_run_without(crashes_s: list[float]) -> None:
    undisturbed = order_of_decodes([])

    disturbed = order_of_decodes(crashes_s)

    assert disturbed == undisturbed
    assert undisturbed[:24].count("acme") == 18


@pytest.mark.req("ORCH-3075", partial="that shares survive a restart")
@pytest.mark.parametrize("slots", [1, 2])
def test_a_history_of_which_one_tenants_half_is_forgotten_favours_nobody(slots: int) -> None:
    async def scenario(world: ServiceWorld) -> None:
        # All of acme in a session that is over before the crash; umbra came later, so that what is
        # known of it is kept longer.
        early = "00000000-0000-4000-9000-00000000aaaa"
        for number in range(100):
            await world.admit(draft(number, session_id=early))
            await world.advance(0 if number else TASK_S / 2)  # slots are not free at the same time
        await world.advance(1.0)
        for number in range(100, 180):
            await world.admit(draft(number, tenant="umbra"))
        await world.advance(1.2)
        kept = world.disk_records()
        ended = [record.tenant for record in kept if isinstance(record, records.TaskEnded)]
        # What had been served of both, and what the journal still knows whole of each.
        known = [record.task_id for record in kept if isinstance(record, records.TaskAdmitted)]
        assert ended.count("umbra") >= 10
        assert draft(0).task_id not in known
        assert draft(100).task_id in known

        before = len(world.decodes)
        world.crash()
        world.restart()
        await world.advance(20 * TASK_S)

        tenants = ["acme" if int(task[-3:]) < 100 else "umbra" for task in world.decodes[before:]]
        assert all(8 <= tenants[:count].count("acme") * 20 / count <= 12 for count in (10, 20))

    limits = Limits(session_max_turns=10**6, session_ttl_ms=2_000)
    engines = {"r0": MockScript(slots_total=slots, token_delay_ms=10)}
    run_world(scenario, setup_of(retain_s=0, limits=limits, engines=engines))


@pytest.mark.req("ORCH-3077", "ORCH-3036", "ORCH-3006", partial="that they hold after a restart")
@pytest.mark.parametrize(
    ("tenant", "pool", "reason"),
    [
        (TenantPolicy("acme", rps=3.0), {}, Reason.QUOTA),
        # Each reserves 3 + 4 tokens and has not ended.
        (TenantPolicy("acme", tokens_per_minute=23), {}, Reason.QUOTA),
        (TenantPolicy("acme"), {"rate_limit_rps": 3.0}, Reason.RATE_LIMIT),
    ],
)
def test_a_crash_gives_back_nothing_of_what_was_used(
    tenant: TenantPolicy, pool: dict[str, Any], reason: Reason
) -> None:
    async def scenario(world: ServiceWorld) -> None:
        for number in range(3):
            await world.admit(draft(number))

        world.crash()
        world.restart()
        refused, other = world.submit(draft(3)), world.submit(draft(4, tenant="umbra"))
        await world.settle()

        assert isinstance(refused.outcome, Refusal)
        assert refused.outcome.reason is reason
        assert other.admitted

    run_world(scenario, setup_of(tenant, pool=pool))


@pytest.mark.req("ORCH-3036", partial="that it holds after a restart")
def test_tokens_that_an_ended_task_did_not_use_are_the_tenants_again_after_a_crash() -> None:
    async def scenario(world: ServiceWorld) -> None:
        # 2 + 50 reserved, cancelled after two tokens; the minute's worth is 60.
        one = draft(1, max_tokens=50, prompt="one two", expected_tokens=4)
        await world.admit(one)
        await world.advance(0.025)
        world.cancel(one)
        await world.settle()

        world.crash()
        world.restart()
        fits = world.submit(draft(2, max_tokens=50, prompt="one two", expected_tokens=4))
        await world.settle()
        too_much = world.submit(draft(3, max_tokens=4, prompt="one two"))
        await world.settle()

        assert fits.admitted
        assert isinstance(too_much.outcome, Refusal)

    tenant = TenantPolicy("acme", tokens_per_minute=56)
    run_world(scenario, setup_of(tenant, exact_counts=True))


@pytest.mark.req("ORCH-3077", partial="that it holds after a restart")
def test_a_task_that_the_crash_ended_holds_no_place_of_its_tenant() -> None:
    async def scenario(world: ServiceWorld) -> None:
        running = draft(1, determinism=Determinism.BEST_EFFORT, max_tokens=40)
        await world.admit(running)
        waiting = draft(2)
        await world.admit(waiting)
        await world.advance(0.025)

        world.crash()
        world.restart()
        await world.advance(1.0)

        assert world.life.recovered.reset == 1
        assert world.read(waiting).finished
        assert world.decodes == [running.task_id, waiting.task_id]

    run_world(scenario, setup_of(TenantPolicy("acme", max_concurrent=1)))


@pytest.mark.req("ORCH-3099", partial="that budgets survive a restart")
def test_a_task_that_the_crash_ended_has_used_the_same_in_every_later_life() -> None:
    async def scenario(world: ServiceWorld) -> None:
        running = draft(1, determinism=Determinism.BEST_EFFORT, max_tokens=40, prompt="a b c")
        await world.admit(running)
        await world.advance(0.025)
        left = []
        for _ in range(3):
            world.crash()
            world.restart()
            await world.settle()
            session = world.life.sessions.get("acme", running.session_id)
            assert session is not None
            left.append(session.tokens_budget_remaining)

        assert left == [97, 97, 97]

    run_world(scenario, setup_of(exact_counts=True, limits=Limits(budget_tokens=100)))


@pytest.mark.req("ORCH-3085", partial="that its cost survives a restart")
def test_the_end_of_a_task_that_gave_way_is_written_as_such() -> None:
    async def scenario(world: ServiceWorld) -> None:
        for number in range(3):  # speed is known then
            await world.admit(draft(number))
        await world.advance(1.0)
        await world.admit(draft(3, max_tokens=100))
        for number in (4, 5):
            await world.admit(draft(number, priority=Priority.BATCH, max_tokens=10))
        await world.admit(draft(6, max_tokens=100))  # ten batch tokens cost as much as 80 of these
        urgent = world.submit(draft(7, tenant="umbra", max_tokens=4, deadline_ms=2_150))
        await world.settle()

        ends = [r for r in world.disk_records() if isinstance(r, records.TaskEnded) and r.gave_way]
        assert urgent.admitted
        assert [end.task_id for end in ends] == [draft(5).task_id]

    soft = {"preemption": PreemptionPolicy(PreemptionMode.SOFT)}
    run_world(scenario, setup_of(pool=soft))


@pytest.mark.req("ORCH-3203", partial="a process that dies")
def test_a_journal_of_the_version_before_counts_from_the_arrival_of_its_tasks() -> None:
    async def scenario(world: ServiceWorld) -> None:
        await world.admit(draft(1))
        for row, kept in world.disk.rows.items():
            older = []
            for data in kept:
                fields = msgspec.msgpack.decode(data)
                if fields[0] == "admitted":
                    assert fields.pop() == T0_MS  # admitted_ms
                older.append(msgspec.msgpack.encode(fields))
            world.disk.rows[row] = older

        world.crash()
        world.restart()
        refused = world.submit(draft(2))
        await world.settle()

        assert isinstance(refused.outcome, Refusal)
        assert refused.outcome.retry_after_ms == 10_000

    logs = run_world(scenario, setup_of(TenantPolicy("acme", rps=0.1)))

    assert [line for line in logs if line["event"] == "journal.unreadable_record"] == []
