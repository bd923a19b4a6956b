"""Start-time fair queueing between flows."""

from __future__ import annotations

from collections import Counter

import pytest

from orchestrator_core.queueing.wfq import MEMBERS_COUNTED, SWEEP_MEMBERS, FairShare


def serve(shares: FairShare, turns: int, cost_tokens: int = 10) -> list[str]:
    order = []
    for _ in range(turns):
        key = shares.pick()
        assert key is not None
        shares.charge(key, cost_tokens)
        order.append(key)
    return order


@pytest.mark.req("ORCH-3075", partial="the hierarchy is tested with the pool queue")
def test_backlogged_members_are_served_by_weight() -> None:
    shares = FairShare()
    shares.activate("heavy", 8)
    shares.activate("light", 1)

    served = Counter(serve(shares, 90))

    assert served == {"heavy": 80, "light": 10}


def test_service_is_counted_in_tokens_not_in_tasks() -> None:
    shares = FairShare()
    shares.activate("long", 1)
    shares.activate("short", 1)
    tokens: Counter[str] = Counter()

    for _ in range(110):
        key = shares.pick()
        assert key is not None
        cost = 100 if key == "long" else 10
        shares.charge(key, cost)
        tokens[key] += cost

    assert tokens == {"long": 1000, "short": 1000}


def test_equal_tags_go_by_rank_then_by_arrival() -> None:
    shares = FairShare()
    shares.activate("batch", 1, rank=1)
    shares.activate("urgent-b", 1)
    shares.activate("urgent-a", 1)

    order = serve(shares, 3)

    assert order == ["urgent-b", "urgent-a", "batch"]


def test_a_member_that_comes_late_has_no_claim_on_the_past() -> None:
    shares = FairShare()
    shares.activate("early", 1)
    serve(shares, 10)

    shares.activate("late", 1)

    # early is one task ahead of virtual time, so late catches up by exactly one task.
    assert serve(shares, 4) == ["late", "early", "late", "early"]


def test_a_held_member_is_skipped_and_keeps_its_place() -> None:
    shares = FairShare()
    shares.activate("a", 1)
    shares.activate("b", 1)

    shares.hold("a", True)
    while_held = serve(shares, 2)
    shares.hold("a", False)

    assert while_held == ["b", "b"]
    assert serve(shares, 4) == ["a", "a", "a", "b"]  # equal tags: a was there first


def test_nobody_is_picked_when_all_are_held() -> None:
    shares = FairShare()
    shares.activate("a", 1, held=True)

    assert shares.pick() is None
    assert len(shares) == 1


def test_an_idle_period_forgives_past_use() -> None:
    shares = FairShare()
    shares.activate("a", 1)
    serve(shares, 5)
    shares.retire("a")

    shares.activate("a", 1)
    shares.activate("b", 1)

    assert serve(shares, 2) == ["a", "b"]


def test_idle_members_are_forgotten_when_others_keep_the_level_busy() -> None:
    shares = FairShare()
    shares.activate("always", 1)

    for visitor in range(1000):
        shares.activate(f"v{visitor}", 1)
        serve(shares, 2)
        shares.retire(f"v{visitor}")

    assert len(shares._members) <= SWEEP_MEMBERS + 4


def test_a_newcomer_is_behind_whoever_waits_at_the_same_virtual_time() -> None:
    shares = FairShare()
    shares.activate("early", 1)
    shares.activate("later", 1)

    ahead = shares.ahead("new", 0, 1, 0, {"early": (1, 100), "later": (3, 300)}.get)

    assert ahead == (2, 200)


def test_a_task_of_one_token_costs_half_of_one_of_two() -> None:
    shares = FairShare()
    shares.activate("short", 1)
    shares.activate("long", 1)

    turns: Counter[str] = Counter()

    for _ in range(30):
        key = shares.pick()
        assert key is not None
        turns[key] += 1
        shares.charge(key, 1 if key == "short" else 2)

    assert turns == {"short": 20, "long": 10}


def test_of_many_members_as_many_stand_for_all() -> None:
    shares = FairShare()
    for number in range(2 * MEMBERS_COUNTED):
        shares.activate(f"m{number}", 1)

    ahead = shares.ahead("new", 0, 1, 0, lambda key: (1, 100))

    assert ahead == (2 * MEMBERS_COUNTED, 100 * 2 * MEMBERS_COUNTED)


def test_what_is_ahead_counts_from_the_tag_that_a_member_has_by_now() -> None:
    shares = FairShare()
    shares.activate("busy", 1)
    shares.activate("idle", 1)
    for key, cost_tokens in (("busy", 300), ("idle", 100), ("idle", 100)):
        shares.charge(key, cost_tokens)

    # Virtual time is 100, busy's next task starts at 300: of those of 100 tokens that a task at
    # 500 has before it, busy has three (300, 400, 500), idle four (200 to 500).
    ahead = shares.ahead("new", 400, 1, 0, {"busy": (9, 900), "idle": (9, 900)}.get)

    assert ahead == (7, 700)


def test_what_it_says_of_itself_is_relative_to_virtual_time() -> None:
    shares = FairShare()
    shares.activate("a", 1)
    shares.activate("b", 1)
    for key, cost_tokens in (("a", 100), ("b", 50), ("b", 100)):
        shares.charge(key, cost_tokens)

    assert shares.describe() == "a+50 b+100"


def test_a_sweep_forgets_nobody_who_waits() -> None:
    shares = FairShare()
    shares.activate("held", 1, held=True)
    shares.activate("always", 1)

    for visitor in range(4 * SWEEP_MEMBERS):
        shares.activate(f"v{visitor}", 1)
        serve(shares, 2)
        shares.retire(f"v{visitor}")
    shares.hold("held", False)

    assert shares.pick() == "held"


def test_tasks_ahead_follow_from_tags_and_weights() -> None:
    shares = FairShare()
    shares.activate("heavy", 4)
    shares.activate("light", 1, rank=1)

    # light's third task starts after 200 of its tokens; by then heavy, at four times the weight,
    # has started those of its 100-token tasks that begin at or before 800 tokens: nine of them.
    tasks, tokens = shares.ahead("light", 200, 1, 1, {"heavy": (50, 5000), "light": (9, 900)}.get)

    assert (tasks, tokens) == (9, 900)


def test_a_new_weight_holds_from_the_next_charge_on() -> None:
    shares = FairShare()
    shares.activate("a", 1)
    shares.activate("b", 1)

    shares.reweigh("a", 3)

    assert Counter(serve(shares, 80)) == {"a": 60, "b": 20}
