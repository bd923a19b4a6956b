"""Which metric moves, by how much and under which labels."""

from __future__ import annotations

from typing import Any

import pytest

from harness_kit.core_builders import make_pool
from harness_kit.service_clients import draft
from harness_kit.service_world import POOL, ServiceWorld, Setup, run_world
from orchestrator_core.errors import Code, Reason, Refusal
from orchestrator_core.pool import TenantPolicy
from orchestrator_core.task import Priority
from orchestratord.services import decision_log
from orchestratord.services.tallies import MAX_OBSERVATIONS, Sample, Tally
from orchestratord.services.telemetry import Telemetry
from worker_adapters.mock.script import Misbehaviour, MockFault, MockScript

SLOW = MockScript(slots_total=1, token_delay_ms=100)
ONE_SLOT = Setup(engines={"r0": SLOW})
POOL_LABELS = {"engine": "llamacpp", "engine_version": "mock 1", "pool_id": POOL}
REPLICA_LABELS = {**POOL_LABELS, "replica_id": "r0"}
# Which replica it will be nobody knows yet.
QUEUED_LABELS = {**POOL_LABELS, "replica_id": ""}
OUTCOME_LABELS = {"engine": "llamacpp", "pool_id": POOL}


def scrape(world: ServiceWorld) -> None:
    """Set what is read when somebody asks for the metrics of the only pool."""
    life = world.life
    running = [attempt.job for attempt in life.dispatcher.running]
    of_pool = (life.replicas.pools[POOL].spec, list(life.replicas.ready(POOL)), running)
    life.telemetry.pool_gauges(life.scheduling.scheduler, [of_pool])


def exposed(world: ServiceWorld, name: str) -> set[tuple[str, float]]:
    """Replicas with a value of this gauge."""
    return {
        (sample.labels["replica_id"], sample.value)
        for family in world.life.telemetry.registry.collect()
        if family.name == name
        for sample in family.samples
    }


