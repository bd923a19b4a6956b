"""Sessions: how long they live, what they may spend, where they were served."""

from __future__ import annotations

import pytest

from harness_kit.core_builders import T0_MS, make_replica
from orchestrator_core.errors import Code, Reason
from orchestrator_core.limits import Limits
from orchestrator_core.replica_sets import ReplicaSet
from orchestrator_core.replicas import Replica
from orchestrator_core.sessions.session_table import Reservation, Session, SessionTable


def make_replica_state(name: str = "r0") -> Replica:
    spec = make_replica(name)
    return Replica(spec, ReplicaSet("set", spec.set_key, Limits()), epoch=1)


@pytest.mark.req("ORCH-3021", partial="a policy plugin that decides instead comes later")
class TestLife:
    def test_it_ends_its_ttl_after_it_was_created_however_busy(self) -> None:
        table = SessionTable(Limits(session_ttl_ms=1000))
        table.open("s", T0_MS)
        table.open("s", T0_MS + 900)

        assert table.find("s", T0_MS + 999) is not None
        assert table.find("s", T0_MS + 1000) is None
        assert table.expire(T0_MS + 999) == []
        assert table.expire(T0_MS + 1000) == ["s"]
        assert len(table) == 0

    def test_the_same_id_starts_anew_after_that(self) -> None:
        table = SessionTable(Limits(session_ttl_ms=1000))
        old, _ = table.open("s", T0_MS)
        old.turns = 5

        new, gone = table.open("s", T0_MS + 1000)

        assert (new.turns, new.created_ms, gone) == (0, T0_MS + 1000, ["s"])
        assert table.expire(T0_MS + 1999) == []

    def test_a_session_without_turns_left_refuses(self) -> None:
        table = SessionTable(Limits(session_max_turns=2))
        session, _ = table.open("s", T0_MS)

        session.turns = 1
        allowed = table.refusal("s", 10, 0, T0_MS)
        session.turns = 2
        refusal = table.refusal("s", 10, 0, T0_MS)

        assert allowed is None
        assert refusal is not None
        assert (refusal.code, refusal.reason) == (Code.ADMISSION_REJECT, Reason.SESSION_TURNS)
        assert (refusal.policy_label, refusal.retriable) == ("session", False)

    def test_a_forgotten_session_is_gone(self) -> None:
        table = SessionTable(Limits())
        table.open("s", T0_MS)

        assert table.forget("s")
        assert not table.forget("s")
        assert table.find("s", T0_MS) is None

    def test_the_least_recently_used_goes_when_there_are_too_many(self) -> None:
        table = SessionTable(Limits(max_sessions=2))
        for key in ("a", "b", "a"):
            table.open(key, T0_MS)

        _, gone = table.open("c", T0_MS)

        assert gone == ["b"]
        assert len(table) == 2

    def test_memory_is_bounded_when_sessions_come_and_go(self) -> None:
        table = SessionTable(Limits())

        for i in range(1000):
            table.open(f"s{i}", T0_MS)
            table.forget(f"s{i}")

        assert len(table._births) <= 66

    def test_a_restored_session_keeps_its_age(self) -> None:
        table = SessionTable(Limits(session_ttl_ms=1000))

        table.restore(Session("s", T0_MS - 400))

        assert table.expire(T0_MS + 599) == []
        assert table.expire(T0_MS + 600) == ["s"]


@pytest.mark.req("OC-CORE-1021", "OC-CORE-1023", "ORCH-3099", partial="all but the core's side")
class TestBudgets:
    def test_what_is_reserved_counts_as_used_until_it_is_settled(self) -> None:
        table = SessionTable(
            Limits(budget_tokens=100, budget_time_ms=5000, budget_cost=200.0, cost_per_token=2.0)
        )
        session, _ = table.open("s", T0_MS)

        session.reserve(Reservation(60, 1000))
        reserved = table.view(session, T0_MS)
        session.settle(Reservation(60, 1000), 25, 700)
        settled = table.view(session, T0_MS)

        assert reserved.tokens_budget_remaining == 40
        assert reserved.time_budget_remaining_ms == 4000
        assert reserved.cost_budget_remaining == 80.0
        assert settled.tokens_budget_remaining == 75
        assert settled.time_budget_remaining_ms == 4300
        assert settled.cost_budget_remaining == 150.0

    @pytest.mark.parametrize(
        ("limits", "names"),
        [
            (Limits(budget_tokens=99), "100 tokens (prompt + max_tokens) exceed the 99 tokens"),
            (Limits(budget_time_ms=499), "500 ms exceed the 499 ms"),
            (Limits(budget_cost=49.5, cost_per_token=0.5), "a cost of 50 exceeds the 49.5"),
        ],
    )
    def test_a_task_that_needs_more_than_is_left_is_refused(
        self, limits: Limits, names: str
    ) -> None:
        refusal = SessionTable(limits).refusal("s", 100, 500, T0_MS)

        assert refusal is not None
        assert (refusal.code, refusal.policy_label) == (Code.ADMISSION_REJECT, "budget")
        assert (refusal.retriable, refusal.retry_after_ms) == (False, None)
        assert names in refusal.message

    def test_a_task_that_needs_exactly_what_is_left_is_not(self) -> None:
        limits = Limits(budget_tokens=100, budget_time_ms=500, budget_cost=100.0)

        assert SessionTable(limits).refusal("s", 100, 500, T0_MS) is None

    def test_a_used_up_time_budget_refuses_even_where_speed_is_unknown(self) -> None:
        table = SessionTable(Limits(budget_time_ms=500))
        session, _ = table.open("s", T0_MS)
        session.settle(Reservation(0, 0), 0, 500)

        assert table.refusal("s", 1, 0, T0_MS) is not None

    def test_without_budgets_nothing_is_reported(self) -> None:
        table = SessionTable(Limits())
        session, _ = table.open("s", T0_MS)

        view = table.view(session, T0_MS)

        assert view.tokens_budget_remaining is None
        assert view.time_budget_remaining_ms is None
        assert view.cost_budget_remaining is None


@pytest.mark.req("ORCH-3009")
class TestAffinity:
    def test_it_prefers_the_last_good_replica(self) -> None:
        session, replica = Session("s", T0_MS), make_replica_state()

        session.stay_on(replica, kv_bytes=4096, kv_warm=True)
        view = SessionTable(Limits()).view(session, T0_MS)

        assert session.preferred() is replica
        assert (view.kv_bytes, view.kv_warmth, view.last_replica) == (4096, True, "r0")

    def test_a_replica_that_restarted_in_between_is_cold(self) -> None:
        session, replica = Session("s", T0_MS), make_replica_state()
        session.stay_on(replica, kv_bytes=4096, kv_warm=True)

        replica.epoch += 1
        view = SessionTable(Limits()).view(session, T0_MS)

        assert session.preferred() is None
        assert (view.kv_bytes, view.kv_warmth, view.last_replica) == (0, False, None)

    def test_after_a_failover_it_is_cold(self) -> None:
        session = Session("s", T0_MS)
        session.stay_on(make_replica_state(), kv_bytes=4096, kv_warm=True)

        session.lose_kv()

        assert not SessionTable(Limits()).view(session, T0_MS).kv_warmth
