"""The KV that sessions leave in an engine, and its account."""

from __future__ import annotations

import pytest

from harness_kit.core_builders import T0_MS, make_pool, make_replica, ready_scheduler
from harness_kit.core_builders import submit as submit_task
from orchestrator_core.events import Finished, ReplicaLost, ReplicaReady, SessionForgotten
from orchestrator_core.pool import ReplicaSpec
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.sessions.resident_kv import ResidentKv

KV_BYTES = 40


class Holder:
    def __init__(self, key: str) -> None:
        self.key = key
        self.lost = False

    def lose_kv(self) -> None:
        self.lost = True


def hold(kv: ResidentKv, *sizes_bytes: int) -> list[Holder]:
    """One holder per size, in that order of use."""
    holders = [Holder(f"s{number}") for number in range(len(sizes_bytes))]
    for holder, size_bytes in zip(holders, sizes_bytes, strict=True):
        kv.hold(holder, size_bytes)
    return holders


@pytest.mark.req("ORCH-3022")
class TestAccount:
    def test_what_was_used_longest_ago_makes_room(self) -> None:
        kv = ResidentKv(100)
        first, second, third = hold(kv, 40, 40, 50)

        assert [first.lost, second.lost, third.lost] == [True, False, False]
        assert (kv.bytes_used, len(kv)) == (90, 2)
        assert kv.evictions == 1

    def test_use_makes_a_session_the_youngest_and_its_last_size_counts(self) -> None:
        kv = ResidentKv(100)
        first, second = hold(kv, 40, 40)

        kv.hold(first, 60)
        kv.hold(Holder("new"), 10)

        assert (first.lost, second.lost) == (False, True)
        assert kv.bytes_used == 70

    def test_a_session_that_left_is_not_counted(self) -> None:
        kv = ResidentKv(100)
        hold(kv, 40, 40)

        kv.drop("s0")
        kv.drop("s0")

        assert (kv.bytes_used, len(kv)) == (40, 1)
        assert kv.evictions == 0

    @pytest.mark.parametrize("kv_bytes", [0, 101])
    def test_what_has_no_size_or_cannot_be_there_is_not_entered(self, kv_bytes: int) -> None:
        kv = ResidentKv(100)
        (kept,) = hold(kv, 100)

        kv.hold(Holder("odd"), kv_bytes)

        assert (kept.lost, kv.bytes_used) == (False, 100)


def kv_replica(name: str = "r0") -> ReplicaSpec:
    """Room for the KV of two sessions."""
    spec = make_replica(name)
    return ReplicaSpec(spec.id, spec.pool_id, spec.set_key, 1, 8192, kv_bytes_max=2 * KV_BYTES)


def run(scheduler: Scheduler, name: str) -> None:
    """A task in a session of its own that leaves its KV behind."""
    submit_task(scheduler, name)
    scheduler.step(Finished(f"acme/{name}", 10, 90, 100, 900, KV_BYTES, kv_warm=True), T0_MS)


def shown(scheduler: Scheduler, name: str) -> tuple[int, bool, str | None]:
    session = scheduler.session(f"acme/s-{name}", T0_MS)
    assert session is not None
    return session.kv_bytes, session.kv_warmth, session.last_replica


@pytest.mark.req("ORCH-3009")
@pytest.mark.req("ORCH-3022", partial="the bound")
class TestSessions:
    def test_a_session_shows_no_kv_that_others_have_pushed_out(self) -> None:
        scheduler = ready_scheduler(make_pool(), [kv_replica()])
        for name in ("a", "b", "c"):
            run(scheduler, name)

        assert shown(scheduler, "a") == (0, False, None)
        assert shown(scheduler, "b") == (KV_BYTES, True, "r0")

    def test_a_forgotten_session_frees_its_kv(self) -> None:
        scheduler = ready_scheduler(make_pool(), [kv_replica()])
        run(scheduler, "a")
        run(scheduler, "b")

        scheduler.step(SessionForgotten("acme/s-b"), T0_MS)
        run(scheduler, "c")

        assert shown(scheduler, "a") == shown(scheduler, "c") == (KV_BYTES, True, "r0")

    def test_a_session_that_moves_takes_its_account_along(self) -> None:
        scheduler = ready_scheduler(make_pool(), [kv_replica("r0"), kv_replica("r1")])
        run(scheduler, "a")
        submit_task(scheduler, "other")  # takes the only slot of r0
        submit_task(scheduler, "b", session_key="acme/s-a")
        scheduler.step(Finished("acme/b", 10, 90, 100, 900, KV_BYTES), T0_MS)

        for name in ("c", "d"):  # they fill the rest of r1, where r0 has no free slot
            run(scheduler, name)

        assert shown(scheduler, "a") == (0, False, None)
        assert shown(scheduler, "d") == (KV_BYTES, True, "r1")

    def test_a_replica_that_comes_back_holds_nothing(self) -> None:
        scheduler = ready_scheduler(make_pool(), [kv_replica()])
        run(scheduler, "a")

        scheduler.step(ReplicaLost("p", "r0"), T0_MS)
        scheduler.step(ReplicaReady(kv_replica()), T0_MS)

        assert shown(scheduler, "a") == (0, False, None)

    @pytest.mark.req("ORCH-3027", partial="its way to the log")
    def test_what_was_pushed_out_is_counted_for_each_process(self) -> None:
        scheduler = ready_scheduler(make_pool(), [kv_replica()])
        counts = [scheduler.kv_evictions("p", "r0")]
        for name in ("a", "b", "c", "d"):
            run(scheduler, name)
            counts.append(scheduler.kv_evictions("p", "r0"))

        scheduler.step(ReplicaLost("p", "r0"), T0_MS)
        gone = scheduler.kv_evictions("p", "r0")
        scheduler.step(ReplicaReady(kv_replica()), T0_MS)

        assert counts == [0, 0, 0, 1, 2]
        assert gone is None
        assert scheduler.kv_evictions("p", "r0") == 0
        assert scheduler.kv_evictions("q", "r0") is None
