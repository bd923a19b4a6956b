"""The queue against oracles that are too dumb to be wrong, and its bounds under any traffic."""

from __future__ import annotations

from collections import Counter
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness_kit.core_builders import T0_MS, make_pool, make_task
from orchestrator_core.pool import FullPolicy, PoolSpec, TenantPolicy
from orchestrator_core.queueing.pool_queue import PoolQueue
from orchestrator_core.queueing.ranked_list import BLOCK_ITEMS, RankedList
from orchestrator_core.task import Priority, Task

TENANTS = ("x", "y", "z")
WEIGHTS = {"x": 3, "y": 2, "z": 1}
PRIORITY_WEIGHTS = {Priority.INTERACTIVE: 8, Priority.BATCH: 1}
SPEC = make_pool(tenants=tuple(TenantPolicy(t, weight=w) for t, w in WEIGHTS.items()))

tasks: st.SearchStrategy[dict[str, object]] = st.builds(
    dict,
    tenant=st.sampled_from(TENANTS),
    priority=st.sampled_from(list(Priority)),
    due_ms=st.integers(1, 5),  # few values, so that ties are common
    cost_tokens=st.integers(1, 500),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), tasks),
        st.tuples(st.just("pop"), st.none()),
        st.tuples(st.just("remove"), st.integers(0, 30)),
    ),
    max_size=60,
)


def build(number: int, drawn: dict[str, object]) -> Task:
    due_ms = drawn["due_ms"]
    assert isinstance(due_ms, int)
    return make_task(
        str(number),
        tenant=drawn["tenant"],
        priority=drawn["priority"],
        cost_tokens=drawn["cost_tokens"],
        deadline_at_ms=T0_MS + due_ms,
    )


class Level:
    """Start-time fair queueing from the paper, in fractions, scanning everything each time."""

    def __init__(self) -> None:
        self.virtual = Fraction(0)
        self.finish: dict[str, Fraction] = {}
        self.start: dict[str, Fraction] = {}
        self.since: dict[str, int] = {}
        self.arrivals = 0

    def enter(self, key: str) -> None:
        self.start[key] = max(self.virtual, self.finish.get(key, Fraction(0)))
        self.arrivals += 1
        self.since[key] = self.arrivals

    def next(self, rank: dict[str, int]) -> str:
        return min(self.start, key=lambda k: (self.start[k], rank.get(k, 0), self.since[k]))

    def serve(self, key: str, cost: int, weight: int) -> None:
        self.virtual = max(self.virtual, self.start[key])
        self.start[key] += Fraction(cost, weight)
        self.finish[key] = self.start[key]

    def leave(self, key: str) -> None:
        self.finish[key] = max(self.finish.get(key, Fraction(0)), self.start.pop(key))
        if not self.start:
            self.virtual = max([self.virtual, *self.finish.values()])
            self.finish.clear()


class DumbQueue:
    """A list of (sequence, task), and two levels of `Level`."""

    def __init__(self) -> None:
        self.waiting: list[tuple[int, Task]] = []
        self.root = Level()
        self.classes = {priority: Level() for priority in Priority}

    def of(self, priority: Priority, tenant: str | None = None) -> list[tuple[int, Task]]:
        return [
            (n, t) for n, t in self.waiting if t.priority is priority and tenant in (None, t.tenant)
        ]

    def push(self, number: int, task: Task) -> None:
        if not self.of(task.priority):
            self.root.enter(task.priority)
        if not self.of(task.priority, task.tenant):
            self.classes[task.priority].enter(task.tenant)
        self.waiting.append((number, task))

    def pop(self) -> Task | None:
        if not self.waiting:
            return None
        priority = Priority(self.root.next({p: p.rank for p in Priority}))
        level = self.classes[priority]
        tenant = level.next({})
        number, task = min(
            self.of(priority, tenant), key=lambda entry: (entry[1].deadline_at_ms, entry[0])
        )
        self.root.serve(priority, task.cost_tokens, PRIORITY_WEIGHTS[priority])
        level.serve(tenant, task.cost_tokens, WEIGHTS[tenant])
        self.take(number, task)
        return task

    def remove(self, key: str) -> None:
        for number, task in self.waiting:
            if task.key == key:
                self.take(number, task)
                return

    def take(self, number: int, task: Task) -> None:
        self.waiting.remove((number, task))
        if not self.of(task.priority, task.tenant):
            self.classes[task.priority].leave(task.tenant)
        if not self.of(task.priority):
            self.root.leave(task.priority)


