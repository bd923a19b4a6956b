"""Drains, cordons, canaries and merges, as the core decides them."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness_kit.core_builders import (
    T0_MS,
    finished,
    make_pool,
    make_replica,
    make_task,
    ready_scheduler,
    submit,
)
from orchestrator_core.effects import Dispatch, Effect, Ended, Moved, Rejected
from orchestrator_core.errors import Code, InvariantViolation, Reason
from orchestrator_core.events import (
    Evacuated,
    PoolAdded,
    PoolDraining,
    PoolMerged,
    PoolRemoved,
    ReplicaCordoned,
    ReplicaLost,
    ReplicaReady,
    Submit,
    WorkerLost,
)
from orchestrator_core.pool import CanaryShare
from orchestrator_core.scheduler import Scheduler


def two_pools(slots_p: int = 1, slots_q: int = 1) -> Scheduler:
    """Pools p and q of the same model and replica set."""
    scheduler = ready_scheduler(make_pool("p"), [make_replica("p0", "p", slots=slots_p)])
    scheduler.step(PoolAdded(make_pool("q")), T0_MS)
    scheduler.step(ReplicaReady(make_replica("q0", "q", slots=slots_q)), T0_MS)
    return scheduler


def ended(effects: tuple[Effect, ...]) -> dict[str, Code | None]:
    return {
        e.task_key: e.refusal.code if e.refusal else None for e in effects if isinstance(e, Ended)
    }


def homes(effects: list[Effect]) -> list[str]:
    return [effect.pool_id for effect in effects if isinstance(effect, Dispatch)]


@pytest.mark.req("ORCH-2101", "OC-CTRL-2002", partial="the core's part only")
class TestDrain:
    def test_what_waits_goes_to_another_pool_at_once(self) -> None:
        scheduler = two_pools()
        for name in "abcd":
            submit(scheduler, name)
        waiting = scheduler.waiting_keys("p")

        effects = scheduler.step(PoolDraining("p"), T0_MS)

        assert effects == tuple(Moved(key, "q") for key in waiting)
        assert scheduler.waiting_keys("p") == ()
        assert len(scheduler.running("p")) == 1

    def test_what_nobody_else_takes_keeps_its_place_until_the_drain_is_over(self) -> None:
        scheduler = ready_scheduler()
        for name in "ab":
            submit(scheduler, name)

        moved = scheduler.step(PoolDraining("p"), T0_MS)
        scheduler.step(ReplicaLost("p", "r0"), T0_MS)
        scheduler.step(WorkerLost("acme/a", resume=True), T0_MS)
        effects = scheduler.step(Evacuated("p"), T0_MS)

        assert moved == ()
        assert ended(effects) == {"acme/a": Code.WORKER_RESET, "acme/b": Code.POOL_UNREADY}
        assert all(e.refusal is not None and e.refusal.retriable for e in effects)  # type: ignore[union-attr]

    def test_a_replica_whose_tasks_ended_holds_the_pool_s_set_no_longer(self) -> None:
        replicas = [make_replica("r0"), make_replica("r1", version="b2")]
        scheduler = ready_scheduler(replicas=replicas)
        submit(scheduler, "a")
        scheduler.step(ReplicaLost("p", "r0"), T0_MS)
        scheduler.step(WorkerLost("acme/a", resume=True), T0_MS)

        effects = scheduler.step(Evacuated("p", ("r0",)), T0_MS)
        next_one = submit(scheduler, "b")

        assert ended(effects) == {"acme/a": Code.WORKER_RESET}
        assert next_one[-1] == Dispatch("acme/b", "p", "r1", 1)

    def test_a_lifted_drain_starts_what_kept_its_place(self) -> None:
        scheduler = ready_scheduler()
        for name in "ab":
            submit(scheduler, name)
        scheduler.step(PoolDraining("p"), T0_MS)
        assert scheduler.step(finished("acme/a"), T0_MS) == ()

        effects = scheduler.step(PoolDraining("p", draining=False), T0_MS)

        assert effects == (Dispatch("acme/b", "p", "r0", 1),)

    def test_a_pool_that_becomes_ready_takes_what_waits_in_a_drained_one(self) -> None:
        scheduler = ready_scheduler()
        for name in "ab":
            submit(scheduler, name)
        scheduler.step(PoolDraining("p"), T0_MS)
        scheduler.step(PoolAdded(make_pool("q")), T0_MS)

        effects = scheduler.step(ReplicaReady(make_replica("q0", "q")), T0_MS)

        assert effects == (Moved("acme/b", "q"), Dispatch("acme/b", "q", "q0", 1))

    def test_a_worker_that_dies_meanwhile_is_replaced_within_the_draining_pool(self) -> None:
        replicas = [make_replica("r0"), make_replica("r1")]
        scheduler = ready_scheduler(replicas=replicas)
        submit(scheduler, "a")
        scheduler.step(PoolDraining("p"), T0_MS)
        scheduler.step(ReplicaLost("p", "r0"), T0_MS)

        effects = scheduler.step(WorkerLost("acme/a", resume=True), T0_MS)

        assert effects == (Dispatch("acme/a", "p", "r1", 2),)

    def test_the_end_of_the_service_moves_and_resumes_nothing(self) -> None:
        scheduler = two_pools(slots_q=4)
        submit(scheduler, "a")
        scheduler.step(PoolDraining("q", in_place=True), T0_MS)
        for name in "bc":
            submit(scheduler, name)

        effects = [
            *scheduler.step(PoolDraining("p", in_place=True), T0_MS),
            *scheduler.step(WorkerLost("acme/b", resume=True), T0_MS),
        ]

        assert effects == []

    def test_a_pool_is_forgotten_only_without_tasks(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "a")

        with pytest.raises(InvariantViolation, match="has tasks"):
            scheduler.step(PoolRemoved("p"), T0_MS)
        scheduler.step(finished("acme/a"), T0_MS)
        scheduler.step(PoolRemoved("p"), T0_MS)

        assert scheduler.pool_ids() == ()


@pytest.mark.req("ORCH-3007", "ORCH-3201", partial="the core's part only")
class TestResumingElsewhere:
    def test_a_task_goes_on_in_another_pool_of_its_set(self) -> None:
        scheduler = two_pools()
        submit(scheduler, "a")
        (home,) = (pool for pool in "pq" if scheduler.running(pool))
        other = "q" if home == "p" else "p"
        scheduler.step(ReplicaLost(home, f"{home}0"), T0_MS)

        effects = scheduler.step(WorkerLost("acme/a", resume=True), T0_MS)

        assert effects == (
            Moved("acme/a", other),
            Dispatch("acme/a", other, f"{other}0", 2),
        )

    def test_it_waits_where_only_other_sets_are_ready(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "a")
        scheduler.step(PoolAdded(make_pool("q")), T0_MS)
        scheduler.step(ReplicaReady(make_replica("q0", "q", version="b2")), T0_MS)
        scheduler.step(ReplicaLost("p", "r0"), T0_MS)

        effects = scheduler.step(WorkerLost("acme/a", resume=True), T0_MS)

        assert effects == ()
        assert scheduler.waiting_keys("p") == ("acme/a",)

    def test_one_of_which_nothing_was_seen_begins_anew_in_any_set(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "a")
        scheduler.step(PoolAdded(make_pool("q")), T0_MS)
        scheduler.step(ReplicaReady(make_replica("q0", "q", version="b2")), T0_MS)
        scheduler.step(ReplicaLost("p", "r0"), T0_MS)

        effects = scheduler.step(WorkerLost("acme/a", resume=True, anew=True), T0_MS)

        assert effects == (Moved("acme/a", "q"), Dispatch("acme/a", "q", "q0", 2))


@pytest.mark.req("ORCH-2101", partial="the core's part only")
class TestCordon:
    def test_a_cordoned_replica_gets_no_new_work_and_ends_what_it_has(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica("r0", slots=2), make_replica("r1")])
        submit(scheduler, "a")
        scheduler.step(ReplicaCordoned("p", "r0"), T0_MS)

        effects = submit(scheduler, "b") + submit(scheduler, "c")

        assert [e.replica_id for e in effects if isinstance(e, Dispatch)] == ["r1"]
        assert scheduler.running("p") == ("acme/a", "acme/b")

    def test_it_stays_cordoned_when_it_comes_back(self) -> None:
        scheduler = ready_scheduler()
        scheduler.step(ReplicaCordoned("p", "r0"), T0_MS)
        scheduler.step(ReplicaLost("p", "r0"), T0_MS)
        scheduler.step(ReplicaReady(make_replica("r0")), T0_MS)

        (rejected,) = submit(scheduler, "a")

        assert isinstance(rejected, Rejected)
        assert (rejected.refusal.code, rejected.refusal.reason) == (
            Code.POOL_UNREADY,
            Reason.DRAINING,
        )
        assert "cordoned" in rejected.refusal.message

    def test_lifting_it_starts_what_waits(self) -> None:
        scheduler = ready_scheduler()
        submit(scheduler, "a")
        submit(scheduler, "b")
        scheduler.step(ReplicaCordoned("p", "r0"), T0_MS)
        assert scheduler.step(finished("acme/a"), T0_MS) == ()

        effects = scheduler.step(ReplicaCordoned("p", "r0", cordoned=False), T0_MS)

        assert effects == (Dispatch("acme/b", "p", "r0", 1),)

    def test_a_task_that_resumes_takes_it_where_its_set_has_nothing_better(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica("r0"), make_replica("r1")])
        submit(scheduler, "a")
        scheduler.step(ReplicaCordoned("p", "r1"), T0_MS)
        scheduler.step(ReplicaLost("p", "r0"), T0_MS)

        effects = scheduler.step(WorkerLost("acme/a", resume=True), T0_MS)

        assert effects == (Dispatch("acme/a", "p", "r1", 2),)

    def test_a_cordoned_set_does_not_hold_the_pin(self) -> None:
        scheduler = ready_scheduler(replicas=[make_replica("old", slots=2)])
        submit(scheduler, "a")
        scheduler.step(ReplicaCordoned("p", "old"), T0_MS)
        scheduler.step(ReplicaReady(make_replica("new", version="b2")), T0_MS)

        effects = submit(scheduler, "b")

        assert effects[-1] == Dispatch("acme/b", "p", "new", 1)
        assert scheduler.running("p") == ("acme/a", "acme/b")


@pytest.mark.req("ORCH-2102", "OC-CTRL-2003", partial="the core's part only")
class TestAnotherModel:
    def test_what_waits_for_a_name_that_is_gone_moves_or_ends(self) -> None:
        old, new = "sha256:old", "sha256:new"
        scheduler = ready_scheduler(make_pool(model_refs=frozenset({"model", old})))
        submit(scheduler, "runs", model_ref=old)
        submit(scheduler, "exact", model_ref=old)
        submit(scheduler, "alias")

        effects = scheduler.step(PoolAdded(make_pool(model_refs=frozenset({"model", new}))), T0_MS)

        assert ended(effects) == {"acme/exact": Code.POOL_UNAVAILABLE}
        assert scheduler.running("p") == ("acme/runs",)
        assert scheduler.waiting_keys("p") == ("acme/alias",)


@pytest.mark.req("ORCH-3033", partial="the core's part only")
class TestCanary:
    def stable_and_canary(self, share: CanaryShare, slots: int = 256) -> Scheduler:
        scheduler = ready_scheduler(make_pool("p"), [make_replica("p0", "p", slots=slots)])
        refs = frozenset({"model", "new"})
        scheduler.step(PoolAdded(make_pool("p.canary", model_refs=refs, canary=share)), T0_MS)
        canary = make_replica("c0", "p.canary", slots=slots, version="b2")
        scheduler.step(ReplicaReady(canary), T0_MS)
        return scheduler

    def test_a_share_of_the_tasks_goes_there_by_a_hash_of_their_keys(self) -> None:
        scheduler = self.stable_and_canary(CanaryShare("p", percent=50))
        again = self.stable_and_canary(CanaryShare("p", percent=50))

        first = [homes(submit(scheduler, f"t{n}")) for n in range(200)]
        second = [homes(submit(again, f"t{n}")) for n in reversed(range(200))]

        # A fair coin gives 100 +- 7; five sigma is no accident.
        assert 65 <= first.count(["p.canary"]) <= 135
        assert second == first[::-1]

    def test_tenants_can_be_chosen_by_name(self) -> None:
        scheduler = self.stable_and_canary(CanaryShare("p", tenants=frozenset({"beta"})))

        chosen = {t: homes(submit(scheduler, "a", tenant=t)) for t in ("acme", "beta")}

        assert chosen == {"acme": ["p"], "beta": ["p.canary"]}

    def test_the_new_model_by_its_own_name_goes_there_whatever_the_share(self) -> None:
        scheduler = self.stable_and_canary(CanaryShare("p", percent=0))

        effects = submit(scheduler, "a", model_ref="new")

        assert homes(effects) == ["p.canary"]

    def test_a_full_canary_keeps_its_share_and_one_that_is_not_ready_does_not(self) -> None:
        scheduler = self.stable_and_canary(CanaryShare("p", percent=100), slots=1)

        homes_full = [homes(submit(scheduler, f"t{n}")) for n in range(2)]
        scheduler.step(ReplicaLost("p.canary", "c0"), T0_MS)
        homes_lost = homes(submit(scheduler, "late"))

        assert homes_full == [["p.canary"], []]
        assert homes_lost == ["p"]

    def test_promotion_takes_over_what_runs_and_waits_there_undisturbed(self) -> None:
        scheduler = self.stable_and_canary(CanaryShare("p", percent=100), slots=1)
        for name in "ab":
            submit(scheduler, name)
        scheduler.step(ReplicaCordoned("p", "p0"), T0_MS)

        effects = scheduler.step(PoolMerged("p", "p.canary"), T0_MS)
        after = scheduler.step(finished("acme/a"), T0_MS)

        assert effects == (Moved("acme/b", "p"), Moved("acme/a", "p"))
        assert scheduler.pool_ids() == ("p",)
        assert after == (Dispatch("acme/b", "p", "c0", 1),)

    def test_a_merge_of_replicas_with_the_same_id_is_a_defect(self) -> None:
        scheduler = self.stable_and_canary(CanaryShare("p"))
        scheduler.step(ReplicaReady(replace(make_replica("p0"), pool_id="p.canary")), T0_MS)

        with pytest.raises(InvariantViolation, match="p0"):
            scheduler.step(PoolMerged("p", "p.canary"), T0_MS)


def test_a_moved_task_keeps_its_turn_among_its_like() -> None:
    scheduler = two_pools()
    names = ["early", "late"]
    for name, at_ms in zip(names, (0, 1), strict=True):
        task = make_task(f"run-{name}")
        scheduler.step(Submit(task), T0_MS + at_ms)
    home = {key: pool for pool in "pq" for key in scheduler.running(pool)}
    submit(scheduler, "first", session_key="a")
    submit(scheduler, "second", session_key="b")
    (source,) = {pool for pool in "pq" if "acme/first" in scheduler.waiting_keys(pool)}
    other = "q" if source == "p" else "p"
    assert scheduler.waiting_keys(other) == ("acme/second",)

    scheduler.step(PoolDraining(source), T0_MS)
    key = next(key for key, pool in home.items() if pool == other)
    effects = scheduler.step(finished(key), T0_MS)

    assert effects == (Dispatch("acme/first", other, f"{other}0", 1),)
