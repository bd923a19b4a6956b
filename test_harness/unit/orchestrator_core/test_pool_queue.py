"""One pool's queue: its bounds, its order, and who makes way when it is full."""

from __future__ import annotations

from collections import Counter
from itertools import count

import pytest

from harness_kit.core_builders import T0_MS, make_pool, make_task
from orchestrator_core.pool import FullPolicy, PriorityPolicy, TenantPolicy
from orchestrator_core.queueing.pool_queue import PoolQueue, Room
from orchestrator_core.task import Priority, Task

INTERACTIVE, BATCH = Priority.INTERACTIVE, Priority.BATCH


def fill(queue: PoolQueue, *tasks: Task) -> None:
    for sequence, task in zip(count(len(queue)), tasks, strict=False):
        queue.push(task, sequence)


def named(queue: PoolQueue, turns: int) -> list[str]:
    return [task.key for task in (queue.pop() for _ in range(turns)) if task is not None]


def many(prefix: str, number: int, **changes: object) -> list[Task]:
    return [make_task(f"{prefix}{i}", **changes) for i in range(number)]


@pytest.mark.req("OC-CORE-1001", "ORCH-3004")
class TestBounds:
    def test_a_class_takes_its_capacity_and_no_more(self) -> None:
        queue = PoolQueue(make_pool(batch=2))

        fill(queue, make_task("a", priority=BATCH), make_task("b", priority=BATCH))

        assert queue.find_room(BATCH) is None
        assert queue.find_room(INTERACTIVE) == Room(None)

    def test_the_total_bounds_all_classes_together(self) -> None:
        queue = PoolQueue(make_pool(capacity=2))

        fill(queue, make_task("a", priority=BATCH), make_task("b"))

        assert queue.find_room(BATCH) is None
        assert queue.find_room(INTERACTIVE) is None

    def test_equal_deadlines_leave_in_arrival_order(self) -> None:
        queue = PoolQueue(make_pool())

        fill(queue, make_task("a"), make_task("b"), make_task("c"))

        assert named(queue, 4) == ["acme/a", "acme/b", "acme/c"]

    def test_a_reload_that_lowers_the_bound_keeps_what_waits(self) -> None:
        queue = PoolQueue(make_pool())
        fill(queue, make_task("a"), make_task("b"))

        queue.reconfigure(make_pool(capacity=1))

        assert queue.find_room(INTERACTIVE) is None
        assert named(queue, 2) == ["acme/a", "acme/b"]


@pytest.mark.req("OC-CORE-1002", "ORCH-3005", partial="all but one rule of one policy")
class TestFullPolicies:
    def victim(self, queue: PoolQueue, priority: Priority) -> str | None:
        room = queue.find_room(priority)
        return room.victim.key if room is not None and room.victim is not None else None

    def test_reject_drops_nobody(self) -> None:
        queue = PoolQueue(make_pool(capacity=1))
        fill(queue, make_task("a", priority=BATCH))

        assert queue.find_room(INTERACTIVE) is None

    def test_drop_lru_takes_the_longest_waiting_of_the_lowest_priority(self) -> None:
        queue = PoolQueue(make_pool(capacity=3, policy=FullPolicy.DROP_LRU))
        fill(
            queue,
            make_task("i"),
            make_task("b1", priority=BATCH, deadline_at_ms=T0_MS + 9),
            make_task("b2", priority=BATCH, deadline_at_ms=T0_MS + 1),
        )

        assert self.victim(queue, INTERACTIVE) == "acme/b1"
        assert self.victim(queue, BATCH) == "acme/b1"

    def test_drop_lru_never_drops_a_higher_priority(self) -> None:
        queue = PoolQueue(make_pool(capacity=1, policy=FullPolicy.DROP_LRU))
        fill(queue, make_task("i"))

        assert queue.find_room(BATCH) is None
        assert self.victim(queue, INTERACTIVE) == "acme/i"

    def test_drop_lru_frees_the_class_when_the_class_is_full(self) -> None:
        queue = PoolQueue(make_pool(interactive=1, policy=FullPolicy.DROP_LRU))
        fill(queue, make_task("b", priority=BATCH), make_task("i"))

        assert self.victim(queue, INTERACTIVE) == "acme/i"

    def test_shed_takes_the_most_recent_of_a_strictly_lower_priority(self) -> None:
        queue = PoolQueue(make_pool(capacity=3, policy=FullPolicy.SHED_LOW_PRIORITY))
        batch = [make_task("b1", priority=BATCH), make_task("b2", priority=BATCH)]
        fill(queue, *batch, make_task("i"))

        assert self.victim(queue, INTERACTIVE) == "acme/b2"
        assert queue.find_room(BATCH) is None

    def test_shed_finds_no_room_in_a_full_class(self) -> None:
        queue = PoolQueue(make_pool(interactive=1, policy=FullPolicy.SHED_LOW_PRIORITY))
        fill(queue, make_task("b", priority=BATCH), make_task("i"))

        assert queue.find_room(INTERACTIVE) is None

    def test_nobody_to_drop_in_an_empty_class_without_capacity(self) -> None:
        queue = PoolQueue(make_pool(batch=0, policy=FullPolicy.DROP_LRU))

        assert queue.find_room(BATCH) is None


