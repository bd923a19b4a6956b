"""The simulator's clock, queue and failures around the product's own scheduler."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import count
from random import Random
from typing import Any

import pytest

from harness_kit.core_builders import make_pool
from orch_simulator.decision_cost import DecisionMeter
from orch_simulator.engine_model import EngineModel
from orch_simulator.outcome import ALL, FlowOutcome, Outcome, worst_calibration_error
from orch_simulator.simulation import FleetPool, Simulation
from orch_simulator.workload import Arrival, DeadlineRange, PoissonWorkload
from orchestrator_core.limits import Limits
from orchestrator_core.pool import (
    FullPolicy,
    PoolSpec,
    PreemptionMode,
    PreemptionPolicy,
    TenantPolicy,
)
from orchestrator_core.task import Priority

# A task of 100 prompt tokens and 50 tokens out takes 100 + 500 ms.
EXACT = EngineModel(prefill_ms_per_token=1.0, decode_ms_per_token=10.0, jitter_ratio=0.0)
INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH


def arrival(at_ms: int = 0, tenant: str = "a", **changes: Any) -> Arrival:
    plain = Arrival(at_ms, tenant, BATCH, 100, 50, tokens_out=50, deadline_ms=1_000_000)
    return replace(plain, **changes)


def simulate(
    arrivals: Iterable[Arrival],
    spec: PoolSpec | None = None,
    *,
    slots: int = 1,
    replicas: int = 1,
    wall_ms: int | None = None,
    **options: Any,
) -> Outcome:
    pool = FleetPool(spec or make_pool(), replicas, slots, wall_ms)
    defaults: dict[str, Any] = {"engine": EXACT, "random": Random(7)}
    return Simulation([pool], arrivals, **(defaults | options)).run()


def busy_hour(tasks: int = 300, seed: int = 3, rate_per_s: float = 8.0) -> Iterable[Arrival]:
    """About twice what four slots can do, with deadlines that not everyone can meet."""
    deadlines = {INTERACTIVE: DeadlineRange(2_000, 20_000), BATCH: DeadlineRange(5_000, 60_000)}
    workload = PoissonWorkload(tasks, rate_per_s, ("a", "b", "c"), deadlines=deadlines)
    return workload.arrivals(Random(seed))


def ended(row: FlowOutcome) -> int:
    gone = sum(row.refused.values()) + sum(row.evicted.values())
    return row.finished + row.aborted + gone


def flow(outcome: Outcome, tenant: str, priority: Priority = BATCH) -> FlowOutcome:
    (row,) = [r for r in outcome.flows if (r.tenant, r.priority) == (tenant, priority.value)]
    return row


def test_tasks_wait_for_the_slot_and_take_their_service_time() -> None:
    outcome = simulate([arrival(0), arrival(100), arrival(1_300)])

    # The second starts when the first ends, at 600; the third finds the slot free at 1300.
    assert outcome.simulated_ms == 1_900
    assert outcome.total.wait.max_ms == 500
    assert (outcome.total.wait.p50_ms, outcome.total.wait.count) == (0, 3)
    assert outcome.busy_ratio == pytest.approx(1_800 / 1_900)
    assert (outcome.total.tokens_in, outcome.total.tokens_out) == (300, 150)


@pytest.mark.req("ORCH-3086", partial="what the simulator shows of it")
def test_an_interrupted_task_starts_anew_after_the_urgent_one() -> None:
    spec = make_pool(preemption=PreemptionPolicy(PreemptionMode.HARD))
    long = arrival(0, max_tokens=1_000, tokens_out=1_000)
    urgent = arrival(1_000, "b", priority=INTERACTIVE, deadline_ms=3_000)

    outcome = simulate([long, urgent], spec)

    # 1000 ms in vain, 600 for the urgent one, then the whole 10100.
    assert outcome.simulated_ms == 11_700
    assert (flow(outcome, "a").preemptions, flow(outcome, "a").resumptions) == (1, 1)
    assert flow(outcome, "b", INTERACTIVE).wait.max_ms == 0
    assert flow(outcome, "b", INTERACTIVE).preemptions == 0


def test_equal_seeds_give_equal_outcomes_and_others_do_not() -> None:
    first, again = (
        simulate(busy_hour(), slots=4, engine=EngineModel(), random=Random(1)) for _ in range(2)
    )
    other = simulate(busy_hour(), slots=4, engine=EngineModel(), random=Random(2))

    assert first == again
    assert other != first


def test_measuring_the_cost_of_decisions_changes_none() -> None:
    ticks_ns = count(step=1_000)
    meter = DecisionMeter(lambda: next(ticks_ns))

    measured = simulate(busy_hour(), slots=4, meter=meter)

    assert replace(measured, costs=()) == simulate(busy_hour(), slots=4)
    assert sum(row.steps for row in measured.costs) == measured.steps
    assert {row.mean_us for row in measured.costs} == {1.0}


@pytest.mark.req("ORCH-3075", partial="all but conservation in the simulator")
@pytest.mark.parametrize("policy", list(FullPolicy))
def test_every_arrival_ends_exactly_once(policy: FullPolicy) -> None:
    spec = make_pool(capacity=12, interactive=8, batch=10, policy=policy, rate_limit_rps=4.0)

    outcome = simulate(busy_hour(), spec, slots=4, wall_ms=6_000, engine=EngineModel())

    assert [ended(row) for row in outcome.flows] == [row.arrived for row in outcome.flows]
    assert outcome.total.arrived == 300
    assert sum(row.arrived for row in outcome.flows) == 300
    assert {"queue-full", "rate-limit"} & set(outcome.total.refused)
    assert outcome.total.finished > 50
    assert outcome.total.aborted > 0
    if policy is FullPolicy.DROP_LRU:
        assert outcome.total.evicted["drop-lru"] > 0


def test_rows_of_priorities_and_tenants_add_up_to_the_total() -> None:
    outcome = simulate(busy_hour(), slots=4)

    for rows in (outcome.priorities, outcome.tenants, outcome.flows):
        assert sum(row.finished for row in rows) == outcome.total.finished
        assert sum(row.tokens_out for row in rows) == outcome.total.tokens_out
        assert sum(row.wait.count for row in rows) == outcome.total.wait.count
    assert {row.tenant for row in outcome.tenants} == {"a", "b", "c"}
    assert outcome.total.tenant == outcome.total.priority == ALL


@pytest.mark.req("ORCH-3075", partial="the service itself; this is the simulator")
def test_backlogged_tenants_share_tokens_three_to_one_within_five_percent() -> None:
    spec = make_pool(tenants=(TenantPolicy("gold", 3), TenantPolicy("iron", 1)))
    lengths = Random(5)
    backlog = [
        arrival(0, tenant, prompt_tokens=lengths.randint(20, 200))
        for _ in range(120)
        for tenant in ("gold", "iron")
    ]

    # Both have work all the time: gold's 120 tasks last until iron has had 40.
    outcome = simulate(backlog[:240], spec, slots=2)
    gold, iron = flow(outcome, "gold"), flow(outcome, "iron")

    # Iron is entitled to a quarter while gold waits, then to everything; so is what it gets.
    assert gold.share_ratio == pytest.approx(gold.fair_ratio, rel=0.05)
    assert iron.share_ratio == pytest.approx(iron.fair_ratio, rel=0.05)
    # Gold's last task starts when gold and a third as much of iron have been served: after about
    # two thirds of all (120 + 40 of 240 tasks), not near the end as with equal weights.
    assert gold.wait.max_ms / iron.wait.max_ms == pytest.approx(160 / 240, rel=0.05)


@pytest.mark.req("ORCH-3075", partial="the service itself; this is the simulator")
def test_priorities_share_eight_to_one_while_both_wait() -> None:
    backlog = [
        arrival(0, priority=priority) for _ in range(80) for priority in (BATCH, INTERACTIVE)
    ]

    outcome = simulate(backlog)
    interactive, batch = outcome.priorities

    # 80 interactive and 10 batch tasks of 600 ms go first.
    assert interactive.wait.max_ms == pytest.approx(90 * 600, rel=0.05)
    assert batch.wait.max_ms == 159 * 600


@pytest.mark.req("ORCH-3079", partial="the service itself; this is the simulator")
def test_earlier_deadlines_go_first_and_those_nobody_can_meet_end_in_the_queue() -> None:
    spec = make_pool()
    tasks = [arrival(0), arrival(1, "b", deadline_ms=9_000), arrival(2, "b", deadline_ms=2_500)]
    tasks += [arrival(3, "b", deadline_ms=500)]

    outcome = simulate(tasks, spec)

    # Nothing has finished yet, so nobody is refused; the last one's time is over before its turn.
    assert flow(outcome, "b").evicted == {"deadline": 1}
    # The one with 2.5 s goes at 600, so the one with 9 s goes at 1200.
    assert (flow(outcome, "b").wait.p50_ms, flow(outcome, "b").wait.max_ms) == (598, 1_199)


@pytest.mark.req("ORCH-3079", partial="the service itself; this is the simulator")
def test_once_speed_is_known_a_deadline_that_cannot_be_met_is_refused() -> None:
    learned = [arrival(1_000 * i) for i in range(3)]

    outcome = simulate([*learned, arrival(5_000, deadline_ms=599), arrival(6_000, deadline_ms=601)])

    assert outcome.total.refused == {"deadline": 1}
    assert outcome.total.deadlines_met_ratio == 1.0


@pytest.mark.req("ORCH-3081", partial="the metric")
def test_deadlines_met_counts_the_late_and_the_evicted() -> None:
    # Before speed is known all are admitted: one in time, one late by 100 ms, one evicted.
    tasks = [
        arrival(0, deadline_ms=600),
        arrival(0, deadline_ms=1_100),
        arrival(0, deadline_ms=1_150),
    ]

    outcome = simulate(tasks)

    assert outcome.total.finished == 2
    assert outcome.total.evicted == {"deadline": 1}
    assert outcome.total.deadlines_met_ratio == pytest.approx(1 / 3)


def test_a_task_over_the_wall_time_is_aborted_and_its_slot_goes_on() -> None:
    outcome = simulate([arrival(0, tokens_out=50), arrival(0, tokens_out=20)], wall_ms=400)

    assert (outcome.total.aborted, outcome.total.finished) == (1, 1)
    assert outcome.simulated_ms == 400 + 300


def test_tasks_of_a_recorded_session_share_its_turns() -> None:
    arrivals = [arrival(1_000 * i, session="s") for i in range(3)]

    outcome = simulate(arrivals, limits=Limits(session_max_turns=2))

    assert outcome.total.refused == {"session-turns": 1}


def test_a_model_that_no_pool_serves_is_refused_as_the_service_would() -> None:
    outcome = simulate([arrival(0, model_ref="other"), arrival(0, model_ref="model")])

    assert outcome.total.refused == {"pool-unavailable": 1}
    assert outcome.total.finished == 1


def test_promises_are_compared_with_what_happened() -> None:
    # One slot, equal tasks: after three have finished the core can tell the start to the tick.
    learned = [arrival(1_000 * i) for i in range(3)]
    burst = [arrival(5_000) for _ in range(5)]

    outcome = simulate([*learned, *burst])

    assert outcome.total.start_error.count == 8
    assert outcome.total.start_error.max_ms <= 10


@pytest.mark.req(
    "ORCH-3081", partial="all but tasks told 0.9 or more, with deadlines that leave room"
)
def test_nine_of_ten_tasks_told_so_are_on_time() -> None:
    deadlines = {priority: DeadlineRange(8_000, 60_000) for priority in Priority}
    workload = PoissonWorkload(400, 2.5, ("a", "b"), deadlines=deadlines)

    outcome = simulate(workload.arrivals(Random(4)), slots=12, engine=EngineModel())
    row = outcome.calibration_at_admission[-1]

    assert (row.from_ratio, row.tasks >= 200) == (0.9, True)
    assert row.on_time_ratio == pytest.approx(row.predicted_ratio, abs=0.1)
    assert worst_calibration_error(outcome.calibration_at_admission) is not None


def test_asking_fewer_tasks_for_their_probability_changes_nothing_else() -> None:
    all_asked, few_asked = (simulate(busy_hour(), slots=4, probe_every=n) for n in (1, 10))

    assert few_asked.flows == all_asked.flows
    asked = sum(row.tasks for row in few_asked.calibration_at_admission)
    assert 0 < asked <= 30
