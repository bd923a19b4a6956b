"""The victim under lasting overload, against a look at every waiting task."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness_kit.core_builders import T0_MS, finished, make_pool, ready_scheduler, submit
from orchestrator_core.effects import Admitted, Dispatch, Ended
from orchestrator_core.events import Tick
from orchestrator_core.pool import FullPolicy, PreemptionMode, PreemptionPolicy, TenantPolicy
from orchestrator_core.queueing.pool_queue import FLOWS_COMPARED, LASTING_MS
from orchestrator_core.task import Priority

TENANTS = tuple(f"t{number}" for number in range(FLOWS_COMPARED))
CAPACITY = 10

drawn_tasks = st.lists(
    st.tuples(st.sampled_from(TENANTS), st.sampled_from(list(Priority)), st.integers(1, 200)),
    min_size=CAPACITY,
    max_size=CAPACITY,
)


@pytest.mark.req("ORCH-3080")
@given(
    st.sampled_from([FullPolicy.DROP_LRU, FullPolicy.SHED_LOW_PRIORITY]),
    drawn_tasks,
    st.dictionaries(st.sampled_from(TENANTS), st.integers(1, 9)),
    st.booleans(),
)
def test_it_is_of_the_lowest_priority_and_nobody_there_starts_later_or_is_late_instead(
    policy: FullPolicy,
    drawn: list[tuple[str, Priority, int]],
    weights: dict[str, int],
    known_speed: bool,
) -> None:
    spec = make_pool(
        capacity=CAPACITY,
        policy=policy,
        tenants=tuple(TenantPolicy(tenant, weight) for tenant, weight in weights.items()),
        preemption=PreemptionPolicy(PreemptionMode.OFF),
    )
    scheduler = ready_scheduler(spec)
    for number in range(3 if known_speed else 0):  # a task takes a second from then on
        submit(scheduler, f"past{number}")
        scheduler.step(finished(f"acme/past{number}"), T0_MS)
    submit(scheduler, "runs", deadline_at_ms=T0_MS + 10**9)
    now_ms = T0_MS + LASTING_MS
    waiting: dict[str, tuple[Priority, int, int]] = {}
    for number, (tenant, priority, due_s) in enumerate(drawn):
        # While its speed is not known the pool takes anything; a due task may be late by now.
        due_ms = now_ms + due_s * 100 + (10**6 if known_speed else 0)
        admitted = submit(
            scheduler, str(number), tenant=tenant, priority=priority, deadline_at_ms=due_ms
        )
        assert isinstance(admitted[0], Admitted)
        waiting[f"{tenant}/{number}"] = (priority, number, due_ms)
    scheduler.step(Tick(), T0_MS)
    if known_speed:  # and time has passed since; one has started, one has come
        now_ms += 10**6
        for effect in scheduler.step(finished("acme/runs"), now_ms):
            assert isinstance(effect, Dispatch)
            del waiting[effect.task_key]
        filler = (Priority.INTERACTIVE, CAPACITY, now_ms + 10**9)
        submit(scheduler, str(CAPACITY), now_ms, tenant="t0", deadline_at_ms=filler[2])
        waiting[f"t0/{CAPACITY}"] = filler
    scheduler.step(Tick(), now_ms)
    places = {key: scheduler.position(key) or 0 for key in waiting}
    starts = {key: scheduler.predicted_start_ms(key, now_ms) or 0 for key in waiting}

    effects = submit(
        scheduler, "new", now_ms, tenant="new", deadline_at_ms=now_ms + 10**9, arrived_ms=now_ms
    )

    victims = [effect.task_key for effect in effects if isinstance(effect, Ended)]
    lowest = max((priority for priority, _, _ in waiting.values()), key=lambda p: p.rank)
    if policy is FullPolicy.SHED_LOW_PRIORITY and lowest is Priority.INTERACTIVE:
        assert victims == []
        return
    (victim,) = victims
    assert waiting[victim][0] is lowest
    late = {
        key
        for key, (_, _, due_ms) in waiting.items()
        if known_speed and now_ms + starts[key] + 1_000 > due_ms
    }
    if victim not in late:
        last = max(places[key] for key, (priority, _, _) in waiting.items() if priority is lowest)
        assert places[victim] == last
        # Nobody at either end of a flow is late: their loss would cost less.
        ends: dict[str, list[tuple[int, int, str]]] = {}
        for key, (priority, number, due_ms) in waiting.items():
            if priority is lowest:
                ends.setdefault(key.partition("/")[0], []).append((due_ms, number, key))
        assert not {key for flow in ends.values() for _, _, key in (min(flow), max(flow))} & late
