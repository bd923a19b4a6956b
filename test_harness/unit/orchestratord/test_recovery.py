"""After a crash: what was promised is kept, byte for byte where it must be."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from harness_kit.core_builders import make_pool
from harness_kit.service_clients import draft, end_event, started_event, token_events
from harness_kit.service_world import POOL, PROFILE, ServiceWorld, Setup, run_world
from orchestrator_core.limits import Limits
from orchestrator_core.task import Determinism, Priority
from orchestratord.services import records
from orchestratord.services.drafts import Draft
from orchestratord.services.recovery import Recovered
from worker_adapters.mock.script import MockScript

SCRIPT = MockScript(slots_total=1, token_delay_ms=10)


def session_of(number: int) -> str:
    return f"00000000-0000-4000-9000-{number:012d}"


def waiting(world: ServiceWorld) -> list[str]:
    return list(world.life.scheduling.scheduler.waiting_keys(POOL))


async def fill(world: ServiceWorld, count: int, **changes: Any) -> list[Draft]:
    """One task that runs and `count` that wait behind it."""
    drafts = [draft(number, **changes) for number in range(count + 1)]
    for one in drafts:
        await world.admit(one)
    return drafts


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster")
@pytest.mark.req("ORCH-3201", partial="a worker that dies while the service lives")
def test_a_running_strict_task_goes_on_after_a_crash_as_if_nothing_had_happened() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1)
        submission = await world.admit(one)
        client = world.read(one)
        await world.advance(0.025)
        assert client.last_id == 3

        world.crash()
        world.restart()
        assert client.connect()
        await world.advance(1.0)

        assert submission.promise is not None
        whole = [started_event(submission.promise), *token_events(one), end_event(4, 40)]
        assert client.raw == b"".join(whole)
        assert world.life.recovered == Recovered(waiting=0, running=1, finished=0, reset=0)

    run_world(scenario)


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_queued_tasks_keep_their_order_and_what_ran_goes_first() -> None:
    async def scenario(world: ServiceWorld) -> None:
        drafts = await fill(world, 3)
        before = waiting(world)
        assert before == [one.key for one in drafts[1:]]

        world.crash()
        world.restart(ready=False)

        assert waiting(world) == [one.key for one in drafts]
        world.probe("r0")
        await world.advance(1.0)
        order = [one.task_id for one in drafts]
        assert world.decodes == [order[0], *order]

    run_world(scenario)


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_a_task_that_was_not_durable_is_not_known_and_its_client_had_no_answer() -> None:
    async def scenario(world: ServiceWorld) -> None:
        world.life.journal.hold()
        submission = world.submit(draft(1))
        await world.advance(0.1)

        world.crash()
        world.restart()
        await world.settle()

        assert submission.outcome is None
        assert len(world.life.jobs) == 0
        assert (await world.admit(draft(1))).admitted

    run_world(scenario)


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_a_running_best_effort_task_ends_with_worker_reset_after_a_crash() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1, determinism=Determinism.BEST_EFFORT)
        await world.admit(one)
        client = world.read(one)
        await world.advance(0.025)
        assert len(client.tokens) == 2

        world.crash()
        world.restart()
        assert client.connect()
        await world.advance(1.0)

        assert client.terminal is not None
        assert client.terminal.id == 4
        assert client.terminal.data["code"] == "WORKER_RESET"
        assert client.terminal.data["retriable"] is True
        assert client.terminal.on_disk
        assert world.decodes == [one.task_id]

    run_world(scenario)


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_a_best_effort_task_that_only_waited_runs_after_a_crash() -> None:
    async def scenario(world: ServiceWorld) -> None:
        _, one = await fill(world, 1, determinism=Determinism.BEST_EFFORT)

        world.crash()
        world.restart()
        client = world.read(one)
        await world.advance(1.0)

        assert [frame.raw for frame in client.tokens] == token_events(one)
        assert client.terminal is not None
        assert client.terminal.event == "end"

    run_world(scenario)


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster")
@pytest.mark.parametrize("waits", [True, False])
def test_a_client_that_is_ahead_of_the_log_still_gets_the_end_of_a_cancelled_task(
    waits: bool,
) -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1)
        await world.admit(one)
        client = world.read(one)
        await world.advance(0.035)
        assert len(client.tokens) == 3

        world.crash()
        world.restart(ready=not waits)
        assert client.connect()
        await world.advance(0.015)
        job = world.life.jobs.get(one.key)
        assert job is not None
        assert job.log.tokens == (0 if waits else 1)
        world.cancel(one)
        await world.settle()

        assert client.finished
        assert client.terminal is not None
        assert client.terminal.id == 5
        assert client.terminal.data["canceled"] is True
        world.crash()
        world.restart()
        again = world.read(one, last_event_id=4)
        assert again.terminal is not None
        assert again.terminal.raw == client.terminal.raw

    run_world(scenario)


@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster")
def test_a_finished_log_reads_the_same_after_a_restart() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1, max_tokens=40)
        await world.admit(one)
        client = world.read(one)
        await world.advance(1.0)

        world.crash()
        world.restart()
        again = world.read(one)
        late = world.read(one, last_event_id=20)

        assert again.raw == client.raw
        assert late.raw == b"".join(frame.raw for frame in client.numbered[20:])
        assert again.finished
        assert world.decodes == [one.task_id]

    run_world(scenario)


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_retention_counts_from_the_end_also_over_a_restart() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1)
        await world.admit(one)
        await world.advance(6.0)

        world.crash()
        world.restart()
        await world.advance(3.5)
        assert world.life.jobs.get(one.key) is not None
        await world.advance(1.0)

        assert world.life.jobs.get(one.key) is None

    run_world(scenario, Setup(retain_s=10))


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_an_end_that_was_shown_before_it_was_durable_comes_again() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1)
        await world.admit(one)
        client = world.read(one)
        await world.advance(0.015)
        world.life.journal.hold()
        await world.advance(0.1)
        assert client.terminal is not None
        assert not client.terminal.on_disk

        world.crash()
        world.restart()
        again = world.read(one)
        await world.advance(1.0)

        assert again.raw == client.raw

    run_world(scenario)


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
@pytest.mark.parametrize("determinism", list(Determinism))
def test_a_cancel_is_still_there_after_a_crash_at_the_moment_it_was_shown(
    determinism: Determinism,
) -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1, determinism=determinism)
        await world.admit(one)
        client = world.read(one)
        await world.advance(0.025)
        world.life.journal.hold()
        asked = world.cancel(one)
        await world.advance(0.1)
        assert client.terminal is None
        assert not asked.acknowledged

        world.life.journal.resume()
        while client.terminal is None:
            await world.settle()
        world.crash()
        world.restart()
        again = world.read(one)
        await world.advance(1.0)

        assert again.terminal is not None
        assert again.terminal.raw == client.terminal.raw
        assert world.decodes == [one.task_id]

    run_world(scenario)


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
@pytest.mark.req("ORCH-3079", partial="order and refusal")
def test_a_deadline_that_passed_while_the_service_was_down_ends_the_task() -> None:
    async def scenario(world: ServiceWorld) -> None:
        _, one = await fill(world, 1, max_tokens=200, deadline_ms=3_000)

        world.crash()
        await world.advance(4.0)
        world.restart()
        client = world.read(one)
        await world.advance(1.0)

        assert client.terminal is not None
        assert client.terminal.data["code"] == "DEADLINE_UNMET"
        assert client.terminal.id == 2

    run_world(scenario)


def test_tasks_of_a_model_that_nobody_serves_any_more_end_with_pool_unavailable() -> None:
    async def scenario(world: ServiceWorld) -> None:
        _, one = await fill(world, 1)
        rows = world.disk.rows
        for row, kept in rows.items():
            moved = []
            for data in kept:
                record = records.decode(data)
                if isinstance(record, records.TaskAdmitted):
                    record = msgspec.structs.replace(record, pool_id="gone", model_ref="gone")
                moved.append(records.encode(record))
            rows[row] = moved

        world.crash()
        world.restart()
        client = world.read(one)
        await world.settle()

        assert client.terminal is not None
        assert client.terminal.data["code"] == "POOL_UNAVAILABLE"
        assert client.terminal.data["retriable"] is True

    run_world(scenario)


@pytest.mark.req("ORCH-3021", partial="all but that turns survive a crash")
@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_turns_and_budgets_of_a_session_survive_a_crash() -> None:
    async def scenario(world: ServiceWorld) -> None:
        await world.admit(draft(1, session_id=session_of(9), prompt="one two three"))
        await world.advance(0.1)
        await world.admit(draft(2, session_id=session_of(9), prompt="one two"))
        before = world.life.sessions.get("acme", session_of(9))

        world.crash()
        world.restart(ready=False)

        after = world.life.sessions.get("acme", session_of(9))
        assert before is not None
        assert after is not None
        assert after.turns == before.turns == 2
        # The first has used 3 + 4 tokens, the second reserves 2 + 4.
        assert after.tokens_budget_remaining == before.tokens_budget_remaining == 87
        assert after.ttl_ms_remaining == before.ttl_ms_remaining

    run_world(scenario, Setup(limits=Limits(budget_tokens=100), exact_counts=True))


@pytest.mark.req("ORCH-2005", partial="that KV is freed")
@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_a_forgotten_session_stays_forgotten() -> None:
    async def scenario(world: ServiceWorld) -> None:
        await world.admit(draft(1, session_id=session_of(9)))
        await world.advance(0.1)
        assert await world.life.sessions.forget("acme", session_of(9))
        assert not await world.life.sessions.forget("acme", session_of(9))

        world.crash()
        world.restart()

        assert world.life.sessions.get("acme", session_of(9)) is None

    run_world(scenario)


def test_a_record_that_cannot_be_read_is_reported_and_the_rest_is_kept() -> None:
    async def scenario(world: ServiceWorld) -> None:
        _, one = await fill(world, 1)
        world.disk.rows[0] = [b"\xc1 not a record"]

        world.crash()
        world.restart()
        await world.advance(1.0)

        assert world.read(one).finished
        assert 0 not in world.disk.rows

    logs = run_world(scenario)

    assert [line["row"] for line in logs if line["event"] == "journal.unreadable_record"] == [0]


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_what_began_under_an_id_that_was_used_before_is_known_to_have_begun() -> None:
    async def scenario(world: ServiceWorld) -> None:
        one = draft(1, determinism=Determinism.BEST_EFFORT)
        await world.admit(one)
        await world.advance(6.0)
        assert world.life.jobs.get(one.key) is None
        assert world.is_admitted_on_disk(one)  # its session lives on
        await world.admit(one)
        client = world.read(one)
        await world.advance(0.025)
        assert len(client.tokens) == 2

        world.crash()
        world.restart()
        assert client.connect()
        await world.advance(1.0)

        assert len(world.decodes) == 2
        assert client.terminal is not None
        assert client.terminal.data["code"] == "WORKER_RESET"

    run_world(scenario, Setup(retain_s=5))


class TestRowsOfTheJournal:
    """No growth: what a restart does not need is forgotten."""

    @pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
    @pytest.mark.parametrize("determinism", list(Determinism))
    def test_all_rows_of_a_task_are_freed_after_its_retention(
        self, determinism: Determinism
    ) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await fill(world, 2, determinism=determinism)
            await world.advance(1.0)
            assert world.disk.rows

            await world.advance(11.0)

            assert len(world.life.jobs) == 0
            assert world.disk.rows == {}

        run_world(scenario, Setup(retain_s=5, limits=Limits(session_ttl_ms=10_000)))

    def test_the_row_of_an_end_that_came_after_its_task_was_forgotten_is_freed(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.advance(0.015)
            world.life.journal.hold()
            await world.advance(1.0)
            assert len(world.life.jobs) == 0  # kept for no time at all

            world.life.journal.resume()
            await world.advance(1.0)

            assert world.disk.rows == {}

        run_world(scenario, Setup(retain_s=0, limits=Limits(session_ttl_ms=10)))

    def test_a_late_end_outlives_the_admission_that_it_belongs_to(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            ended, lasting = draft(1), draft(2, max_tokens=400)
            world.submit(ended)
            world.submit(lasting)  # in the same commit
            await world.advance(0.015)
            world.life.journal.hold()
            await world.advance(1.0)
            assert world.life.jobs.get(ended.key) is None
            world.life.journal.resume()
            await world.advance(1.0)

            world.crash()
            world.restart()

            assert world.life.jobs.get(ended.key) is None
            assert world.life.recovered.running == 1

        setup = Setup(
            engines={"r0": replace(SCRIPT, slots_total=2)},
            retain_s=0,
            limits=Limits(session_ttl_ms=10),
        )
        run_world(scenario, setup)

    @pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
    @pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
    def test_an_id_that_is_used_again_after_its_retention_is_a_new_task_in_a_new_place(
        self,
    ) -> None:
        async def scenario(world: ServiceWorld) -> None:
            again, other = draft(1), draft(2)
            await world.admit(again)
            await world.advance(6.0)
            assert world.life.jobs.get(again.key) is None
            assert world.is_admitted_on_disk(again)  # its session lives on
            await world.admit(draft(3, max_tokens=100))
            await world.admit(other)
            await world.admit(again)
            assert waiting(world) == [other.key, again.key]

            world.crash()
            world.restart(ready=False)

            assert waiting(world) == [draft(3).key, other.key, again.key]
            world.probe("r0")
            await world.advance(3.0)
            assert world.read(again).terminal is not None
            await world.advance(30.0)
            assert world.disk.rows == {}

        pool = make_pool(sampler_profile_version=PROFILE)
        run_world(scenario, Setup(pool=pool, retain_s=5, limits=Limits(session_ttl_ms=20_000)))


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_priorities_keep_their_order_within_themselves() -> None:
    async def scenario(world: ServiceWorld) -> None:
        blocker = draft(0)
        await world.admit(blocker)
        mixed = [
            draft(n, priority=Priority.BATCH if n % 2 else Priority.INTERACTIVE)
            for n in range(1, 7)
        ]
        for one in mixed:
            await world.admit(one)
        before = waiting(world)

        world.crash()
        world.restart(ready=False)

        assert waiting(world) == [blocker.key, *before]

    run_world(scenario)


def test_a_forgotten_session_costs_a_row_for_one_lifetime_whatever_the_restarts() -> None:
    async def scenario(world: ServiceWorld) -> None:
        await world.admit(draft(1, session_id=session_of(9)))
        await world.advance(0.1)
        assert await world.life.sessions.forget("acme", session_of(9))
        forgotten = records.SessionForgotten("acme", session_of(9), world.clock_ms())

        for _ in range(3):
            await world.advance(9.0)
            assert forgotten in world.disk_records()
            world.crash()
            world.restart()
        await world.advance(3.5)

        assert world.disk.rows == {}

    run_world(scenario, Setup(retain_s=1, limits=Limits(session_ttl_ms=30_000)))


def test_a_session_that_an_older_version_forgot_is_still_read() -> None:
    known = records.decode(msgspec.msgpack.encode(["session-forgotten", "acme", "s1"]))

    assert known == records.SessionForgotten("acme", "s1", 0)
