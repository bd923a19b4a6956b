"""What counts for which objective, task by task, and what batch tasks get of a pool's slots."""

from __future__ import annotations

from typing import Any

import pytest

from harness_kit.core_builders import (
    T0_MS,
    finished,
    make_pool,
    make_replica,
    ready_scheduler,
    submit,
)
from harness_kit.job_builders import job, task
from orchestrator_core.errors import Code
from orchestrator_core.events import Cancel, PoolDraining
from orchestrator_core.pool import TenantPolicy
from orchestrator_core.task import Priority, Workload
from orchestratord.services.jobs import Job, JobTable
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.slo import Objective, SloService

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH
POOL = "p1"  # of `job_builders`
ARRIVED_MS = 1_000_000
OBJECTIVES = [
    Objective(INTERACTIVE, "first_token_p95_ms", 900),
    Objective(INTERACTIVE, "tokens_64_p95_ms", 2_500),
    Objective(INTERACTIVE, "error_ratio", 0.005),
    Objective(BATCH, "throughput_ratio", 0.8),
    Objective(BATCH, "error_ratio", 0.01),
]


class Clock:
    """Seconds that the test sets."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


class World:
    """A scheduler with pool `p1` of `slots` slots, and what measures it."""

    def __init__(self, slots: int = 1, **pool: Any) -> None:
        self.clock = Clock()
        spec = make_pool(POOL, **pool)
        replicas = [make_replica(pool_id=POOL, slots=slots)]
        self.scheduler = ready_scheduler(spec, replicas)
        jobs = JobTable(600_000, 1 << 28)
        scheduling = SchedulingService(self.scheduler, jobs, lambda: T0_MS)
        self.slo = SloService(OBJECTIVES, 60, scheduling, self.clock)

    def learn_speed(self) -> None:
        """10 ms a token, prompt or not (`finished`)."""
        for number in range(3):
            submit(self.scheduler, f"known{number}")
            self.scheduler.step(finished(f"acme/known{number}"), T0_MS)

    def values(self) -> dict[str, float]:
        return {m.objective.key: m.value for m in self.slo.measures([POOL])}

    def samples(self) -> dict[str, int]:
        return {m.objective.key: m.samples for m in self.slo.measures([POOL])}


def ended(
    first_ms: int | None,
    end_ms: int,
    tokens: int,
    *,
    priority: Priority = INTERACTIVE,
    workload: Workload = Workload.COMPLETION,
    recovered: bool = False,
) -> Job:
    """A job that has ended; times are milliseconds after its admission."""
    one = job(of=task(priority=priority, workload=workload, now_ms=ARRIVED_MS))
    one.recovered = recovered
    one.first_token_ms = 0 if first_ms is None else ARRIVED_MS + first_ms
    one.ended_ms = ARRIVED_MS + end_ms
    one.log.append([b"x"] * tokens)
    return one


def near(value: float) -> Any:
    return pytest.approx(value, rel=0.05)


@pytest.mark.req("ORCH-3041", partial="measured; alerts are not built")
class TestLatencies:
    def test_the_first_token_counts_from_admission(self) -> None:
        world = World()

        world.slo.first_token(ended(640, 0, 1))

        assert world.values() == {"interactive.first_token_p95_ms": near(640)}

    def test_the_64th_token_is_derived_from_the_mean_pace_of_a_longer_answer(self) -> None:
        world = World()

        # 127 tokens: 126 gaps in 2520 ms are 20 ms each, and 63 of them 1260 ms.
        world.slo.ended(ended(500, 3_020, 127), "completed", None)

        assert world.values()["interactive.tokens_64_p95_ms"] == near(1_760)

    def test_a_shorter_answer_counts_to_its_end(self) -> None:
        world = World()

        world.slo.ended(ended(500, 800, 63), "completed", None)

        assert world.values()["interactive.tokens_64_p95_ms"] == near(800)

    def test_the_64th_token_counts_whatever_ended_the_task(self) -> None:
        world = World()

        world.slo.ended(ended(500, 1_130, 64), "canceled", None)

        assert world.values() == {"interactive.tokens_64_p95_ms": near(1_130)}

    @pytest.mark.parametrize("outcome", ["canceled", "failed"])
    def test_what_ends_before_its_first_token_has_missed_a_goal_that_has_passed(
        self, outcome: str
    ) -> None:
        world = World()

        world.slo.ended(ended(None, 900, 0), outcome, None)
        says_nothing = world.samples()
        world.slo.ended(ended(None, 901, 0), outcome, None)
        world.slo.ended(ended(None, 2_501, 0), outcome, None)

        assert says_nothing == {}
        assert world.samples() == {
            "interactive.first_token_p95_ms": 2,
            "interactive.tokens_64_p95_ms": 1,
        }

    def test_an_answer_without_a_token_counts_to_its_end(self) -> None:
        world = World()

        world.slo.ended(ended(None, 300, 0), "completed", None)

        assert world.values() == {
            "interactive.first_token_p95_ms": near(300),
            "interactive.tokens_64_p95_ms": near(300),
            "interactive.error_ratio": 0.0,
        }

    def test_what_a_restart_brought_back_has_no_latencies(self) -> None:
        world = World()
        one = ended(500, 9_000, 127, recovered=True)

        world.slo.first_token(one)
        world.slo.ended(one, "completed", None)

        assert world.samples() == {"interactive.error_ratio": 1}

    def test_embeddings_have_no_latencies(self) -> None:
        world = World()

        world.slo.ended(ended(None, 9_000, 0, workload=Workload.EMBEDDING), "completed", None)

        assert world.samples() == {"interactive.error_ratio": 1}

    def test_batch_tasks_have_no_latencies(self) -> None:
        world = World()
        one = ended(500, 9_000, 127, priority=BATCH)

        world.slo.first_token(one)
        world.slo.ended(one, "completed", None)

        assert world.samples() == {"batch.error_ratio": 1}


@pytest.mark.req("ORCH-3041", partial="measured; alerts are not built")
class TestErrors:
    @pytest.mark.parametrize(
        "code",
        [
            Code.WORKER_RESET,
            Code.DECODE_TIMEOUT,
            Code.INTERNAL,
            Code.REPLICA_EXHAUSTED,
            Code.POOL_UNAVAILABLE,
        ],
    )
    def test_what_we_failed_at_counts(self, code: Code) -> None:
        world = World()

        world.slo.ended(ended(100, 200, 1), "failed", code)
        world.slo.ended(ended(100, 200, 1), "completed", None)

        assert world.values()["interactive.error_ratio"] == 0.5

    @pytest.mark.parametrize(
        "code",
        [
            Code.INVALID_PARAMS,
            Code.DEADLINE_UNMET,
            Code.ADMISSION_REJECT,
            Code.QUEUE_FULL_DROP_LRU,
            None,
        ],
    )
    def test_the_client_s_the_deadline_s_and_admission_s_ends_do_not(
        self, code: Code | None
    ) -> None:
        world = World()

        world.slo.ended(ended(100, 200, 1), "canceled" if code is None else "failed", code)

        assert "interactive.error_ratio" not in world.samples()


@pytest.mark.req("ORCH-2104", "OC-CTRL-2004", "ORCH-3028", partial="what the snapshot holds")
class TestReports:
    def test_a_snapshot_names_values_and_the_shares_that_met_the_goal(self) -> None:
        world = World()
        for _ in range(19):
            world.slo.first_token(ended(100, 0, 1))
        few = world.slo.snapshot([POOL])

        world.slo.first_token(ended(2_000, 0, 1))

        assert few == {"interactive.first_token_p95_ms": near(100)}
        assert world.slo.snapshot([POOL]) == {
            "interactive.first_token_p95_ms": near(100),
            "interactive.first_token_p95_ms_attainment_ratio": 0.95,
        }
        assert world.slo.snapshot(["elsewhere"]) == {}

    def test_a_pool_that_is_gone_leaves_nothing(self) -> None:
        world = World()
        elsewhere = ended(100, 200, 1)
        elsewhere.pool_id = "gone"
        world.slo.first_token(elsewhere)
        world.slo.ended(elsewhere, "completed", None)

        before = world.slo.snapshot(["gone"])
        world.slo.look([])

        assert before != {}
        assert world.slo.snapshot(["gone"]) == {}


def running(tokens: int = 0, *, priority: Priority = BATCH, **fields: Any) -> Job:
    one = job(of=task(priority=priority, prompt_tokens=4, **fields))
    one.log.append([b"x"] * tokens)
    return one


@pytest.mark.req("ORCH-3041", partial="measured; alerts are not built")
class TestVerdicts:
    @pytest.mark.parametrize(
        ("end", "outcome", "code", "expected"),
        [
            ((900, 2_500, 64), "completed", None, [True, True, True]),
            ((901, 2_501, 64), "completed", None, [True, False, False]),
            ((None, 900, 0), "failed", Code.WORKER_RESET, [False, None, None]),
            ((None, 2_501, 0), "failed", Code.WORKER_RESET, [False, False, False]),
            ((100, 2_000, 9), "canceled", None, [None, True, None]),
        ],
    )
    def test_each_objective_that_a_task_says_something_of_is_judged_once(
        self,
        end: tuple[int | None, int, int],
        outcome: str,
        code: Code | None,
        expected: list[bool | None],
    ) -> None:
        world = World()
        told: list[tuple[str, bool]] = []
        world.slo.on_judged = lambda job, objective, met: told.append((objective, met))
        one = ended(*end)

        if end[0] is not None:
            world.slo.first_token(one)
        world.slo.ended(one, outcome, code)

        by_name = dict(told)
        assert len(told) == len(by_name)
        names = ("error_ratio", "first_token_p95_ms", "tokens_64_p95_ms")
        assert [by_name.get(name) for name in names] == expected


@pytest.mark.req("ORCH-3041", partial="measured; alerts are not built")
class TestThroughput:
    """A token takes 10 ms: in a second a slot can decode 100."""

    def look(self, world: World, *jobs: Job) -> float | None:
        world.clock.now_s += 1.0
        world.slo.look(jobs)
        return world.values().get("batch.throughput_ratio")

    def waiting(self, slots: int = 1, **pool: Any) -> World:
        """Every slot is taken, and a batch task waits; looked at once."""
        world = World(slots, **pool)
        world.learn_speed()
        for number in range(slots + 1):
            submit(world.scheduler, f"b{number}", priority=BATCH)
        world.slo.look([])
        return world

    def test_tokens_of_running_tasks_count_against_what_the_slots_could_decode(self) -> None:
        world = self.waiting(2)
        one, other = running(), running()
        self.look(world, one, other)

        one.log.append([b"x"] * 80)
        other.log.append([b"x"] * 62)
        ratio = self.look(world, one, other)

        # (80 + 62) * 10 ms, and two prompts of 4 tokens, of two looks of two slots.
        assert ratio == pytest.approx(1_500 / 4_000)

    def test_a_token_and_a_prompt_count_once(self) -> None:
        world = self.waiting()
        one = running(46)
        self.look(world, one)

        one.log.append([b"x"] * 10)
        self.look(world, one)
        world.slo.ended(one, "completed", None)
        ratio = self.look(world)

        assert ratio == pytest.approx((46 + 10 + 4) * 10 / 3_000)

    def test_tokens_of_a_task_that_came_and_went_between_two_looks_count(self) -> None:
        world = self.waiting()

        world.slo.ended(running(46), "completed", None)
        ratio = self.look(world)

        assert ratio == pytest.approx(0.5)

    def test_slots_of_other_work_are_not_left_to_batch_tasks(self) -> None:
        world = self.waiting(4)
        urgent = running(50, priority=INTERACTIVE)
        vectors = running(workload=Workload.EMBEDDING)

        ratio = self.look(world, running(46), urgent, vectors)

        assert ratio == pytest.approx(500 / 2_000)

    def test_time_in_which_no_batch_task_waits_does_not_count(self) -> None:
        world = self.waiting()
        world.scheduler.step(Cancel("acme/b1"), T0_MS)

        ratio = self.look(world, running(10))

        assert ratio is None

    def test_time_before_the_first_one_waits_does_not_count(self) -> None:
        world = World()
        world.learn_speed()
        world.slo.look([])
        for number in range(2):
            submit(world.scheduler, f"b{number}", priority=BATCH)

        ratio = self.look(world)

        assert ratio is None

    def test_a_task_that_its_tenant_s_quota_holds_does_not_wait_for_a_slot(self) -> None:
        tenants = (TenantPolicy("acme", max_concurrent=1),)
        world = World(2, tenants=tenants)
        world.learn_speed()
        for number in range(2):
            submit(world.scheduler, f"b{number}", priority=BATCH)
        world.slo.look([])

        ratio = self.look(world, running(46))

        assert ratio is None

    def test_nothing_is_said_before_the_speed_is_known(self) -> None:
        world = World()
        for number in range(2):
            submit(world.scheduler, f"b{number}", priority=BATCH)
        world.slo.look([])

        ratio = self.look(world, running(46))

        assert ratio is None

    def test_a_draining_pool_is_not_expected_to_decode_what_waits(self) -> None:
        world = self.waiting()
        world.scheduler.step(PoolDraining(POOL), T0_MS)

        ratio = self.look(world)

        assert ratio is None


def test_a_priority_whose_goals_stay_keeps_what_was_measured_when_others_change() -> None:
    world = World()
    world.slo.ended(ended(100, 200, 1), "completed", None)
    world.slo.ended(ended(100, 200, 1, priority=BATCH), "completed", None)

    world.slo.reconfigure(OBJECTIVES[1:], None)

    assert world.samples() == {"batch.error_ratio": 1}
    world.slo.first_token(ended(100, 0, 1))
    world.slo.ended(ended(100, 200, 1), "completed", None)
    assert sorted(world.samples()) == [
        "batch.error_ratio",
        "interactive.error_ratio",
        "interactive.tokens_64_p95_ms",
    ]


@pytest.mark.parametrize(("window_s", "look_s"), [(10, 0.25), (40, 1.0), (300, 1.0)])
def test_a_short_window_is_looked_at_more_often(window_s: int, look_s: float) -> None:
    scheduling = SchedulingService(ready_scheduler(), JobTable(1, 1), lambda: T0_MS)

    slo = SloService(OBJECTIVES, window_s, scheduling, Clock())

    assert slo.look_s == look_s