@pytest.mark.req("OC-CORE-1004", "ORCH-3075", partial="all but held tenants")
class TestFairOrder:
    @pytest.mark.req("OC-CORE-1004", "ORCH-3075")
    def test_priorities_share_eight_to_one_by_default(self) -> None:
        queue = PoolQueue(make_pool(priorities=()))
        fill(queue, *many("b", 90, priority=BATCH), *many("i", 90))

        served = Counter(key.removeprefix("acme/")[0] for key in named(queue, 90))

        assert served == {"i": 80, "b": 10}

    @pytest.mark.req("OC-CORE-1004", "ORCH-3075")
    def test_tenants_share_within_a_priority_by_weight(self) -> None:
        queue = PoolQueue(make_pool(tenants=(TenantPolicy("x", weight=3),)))
        fill(queue, *many("t", 80, tenant="x"), *many("t", 80, tenant="y"))

        served = Counter(key.split("/")[0] for key in named(queue, 80))

        assert served == {"x": 60, "y": 20}

    @pytest.mark.req("OC-CORE-1004", "ORCH-3075")
    def test_many_interactive_tenants_do_not_push_batch_below_its_weight(self) -> None:
        queue = PoolQueue(make_pool())
        tenants = [f"t{i}" for i in range(10)]
        fill(queue, *many("b", 90, priority=BATCH))
        fill(queue, *(task for t in tenants for task in many("i", 20, tenant=t)))

        served = Counter(key.split("/")[1][0] for key in named(queue, 90))

        assert served == {"i": 80, "b": 10}

    @pytest.mark.req("ORCH-3077", partial="who is held is tested with the scheduler")
    def test_a_held_tenant_does_not_block_the_others(self) -> None:
        queue = PoolQueue(make_pool())
        fill(queue, *many("t", 2, tenant="x"), *many("t", 2, tenant="y"))

        queue.hold("x", True)
        while_held = named(queue, 3)
        queue.hold("x", False)

        assert while_held == ["y/t0", "y/t1"]
        assert named(queue, 3) == ["x/t0", "x/t1"]

    def test_a_class_with_held_tenants_only_gives_way_to_the_other(self) -> None:
        queue = PoolQueue(make_pool())
        queue.hold("x", True)
        fill(queue, make_task("i", tenant="x"), make_task("b", tenant="y", priority=BATCH))

        assert named(queue, 2) == ["y/b"]
        assert queue.pop() is None
        assert len(queue) == 1

    def test_a_held_class_wakes_up_for_a_tenant_that_is_not_held(self) -> None:
        queue = PoolQueue(make_pool())
        queue.hold("x", True)

        fill(queue, make_task("i", tenant="x"), make_task("i", tenant="y"))

        assert named(queue, 2) == ["y/i"]


class TestPosition:
    def test_the_kth_task_of_a_flow_has_k_before_it(self) -> None:
        queue = PoolQueue(make_pool())
        tasks = many("t", 5)
        fill(queue, *tasks)

        assert [queue.position(task, i) for i, task in enumerate(tasks)] == [0, 1, 2, 3, 4]

    def test_a_task_that_does_not_wait_yet_is_told_its_place(self) -> None:
        queue = PoolQueue(make_pool())
        fill(queue, *many("t", 3))

        urgent = make_task("urgent", deadline_at_ms=T0_MS + 1)

        assert queue.position(urgent, 3) == 0
        assert queue.position(make_task("other"), 4) == 3

    def test_between_priorities_it_is_the_order_in_which_they_will_leave(self) -> None:
        queue = PoolQueue(make_pool())
        tasks = many("b", 4, priority=BATCH) + many("i", 40)
        fill(queue, *tasks)

        promised = {task.key: queue.position(task, i) for i, task in enumerate(tasks)}

        assert promised == {key: place for place, key in enumerate(named(queue, 44))}


@pytest.mark.req("OC-CORE-1005")
def test_a_removed_task_is_never_handed_out() -> None:
    queue = PoolQueue(make_pool())
    fill(queue, make_task("a"), make_task("b"))

    removed = queue.remove("acme/a")

    assert removed is not None
    assert removed.key == "acme/a"
    assert "acme/a" not in set(queue.keys())
    assert queue.remove("acme/a") is None
    assert named(queue, 2) == ["acme/b"]


