"""Every end of a task: shown once, durable where it must be, its slot free."""

from __future__ import annotations

import asyncio
import hashlib
from typing import Any

import pytest

from harness_kit.core_builders import T0_MS, make_pool
from harness_kit.job_builders import job as make_job
from harness_kit.job_builders import task
from harness_kit.service_clients import draft, token_events
from harness_kit.service_world import POOL, PROFILE, ServiceWorld, Setup, run_world
from harness_kit.virtual_time import run_virtual
from orchestrator_core.pool import FullPolicy
from orchestrator_core.task import Determinism, Priority, Workload
from orchestratord.infra.memory_journal import MemoryDisk, MemoryJournal
from orchestratord.ports.journal import JournalError
from orchestratord.services import records
from orchestratord.services.jobs import Job, JobTable
from orchestratord.services.telemetry import Telemetry
from orchestratord.services.termination import TerminationService
from worker_adapters.adapter_api.text_pieces import escape
from worker_adapters.mock.script import MockScript

SLOW = MockScript(slots_total=1, token_delay_ms=100)
ONE_SLOT = Setup(engines={"r0": SLOW})


def job_of(world: ServiceWorld, number: int) -> Job:
    job = world.life.jobs.get(draft(number).key)
    assert job is not None
    return job


def full_pool(policy: FullPolicy) -> Setup:
    pool = make_pool(capacity=1, policy=policy, sampler_profile_version=PROFILE)
    return Setup(engines={"r0": SLOW}, pool=pool)