@pytest.mark.req("ORCH-3075", "ORCH-3079", "OC-CORE-1003", partial="all but the order of dispatch")
@given(steps)
def test_the_queue_agrees_with_the_paper(drawn: list[tuple[str, object]]) -> None:
    queue, oracle = PoolQueue(SPEC), DumbQueue()

    for number, (verb, argument) in enumerate(drawn):
        if verb == "push":
            assert isinstance(argument, dict)
            task = build(number, argument)
            queue.push(task, number)
            oracle.push(number, task)
        elif verb == "pop":
            assert queue.pop() == oracle.pop()
        else:
            keys = sorted(queue.keys())
            if keys:
                assert isinstance(argument, int)
                key = keys[argument % len(keys)]
                queue.remove(key)
                oracle.remove(key)
        assert len(queue) == len(oracle.waiting)

    while (expected := oracle.pop()) is not None:
        assert queue.pop() == expected
    assert queue.pop() is None


@given(st.lists(tasks, max_size=40))
def test_each_task_leaves_exactly_once(drawn: list[dict[str, object]]) -> None:
    queue = PoolQueue(SPEC)
    for number, one in enumerate(drawn):
        queue.push(build(number, one), number)

    left = Counter(task.key for task in iter(queue.pop, None))

    assert set(left.values()) <= {1}
    assert sum(left.values()) == len(drawn)
    assert (queue.cost_tokens, queue.prompt_tokens) == (0, 0)


@pytest.mark.req("ORCH-2001", partial="all but the position in the 202")
@given(st.lists(st.tuples(st.sampled_from(TENANTS), st.sampled_from(list(Priority))), max_size=30))
def test_positions_of_equally_expensive_tasks_are_the_order_in_which_they_leave(
    drawn: list[tuple[str, Priority]],
) -> None:
    queue = PoolQueue(SPEC)
    waiting = [make_task(str(n), tenant=t, priority=p) for n, (t, p) in enumerate(drawn)]
    for number, task in enumerate(waiting):
        queue.push(task, number)

    promised = {task.key: queue.position(task, number) for number, task in enumerate(waiting)}

    assert promised == {task.key: place for place, task in enumerate(iter(queue.pop, None))}


@pytest.mark.req("ORCH-3075", "OC-CORE-1004")
@given(
    st.dictionaries(st.sampled_from(TENANTS), st.integers(1, 10), min_size=2),
    st.lists(st.integers(50, 150), min_size=200, max_size=200),
)
def test_under_backlog_service_is_within_five_percent_of_the_weights(
    weights: dict[str, int], costs: list[int]
) -> None:
    spec = make_pool(tenants=tuple(TenantPolicy(t, weight=w) for t, w in weights.items()))
    queue, served = PoolQueue(spec), Counter[str]()
    for number, cost in enumerate(costs):
        for tenant in weights:
            task = make_task(f"{number}", tenant=tenant, cost_tokens=cost, priority=Priority.BATCH)
            queue.push(task, 10 * number + TENANTS.index(tenant))

    for _ in range(len(costs)):  # nobody's backlog runs out
        task_served = queue.pop()
        assert task_served is not None
        served[task_served.tenant] += task_served.cost_tokens

    total, shares = sum(served.values()), sum(weights.values())
    for tenant, weight in weights.items():
        assert abs(served[tenant] / total - weight / shares) < 0.05