class TestCounters:
    @pytest.mark.req("OC-CTRL-2051")
    @pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
    def test_a_completed_task_counts_once_at_every_station(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1, prompt="one two three"))
            await world.admit(draft(2, priority=Priority.BATCH))
            await world.advance(2.0)

            for priority in Priority:
                p = priority.value
                assert world.metric("tasks_enqueued_total", **QUEUED_LABELS, priority=p) == 1
                assert world.metric("tasks_started_total", **REPLICA_LABELS, priority=p) == 1
                finished = {**OUTCOME_LABELS, "priority": p, "outcome": "completed"}
                assert world.metric("tasks_finished_total", **finished) == 1
            assert world.metric("tokens_out_total", **REPLICA_LABELS) == 8
            assert world.metric("tokens_in_total", **REPLICA_LABELS) == 3 + 2

        run_world(scenario, ONE_SLOT)

    @pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
    def test_latencies_are_those_of_the_clock(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))  # 100 to 400 ms, its slot is free at 500
            await world.admit(draft(2))  # first token at 600 ms
            await world.advance(2.0)

            labels = {**POOL_LABELS, "priority": "interactive"}
            assert world.metric("latency_first_token_ms_sum", **labels) == 100 + 600
            assert world.metric("latency_decode_ms_sum", **labels) == 2 * 400
            assert world.metric("latency_decode_ms_count", **labels) == 2
            assert world.metric("latency_queue_ms_sum", **labels) == 500

        run_world(scenario, ONE_SLOT)

    @pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
    @pytest.mark.req("ORCH-3017", partial="all but the services' part")
    def test_a_cancelled_task_is_no_failure(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.advance(0.15)
            world.cancel(draft(1))
            await world.settle()

            labels = {**OUTCOME_LABELS, "priority": "interactive"}
            assert world.metric("tasks_finished_total", **labels, outcome="canceled") == 1
            assert world.metric("tasks_canceled_total", **REPLICA_LABELS, reason="client") == 1
            assert all(world.metric("errors_total", code=code.value) == 0 for code in Code)

        run_world(scenario, ONE_SLOT)

    @pytest.mark.req("OC-CTRL-2051")
    @pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
    def test_errors_count_by_code_and_tasks_by_outcome(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            world.engines["r0"].inject(MockFault(Misbehaviour.SILENT, 1))
            await world.admit(draft(1))
            await world.admit(draft(2, deadline_ms=900))
            await world.advance(3.0)

            labels = {**OUTCOME_LABELS, "priority": "interactive"}
            assert world.metric("errors_total", code="DECODE_TIMEOUT") == 1
            assert world.metric("errors_total", code="DEADLINE_UNMET") == 1
            assert world.metric("tasks_finished_total", **labels, outcome="failed") == 1
            assert world.metric("tasks_finished_total", **labels, outcome="expired") == 1

        run_world(scenario, Setup(engines={"r0": SLOW}, idle_ms=1_000))

    def test_a_second_attempt_counts_as_a_start_and_not_as_a_wait(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            await world.advance(0.15)
            world.kill("r0")
            world.revive("r0")
            await world.advance(2.0)

            labels = {**POOL_LABELS, "priority": "interactive"}
            assert world.metric("tasks_started_total", **labels, replica_id="r0") == 2
            assert world.metric("latency_queue_ms_count", **labels) == 1
            assert world.metric("latency_first_token_ms_count", **labels) == 1
            assert world.metric("tokens_out_total", **REPLICA_LABELS) == 4

        run_world(scenario, ONE_SLOT)


class TestGauges:
    @pytest.mark.req("OC-CTRL-2051")
    @pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
    def test_depth_slots_and_running_tasks_are_read_at_a_scrape(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            for number, priority in enumerate([Priority.INTERACTIVE, *Priority, Priority.BATCH]):
                await world.admit(draft(number, priority=priority))

            scrape(world)

            depth = {p: world.metric("queue_depth", **POOL_LABELS, priority=p) for p in Priority}
            assert depth == {Priority.INTERACTIVE: 1, Priority.BATCH: 2}
            running = {**OUTCOME_LABELS, "priority": "interactive"}
            assert world.metric("tasks_running", **running) == 1
            assert world.metric("tasks_running", **OUTCOME_LABELS, priority="batch") == 0
            assert world.metric("slots", **OUTCOME_LABELS, replica_id="r0") == 1
            assert world.metric("slots_busy", **OUTCOME_LABELS, replica_id="r0") == 1

        run_world(scenario, ONE_SLOT)

    @pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
    def test_a_lost_replica_is_not_ready(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            assert world.metric("replica_ready", **REPLICA_LABELS) == 1

            world.kill("r0")
            await world.advance(0.6)
            assert world.metric("replica_ready", **REPLICA_LABELS) == 0

            world.revive("r0")
            await world.advance(0.6)
            assert world.metric("replica_ready", **REPLICA_LABELS) == 1

        run_world(scenario, ONE_SLOT)

    @pytest.mark.req("ORCH-3028", partial="GPU and VRAM use, SLO attainment")
    def test_a_lost_replica_has_no_slots_any_more(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))
            scrape(world)
            assert exposed(world, "slots") == exposed(world, "slots_busy") == {("r0", 1.0)}

            world.kill("r0")
            await world.settle()
            scrape(world)

            assert exposed(world, "slots") == exposed(world, "slots_busy") == set()

        run_world(scenario, ONE_SLOT)

    @pytest.mark.req("ORCH-3081", partial="on_time_probability is elsewhere")
    def test_the_share_of_met_deadlines_leaves_out_what_was_cancelled(self) -> None:
        async def scenario(world: ServiceWorld) -> None:
            await world.admit(draft(1))  # ends at 500 ms
            await world.admit(draft(2, deadline_ms=700))  # ends too late, at 1000 ms
            await world.admit(draft(3, deadline_ms=100))  # never starts
            await world.admit(draft(4))
            world.cancel(draft(4))
            await world.advance(2.0)

            world.life.telemetry.process_gauges(readers=3, retained_bytes=5, sessions=7)

            met = world.metric("deadlines_met_ratio", priority="interactive")
            assert met == pytest.approx(1 / 3)
            assert world.metric("stream_readers") == 3
            assert world.metric("log_bytes_retained") == 5
            assert world.metric("sessions_open") == 7
            assert world.metric("host_ram_used_bytes") > 0

        run_world(scenario, ONE_SLOT)


class TestLogLines:
    """ORCH-3027, ORCH-3094: one line tells a task's whole story."""

    def lines(self, event: str) -> list[Any]:
        async def scenario(world: ServiceWorld) -> None:
            world.life.telemetry.pool_added(
                world.setup.pool, {"quant": "q4_k_m", "ctx": 8192, "tensor_split": None}
            )
            await world.admit(draft(1))
            await world.admit(draft(2, prompt="one two three"))
            await world.advance(2.0)

        return [line for line in run_world(scenario, ONE_SLOT) if line["event"] == event]

    @pytest.mark.req("ORCH-3027", "ORCH-3094", "ORCH-2009", partial="all other lines")
    def test_the_end_of_a_task(self) -> None:
        line = self.lines("task.ended")[1]

        assert line == {
            "event": "task.ended",
            "log_level": "info",
            "job_id": draft(2).task_id,
            "session_id": draft(2).session_id,
            "client_id": "key-1",
            "tenant_id": "acme",
            "correlation_id": draft(2).correlation_id,
            "engine": "llamacpp",
            "pool_id": POOL,
            "replica_id": "r0",
            "model_id": "model",
            "engine_version": "mock 1",
            "sampler_profile_version": "v1",
            "priority": "interactive",
            "weight": 8,
            "preempted": False,
            "on_time_probability": 1.0,
            "deadline_ms": 60_000,
            "kv_warmth": False,
            "quant": "q4_k_m",
            "ctx": 8192,
            "tensor_split": None,
            "decision": "ended",
            "reason": "completed",
            "outcome": "completed",
            "slack_ms": 59_000,  # arrived at 0, ended at 1 s
            "preemptions": 0,
            "queue_time_ms": 500,
            "decode_time_ms": 400,
            "tokens_in": 3,
            "tokens_out": 4,
            "failovers": 0,
            "eviction_events": 0,
        }

    @pytest.mark.req("OC-CTRL-2050")
    @pytest.mark.req("ORCH-3029", partial="started, which is tested with the stream")
    def test_the_admission_of_a_task(self) -> None:
        line = self.lines("task.admitted")[1]

        assert line["job_id"] == draft(2).task_id
        assert line["queue_position"] == 0
        assert line["predicted_start_ms"] > 0
        assert 0 <= line["on_time_probability"] <= 1


class TestPools:
    def test_what_is_said_of_a_pool_again_is_all_that_holds(self) -> None:
        telemetry = Telemetry()
        heavy = make_pool(tenants=(TenantPolicy("acme", weight=5), TenantPolicy("bolt", weight=3)))
        telemetry.pool_added(heavy, {"ctx": 1})

        telemetry.pool_added(make_pool(tenants=(TenantPolicy("bolt", weight=2),)), {"ctx": 2})

        weights = [telemetry.weights("p", Priority.BATCH, name)[1] for name in ("acme", "bolt")]
        assert weights == [1, 2]

    def test_of_a_removed_pool_nothing_is_known(self) -> None:
        telemetry = Telemetry()
        for pool_id in ("p", "q"):
            spec = make_pool(id=pool_id, tenants=(TenantPolicy("acme", weight=5),))
            telemetry.pool_added(spec, {})

        telemetry.pool_removed("p")

        assert telemetry.weights("p", Priority.BATCH, "acme") == (None, 1)
        assert telemetry.weights("q", Priority.BATCH, "acme") == (1, 5)


@pytest.mark.req("ORCH-3027", partial="all other lines")
def test_a_figure_with_the_name_of_a_field_of_the_line_takes_its_place() -> None:
    async def scenario(world: ServiceWorld) -> None:
        world.life.telemetry.pool_added(world.setup.pool, {"ctx": 8192})
        await world.admit(draft(1))
        (job,) = world.life.jobs.live()
        figures = (("deadline_ms", 7.0), ("ctx", 9.0))
        refusal = Refusal(Code.ADMISSION_REJECT, Reason.DEADLINE, "late", figures=figures)

        world.life.telemetry.ended(job, decision_log.ended(job, "expired", "deadline", refusal))

    logs = run_world(scenario, ONE_SLOT)

    line = next(line for line in logs if line["event"] == "task.ended")
    assert (line["deadline_ms"], line["ctx"], line["reason"]) == (7.0, 9.0, "deadline")


class _Child:
    def __init__(self) -> None:
        self.total = 0.0
        self.seen: list[float] = []

    def inc(self, amount: float = 1) -> None:
        self.total += amount

    def observe(self, amount: float) -> None:
        self.seen.append(amount)


class TestTallies:
    def test_what_was_counted_is_handed_over_once(self) -> None:
        child = _Child()
        tally = Tally(child)
        tally.add(2)
        tally.add(3)
        assert child.total == 0

        tally.hand_over()
        tally.hand_over()

        assert child.total == 5

    def test_observations_are_handed_over_in_order_and_at_the_bound_by_themselves(self) -> None:
        child = _Child()
        sample = Sample(child)
        for value in range(MAX_OBSERVATIONS + 2):
            sample.observe(value)
        assert len(child.seen) == MAX_OBSERVATIONS

        sample.hand_over()
        sample.hand_over()

        assert child.seen == list(range(MAX_OBSERVATIONS + 2))