class TestCancel:
    """ORCH-3017 and ORCH-3026 in every state of a task."""

    @pytest.mark.req("ORCH-3026")
    @pytest.mark.req("ORCH-3017", "ORCH-2003", partial="all but the services' part")
    def test_a_running_task_gives_its_slot_back_at_once_and_no_token_follows(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1, max_tokens=50))
            client = world.read(draft(1, max_tokens=50))
            await world.advance(0.25)
            world.life.journal.hold()

            world.life.cancellation.request(job_of(world, 1))

            assert world.engines["r0"].running_count == 0
            assert world.life.scheduling.scheduler.running(POOL) == ()
            await world.advance(5.0)
            assert len(client.tokens) == 2
            assert client.terminal is None
            world.life.journal.resume()
            await world.settle()
            assert client.terminal is not None
            # The first token came at 0.1 s, the cancel at 0.25 s.
            assert client.terminal.data == {"tokens_out": 2, "decode_ms": 150, "canceled": True}
            assert client.terminal.on_disk

        run_world(scenario, ONE_SLOT)

    @pytest.mark.req("ORCH-3017", "ORCH-2003", partial="all but the services' part")
    def test_a_waiting_task_ends_without_having_started(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.admit(draft(2))
            client = world.read(draft(2))

            asked = world.cancel(draft(2))
            await world.settle()

            assert asked.acknowledged
            assert [(frame.event, frame.id) for frame in client.frames] == [("end", 2)]
            assert client.frames[0].data == {"tokens_out": 0, "decode_ms": 0, "canceled": True}
            assert world.life.scheduling.scheduler.waiting_keys(POOL) == ()

        run_world(scenario, ONE_SLOT)

    @pytest.mark.req("ORCH-3017", partial="all but the services' part")
    def test_a_task_that_waits_to_resume_ends_too(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            client = world.read(draft(1))
            await world.advance(0.25)
            world.engines["r0"].kill()
            await world.settle()
            assert world.life.scheduling.scheduler.waiting_keys(POOL) == (draft(1).key,)

            world.cancel(draft(1))
            await world.settle()

            assert client.terminal is not None
            assert client.terminal.data["canceled"] is True
            assert client.terminal.data["tokens_out"] == 2
            assert world.life.scheduling.scheduler.waiting_keys(POOL) == ()

        run_world(scenario, ONE_SLOT)

    @pytest.mark.req("ORCH-2003", partial="all but the services' part")
    def test_a_finished_task_is_acknowledged_at_once_whatever_the_disk_does(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            client = world.read(draft(1))
            await world.advance(0.35)
            world.life.journal.hold()
            await world.advance(0.5)
            assert client.terminal is not None

            asked = world.cancel(draft(1))
            await world.settle()

            assert asked.acknowledged
            assert len([frame for frame in client.frames if frame.is_terminal]) == 1
            assert "canceled" not in client.terminal.data

        run_world(scenario, ONE_SLOT)

    @pytest.mark.req("ORCH-2003", partial="all but the services' part")
    @pytest.mark.parametrize("turns", range(6))
    def test_its_readers_are_told_first_even_when_its_end_is_written_in_that_turn(
        self, turns: int
    ) -> None:
        async def scenario(world: ServiceWorld) -> None:
            embedding = draft(2, workload=Workload.EMBEDDING, prompt=None, inputs=("one",))
            await world.admit(draft(1))
            await world.admit(embedding)
            world.read(embedding)
            world.cancel(draft(1))  # the embedding starts, and ends some turns later
            for _ in range(turns):
                await asyncio.sleep(0)

            asked = world.cancel(embedding)
            await world.settle()

            assert asked.acknowledged
            assert asked.unaware == []

        run_world(scenario, ONE_SLOT)

    @pytest.mark.req("ORCH-3026", partial="tokens that race with the cancel")
    def test_asking_twice_is_the_same_as_asking_once(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            client = world.read(draft(1))
            await world.advance(0.15)

            both = [world.cancel(draft(1)), world.cancel(draft(1))]
            await world.settle()

            assert [asked.acknowledged for asked in both] == [True, True]
            assert len([frame for frame in client.frames if frame.is_terminal]) == 1
            labels = {"engine": "llamacpp", "engine_version": "mock 1", "pool_id": POOL}
            counted = world.metric(
                "tasks_canceled_total", **labels, replica_id="r0", reason="client"
            )
            assert counted == 1

        run_world(scenario, ONE_SLOT)


class TestBrokenJournal:
    """What cannot be computed again is shown when the disk has it, and not before."""

    @pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
    @pytest.mark.parametrize("determinism", list(Determinism))
    def test_an_end_that_could_not_be_written_is_written_again_and_then_shown(
        self, determinism: Determinism
    ) -> None:
        one = draft(1, determinism=determinism)
        strict = determinism is Determinism.STRICT

        async def scenario(world: ServiceWorld) -> None:
            await world.admit(one)
            client = world.read(one)
            await world.advance(0.15)
            world.life.journal.fail("disk full")
            await world.advance(1.0)

            assert [frame.raw for frame in client.tokens] == token_events(one)
            assert client.finished is strict
            assert world.engines["r0"].running_count == 0

            world.life.journal.fail(None)
            await world.advance(0.5)
            assert client.finished
            assert len([frame for frame in client.frames if frame.is_terminal]) == 1

        logs = run_world(scenario, ONE_SLOT)

        lost = [line for line in logs if line["event"] == "journal.lost_end"]
        assert {line["job_id"] for line in lost} == {one.task_id}
        assert "disk full" in lost[0]["cause"]

    @pytest.mark.req("ORCH-2003", partial="all but the services' part")
    def test_a_cancel_that_could_not_be_written_is_no_acknowledged_one(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            client = world.read(draft(1))
            await world.advance(0.15)
            world.life.journal.fail("disk full")

            with pytest.raises(JournalError, match="disk full"):
                await world.life.cancellation.cancel(job_of(world, 1))

            assert client.terminal is None
            assert world.engines["r0"].running_count == 0

            world.life.journal.fail(None)
            await world.advance(0.5)
            await world.life.cancellation.cancel(job_of(world, 1))
            assert client.terminal is not None
            assert client.terminal.data["canceled"] is True

        run_world(scenario, ONE_SLOT)

    @pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster")
    @pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
    def test_an_end_nobody_has_seen_may_come_out_otherwise_after_a_crash(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            client = world.read(draft(1))
            await world.advance(0.15)
            world.life.journal.fail("disk full")
            with pytest.raises(JournalError):
                await world.life.cancellation.cancel(job_of(world, 1))
            assert client.terminal is None

            world.crash()
            world.restart()
            again = world.read(draft(1))
            await world.advance(3.0)

            assert [frame.raw for frame in again.tokens] == token_events(draft(1))
            assert again.finished

        run_world(scenario, ONE_SLOT)


@pytest.mark.req("ORCH-3203", partial="a process that dies; all but one rule")
def test_only_the_end_of_a_strict_completion_is_shown_before_it_is_on_disk() -> None:
    async def scenario(world: ServiceWorld) -> None:
        strict, other = draft(1), draft(2, determinism=Determinism.BEST_EFFORT)
        await world.admit(strict)
        await world.admit(other)
        readers = [world.read(strict), world.read(other)]
        await world.advance(0.5)
        assert len(readers[1].tokens) == 0 < len(readers[0].tokens)
        await world.advance(0.25)
        world.life.journal.hold()
        await world.advance(2.0)

        assert readers[0].terminal is not None
        assert readers[1].terminal is None
        assert len(readers[1].tokens) == 4

        world.life.journal.resume()
        await world.settle()
        assert readers[1].terminal is not None
        assert readers[1].terminal.on_disk

    run_world(scenario, ONE_SLOT)


class TestErrors:
    @pytest.mark.req("ORCH-3005", partial="all but one rule of one policy")
    @pytest.mark.req("ORCH-2006", partial="all but one kind of error")
    def test_a_dropped_task_is_told_the_policy_and_when_to_come_back(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            for number in (1, 2):
                await world.admit(draft(number))
            dropped = world.read(draft(2))

            await world.admit(draft(3))

            assert [frame.event for frame in dropped.frames] == ["error"]
            error = dropped.frames[0].data
            assert error["code"] == "QUEUE_FULL_DROP_LRU"
            assert error["policy_label"] == "drop-lru"
            assert error["engine"] == "llamacpp"
            assert error["pool_id"] == POOL
            assert error["retriable"] is True
            assert error["retry_after_ms"] >= 1
            assert dropped.frames[0].on_disk
            assert world.metric("errors_total", code="QUEUE_FULL_DROP_LRU") == 1
            reason = {"engine": "llamacpp", "reason": "drop-lru"}
            assert world.metric("tasks_rejected_total", **reason) == 1

        logs = run_world(scenario, full_pool(FullPolicy.DROP_LRU))

        ended = [line for line in logs if line["event"] == "task.ended"]
        assert [line["outcome"] for line in ended] == ["dropped"]

    @pytest.mark.req("ORCH-3005", partial="all but one rule of one policy")
    def test_a_shed_task_is_told_so(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.admit(draft(2, priority=Priority.BATCH))
            shed = world.read(draft(2))

            await world.admit(draft(3))

            assert shed.terminal is not None
            assert shed.terminal.data["code"] == "ADMISSION_REJECT"
            assert shed.terminal.data["policy_label"] == "shed-low-priority"

        run_world(scenario, full_pool(FullPolicy.SHED_LOW_PRIORITY))


@pytest.mark.req("ORCH-3206", partial="its use")
def test_the_proof_of_a_stream_is_the_hash_of_its_plain_text() -> None:
    texts = ['"so"', " a\\b", "\n", " 雨", " low"]
    digests: list[str] = []

    def determinism_of(_job: Job, sha256: str) -> None:
        digests.append(sha256)

    async def main() -> None:
        journal = MemoryJournal()
        jobs = JobTable(1000, 10**9)
        service = TerminationService(jobs, journal, Telemetry(), lambda: T0_MS, determinism_of)
        for pieces in (texts, texts[3:], []):
            one = make_job()
            jobs.add(one)
            one.log.append([escape(text) for text in pieces])
            service.finish(one, 5)

    run_virtual(main())

    expected = ["".join(pieces) for pieces in (texts, texts[3:], [])]
    assert digests == [hashlib.sha256(text.encode()).hexdigest() for text in expected]


@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
def test_the_record_of_an_end_holds_what_a_late_reader_needs() -> None:
    async def scenario(world: ServiceWorld) -> None:
        await world.admit(draft(1))
        await world.advance(1.0)

        (ended,) = (r for r in world.disk_records() if isinstance(r, records.TaskEnded))

        assert ended.event == "end"
        assert ended.data == b'{"tokens_out":4,"decode_ms":400}'
        assert ended.started
        assert ended.tokens_out == 4
        assert ended.ended_ms == T0_MS + 500  # the last token came at 400
        assert not ended.truncated

    run_world(scenario, ONE_SLOT)


@pytest.mark.req("ORCH-3206", partial="which ends are proved")
@pytest.mark.parametrize(
    ("of", "canceled", "proved"),
    [
        ({}, False, True),
        ({}, True, False),
        ({"determinism": Determinism.BEST_EFFORT}, False, False),
        ({"workload": Workload.EMBEDDING}, False, False),
    ],
    ids=["completed", "canceled", "best effort", "embedding"],
)
def test_only_a_whole_strict_completion_is_proved(
    of: dict[str, Any], canceled: bool, proved: bool
) -> None:
    proof = records.DeterminismRecord("k", 7, "v1", "engine", "model", "hash")

    async def scenario() -> list[records.Record]:
        disk = MemoryDisk()
        journal, jobs = MemoryJournal(disk), JobTable(1000, 1 << 20)
        service = TerminationService(jobs, journal, Telemetry(), lambda: T0_MS, lambda *_: proof)
        one = make_job(of=task(**of))
        jobs.add(one)
        if canceled:
            service.cancel(one)
        else:
            service.finish(one, 5)
        await journal.close()
        return [records.decode(data) for row in disk.rows.values() for data in row]

    (ended,) = run_virtual(scenario())

    assert isinstance(ended, records.TaskEnded)
    assert ended.determinism == (proof if proved else None)