@pytest.mark.req("OC-CORE-1004", "ORCH-3075", partial="all but that nothing starves")
@given(st.integers(1, 500), st.integers(1, 500), st.integers(1, 16))
def test_a_waiting_task_of_the_lowest_weight_is_passed_by_a_bounded_number(
    urgent_cost: int, batch_cost: int, weight: int
) -> None:
    queue = PoolQueue(make_pool(tenants=(TenantPolicy("x", weight=weight),)))
    queue.push(make_task("first", priority=Priority.BATCH, cost_tokens=batch_cost), 0)
    victim = make_task("victim", priority=Priority.BATCH, cost_tokens=batch_cost)
    queue.push(victim, 1)

    # While one batch task is served at weight 1, weight 8 gets eight times its tokens, and each
    # side may be one task ahead; the first batch task is one turn more.
    turns = 8 * batch_cost // urgent_cost + 4
    served = []
    for number in range(2, 2 + turns):
        queue.push(make_task(str(number), tenant="x", cost_tokens=urgent_cost), number)
        served.append(queue.pop())

    assert victim in served


def bounded(policy: FullPolicy, capacity: int, interactive: int, batch: int) -> PoolSpec:
    return make_pool(capacity=capacity, interactive=interactive, batch=batch, policy=policy)


@pytest.mark.req("ORCH-3004", "ORCH-3005", "OC-CORE-1001", "OC-CORE-1002")
@given(
    st.builds(
        bounded,
        st.sampled_from(FullPolicy),
        st.integers(0, 6),
        st.integers(0, 4),
        st.integers(0, 4),
    ),
    st.lists(tasks, max_size=30),
)
def test_no_policy_ever_exceeds_a_bound_or_drops_out_of_turn(
    spec: PoolSpec, drawn: list[dict[str, object]]
) -> None:
    queue = PoolQueue(spec)
    limits = {policy.name: policy.queue_capacity for policy in spec.priorities}
    waiting: list[Task] = []  # in arrival order

    for number, one in enumerate(drawn):
        task = build(number, one)
        mine = [t for t in waiting if t.priority is task.priority]
        class_full = len(mine) >= limits[task.priority]
        full = class_full or len(waiting) >= spec.queue_capacity
        room = queue.find_room(task.priority)
        victim = room.victim if room is not None else None
        below = [t for t in waiting if t.priority.rank > task.priority.rank]
        if not full:
            assert room is not None
            assert victim is None
        elif spec.full_policy is FullPolicy.REJECT:
            assert room is None
        elif spec.full_policy is FullPolicy.DROP_LRU:
            droppable = mine if class_full else below or mine
            assert victim == (droppable[0] if droppable else None)
        else:
            assert victim == (below[-1] if below and not class_full else None)
        if victim is not None:
            queue.remove(victim.key)
            waiting.remove(victim)
        if room is not None:
            queue.push(task, number)
            waiting.append(task)
        assert len(queue) == len(waiting) <= spec.queue_capacity
        assert all(queue.depth(p) <= limits[p] for p in Priority)


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 10**6)), max_size=200))
def test_a_ranked_list_is_a_sorted_list(drawn: list[tuple[bool, int]]) -> None:
    ranked, oracle = RankedList(), set[int]()
    # Long enough for several blocks, so that splits and empty blocks are met.
    for item in range(-3 * BLOCK_ITEMS, 0):
        ranked.add(item)

    for add, item in drawn:
        if add and item not in oracle:
            oracle.add(item)
            ranked.add(item)
        elif oracle:
            gone = min(oracle, key=lambda known: abs(known - item))
            oracle.remove(gone)
            ranked.remove(gone)

    assert list(ranked)[3 * BLOCK_ITEMS :] == sorted(oracle)
    for place, item in enumerate(sorted(oracle)):
        assert ranked.rank(item) == 3 * BLOCK_ITEMS + place