def test_expired_tasks_leave_and_the_others_stay() -> None:
    queue = PoolQueue(make_pool())
    fill(
        queue,
        make_task("due", deadline_at_ms=T0_MS + 5),
        make_task("later", deadline_at_ms=T0_MS + 6),
        make_task("due", tenant="z", priority=BATCH, deadline_at_ms=T0_MS + 4),
    )

    expired = queue.expire(T0_MS + 5)

    assert [task.key for task in expired] == ["acme/due", "z/due"]
    assert named(queue, 2) == ["acme/later"]


def test_every_task_of_a_flow_expires_at_its_own_deadline() -> None:
    queue = PoolQueue(make_pool(capacity=1_000, batch=1_000))
    # Heads change by arrival (each is due before the last), by leaving, and by expiry.
    fill(
        queue,
        *(
            make_task(f"t{due}", priority=BATCH, deadline_at_ms=T0_MS + due)
            for due in range(90, 0, -1)
        ),
    )
    for due in range(1, 41):
        queue.remove(f"acme/t{due}")

    assert queue.expire(T0_MS + 40) == []
    for due in range(41, 91):
        assert [task.key for task in queue.expire(T0_MS + due)] == [f"acme/t{due}"]
    assert len(queue) == 0


def test_what_is_watched_for_deadlines_stays_in_proportion_to_the_flows() -> None:
    queue = PoolQueue(make_pool())

    for number in range(2_000):
        queue.push(make_task(f"t{number}", deadline_at_ms=T0_MS + 9_999 - number), number)
        queue.remove(f"acme/t{number}")

    assert len(queue._classes[INTERACTIVE].due) <= 100


@pytest.mark.req("ORCH-2001", partial="the position among many flows is an estimate")
def test_among_many_flows_a_sample_of_them_tells_the_position() -> None:
    queue = PoolQueue(make_pool(capacity=10_000, batch=10_000))
    tasks = [
        make_task(f"t{turn}-{tenant}", tenant=f"n{tenant}", priority=BATCH)
        for turn in range(3)
        for tenant in range(1_000)
    ]
    fill(queue, *tasks)
    newest = make_task("new", tenant="n500", priority=BATCH, deadline_at_ms=T0_MS + 10**9)

    # Its turn is the fourth of its tenant: three of each of the 1000 go before, and of the fourth
    # nobody has one yet.
    assert queue.position(newest, 10_000) == pytest.approx(3_000, rel=0.1)


def test_sums_of_tokens_return_to_zero() -> None:
    queue = PoolQueue(make_pool())
    fill(queue, make_task("a"), make_task("b", priority=BATCH), make_task("c", tenant="z"))

    assert (queue.cost_tokens, queue.prompt_tokens) == (300, 30)
    queue.remove("z/c")
    named(queue, 2)

    assert (queue.cost_tokens, queue.prompt_tokens, len(queue)) == (0, 0, 0)


def test_whoever_is_late_is_found_after_any_number_of_changes_at_the_head() -> None:
    queue = PoolQueue(make_pool(capacity=1000, interactive=1000))
    patient = make_task("patient", tenant="patient", deadline_at_ms=T0_MS + 500)
    late = make_task("late", tenant="late", deadline_at_ms=T0_MS + 50)
    # Each goes before all of its tenant that wait already.
    busy = [make_task(str(i), deadline_at_ms=T0_MS + 10_000 - i) for i in range(200)]

    fill(queue, patient, late, *busy)

    assert [task.key for task in queue.expire(T0_MS + 100)] == ["late/late"]


def test_new_weights_hold_for_what_waits_already() -> None:
    queue = PoolQueue(make_pool())
    fill(queue, *many("x", 40, tenant="x"), *many("y", 40, tenant="y"))
    fill(queue, *many("b", 40, tenant="x", priority=BATCH))
    interactive = PriorityPolicy(INTERACTIVE, 1, 256)
    batch = PriorityPolicy(BATCH, 1, 256)

    queue.reconfigure(
        make_pool(tenants=(TenantPolicy("x", weight=3),), priorities=(interactive, batch))
    )

    served = Counter(
        (task.tenant, task.priority) for task in (queue.pop() for _ in range(40)) if task
    )
    # A first turn was due by the old weights.
    assert served["x", BATCH] == pytest.approx(20, abs=1)
    assert served["x", INTERACTIVE] == pytest.approx(15, abs=1)
    assert served["y", INTERACTIVE] == pytest.approx(5, abs=1)


def test_who_gives_way_waits_no_more() -> None:
    queue = PoolQueue(make_pool())
    fill(queue, *many("b", 3, priority=BATCH))

    gone = queue.give_way(INTERACTIVE)

    assert gone is not None
    assert list(queue.keys()) == ["acme/b0", "acme/b1"]
