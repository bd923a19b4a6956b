"""Observed shares: against a sum over everything served, and against the weights under backlog."""

from __future__ import annotations

from math import exp

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness_kit.core_builders import T0_MS, make_pool, make_replica, ready_scheduler, submit
from orchestrator_core.effects import Dispatch
from orchestrator_core.events import Finished
from orchestrator_core.limits import Limits
from orchestrator_core.pool import TenantPolicy
from orchestrator_core.queueing.share import NOTHING_TOKENS, WINDOW_MS, ObservedShares
from orchestrator_core.task import Priority

TENANTS = ("x", "y", "z")
flows = st.tuples(st.sampled_from(TENANTS), st.sampled_from(list(Priority)))


@pytest.mark.req("ORCH-3076", partial="that it follows the weights")
@given(
    st.lists(st.tuples(flows, st.integers(1, 5_000), st.integers(0, 100_000)), max_size=40),
    st.integers(0, 200_000),
)
def test_a_share_is_what_a_sum_over_all_that_was_served_says(
    served: list[tuple[tuple[str, Priority], int, int]], later_ms: int
) -> None:
    shares, history, now_ms = ObservedShares(), [], T0_MS
    for flow, tokens, passed_ms in served:
        now_ms += passed_ms
        shares.serve(*flow, tokens, now_ms)
        history.append((flow, tokens, now_ms))
    now_ms += later_ms

    counted = {
        flow: sum(n * exp((at - now_ms) / WINDOW_MS) for f, n, at in history if f == flow)
        for flow in {flow for flow, _, _ in history}
    }

    total = sum(counted.values())
    for flow, tokens_left in counted.items():
        # One that had faded to nothing may have been forgotten: half a token of each of six flows.
        slack = 6 * NOTHING_TOKENS / total if total > 10 * NOTHING_TOKENS else 1.0
        assert shares.of(*flow, now_ms) == pytest.approx(
            tokens_left / total if total else 0, abs=slack
        )
    every = shares.all(now_ms)
    assert every == {flow: shares.of(*flow, now_ms) for flow in every}
    assert sum(every.values()) <= 1 + 1e-9


@pytest.mark.req("ORCH-3076", "ORCH-3075")
@given(
    st.dictionaries(st.sampled_from(TENANTS), st.integers(1, 9), min_size=2),
    st.integers(1, 4),
    st.lists(st.integers(20, 60), min_size=8, max_size=8),
)
def test_under_backlog_the_observed_share_follows_the_weights_within_five_percent(
    weights: dict[str, int], slots: int, costs: list[int]
) -> None:
    tenants = tuple(TenantPolicy(tenant, weight) for tenant, weight in weights.items())
    scheduler = ready_scheduler(
        make_pool(tenants=tenants), [make_replica(slots=slots)], Limits(session_max_turns=10**6)
    )
    now_ms, number, running = T0_MS, 0, list[str]()

    def ask(tenant: str, priority: Priority) -> None:
        nonlocal number
        number += 1
        cost = costs[number % len(costs)]
        effects = submit(
            scheduler, f"{priority}-{number}", now_ms, tenant=tenant, priority=priority,
            cost_tokens=cost, deadline_at_ms=now_ms + 10**9, arrived_ms=now_ms,
        )  # fmt: skip
        running.extend(e.task_key for e in effects if isinstance(e, Dispatch))

    everybody = [(tenant, priority) for tenant in weights for priority in Priority]
    for flow in everybody * 6:
        ask(*flow)
    # Tasks take 0.4 s of their slot, so that the window holds hundreds of them; whoever is served
    # asks again, so that nobody's backlog runs out.
    for _ in range(300):
        key = running.pop(0)
        now_ms += 400 // slots
        effects = scheduler.step(Finished(key, 10, 10, 50, 50), now_ms)
        running.extend(e.task_key for e in effects if isinstance(e, Dispatch))
        tenant, _, rest = key.partition("/")
        ask(tenant, Priority(rest.partition("-")[0]))

    shares = scheduler.shares(now_ms)
    assert sum(share.entitled for share in shares.values()) == pytest.approx(1.0)
    for flow in everybody:
        assert abs(shares[flow].observed - shares[flow].entitled) < 0.05, (flow, shares)
