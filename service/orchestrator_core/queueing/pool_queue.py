"""The bounded queue of one pool: classes by priority, flows by tenant, and what gives when full.

On a task's path: between admission and dispatch. The invariant: a class never holds more than its
capacity and the pool never more than its total, except for what `push` puts back after a restart;
every waiting task is in exactly one flow and one class. Requirements: ORCH-3004, ORCH-3005,
ORCH-3036, ORCH-3075, ORCH-3077, ORCH-3080, OC-CORE-1001, OC-CORE-1002, OC-CORE-1004, OC-CORE-1005.

Full policies (a victim must free the bound that is full: with a full class it can only come from
that class, however much of a lower priority waits):
- reject: nobody goes;
- drop-lru: the longest-waiting task of the lowest priority not above the new one's (pinned);
- shed-low-priority: the most recent task of the lowest strictly lower priority. It would have
  started last and has waited least, so its loss costs least.
These are the rules while overload is momentary. Where a bound has been full for `LASTING_MS`, as
those who came found it, the class of the victim stays the same and `admission.victim` chooses in it
by expected start ahead of age (ORCH-3080).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from itertools import islice

from orchestrator_core.pool import FullPolicy, PoolSpec, PriorityPolicy, TenantPolicy
from orchestrator_core.queueing.flow import Flow, turn_of
from orchestrator_core.queueing.wfq import FairShare
from orchestrator_core.task import Priority, Task

# Weight of a priority class that the pool's specification leaves out (ORCH-3075's defaults).
DEFAULT_WEIGHT = {Priority.INTERACTIVE: 8, Priority.BATCH: 1}

# Overload lasts when a bound has been full for so long, which is longer than a burst and shorter
# than most deadlines, and its queue was never found emptier than this.
LASTING_MS = 10_000
STILL_FULL_PERCENT = 90

# Flows whose first and last tasks are compared when one of them has to go.
FLOWS_COMPARED = 8

_ANY_TENANT = TenantPolicy("")

_URGENT_FIRST = tuple(sorted(Priority, key=lambda priority: priority.rank))


@dataclass(frozen=True, slots=True)
class Room:
    """There is room for the task, once `victim` (if any) has left the queue; or, where overload is
    `lasting`, another task of the victim's priority."""

    victim: Task | None = None
    lasting: bool = False


class _Fullness:
    """For how long a bound has been full."""

    __slots__ = ("lasting", "since_ms")

    def __init__(self) -> None:
        self.since_ms: int | None = None
        self.lasting = False

    def observe(self, waiting: int, capacity: int, now_ms: int) -> None:
        if waiting < capacity and self.since_ms is None:
            return  # as nearly always
        if waiting >= capacity:
            # The wall clock may step back: then it has been full since then.
            self.since_ms = now_ms if self.since_ms is None else min(self.since_ms, now_ms)
        elif waiting < max(capacity * STILL_FULL_PERCENT // 100, 1):
            self.since_ms = None
        self.lasting = self.since_ms is not None and now_ms - self.since_ms >= LASTING_MS


class _PriorityClass:
    """Waiting tasks of one priority."""

    __slots__ = ("arrivals", "cost_tokens", "due", "flows", "fullness", "held", "policy", "shares")

    def __init__(self, policy: PriorityPolicy) -> None:
        self.policy = policy
        self.flows: dict[str, Flow] = {}  # only those with waiting tasks
        self.shares = FairShare()
        self.held: set[str] = set()  # tenants that are skipped here, whether they wait or not
        self.fullness = _Fullness()
        self.arrivals: OrderedDict[str, tuple[int, Task]] = OrderedDict()
        self.cost_tokens = 0
        # Heap of (deadline, tenant): every flow's head is in it, and some that are heads no more.
        self.due: list[tuple[int, str]] = []

    def watch(self, head: Task) -> None:
        """`head` is the first of its flow now: `expire` will look at it when its time is over."""
        heappush(self.due, (head.deadline_at_ms, head.tenant))
        if len(self.due) > 4 * len(self.flows) + 64:
            self.due = [(flow.head.deadline_at_ms, name) for name, flow in self.flows.items()]
            heapify(self.due)

    def backlog(self, tenant: str) -> tuple[int, int]:
        """Waiting tasks of a tenant that has some, and their tokens."""
        flow = self.flows[tenant]
        return flow.size, flow.cost_tokens


class PoolQueue:
    """Waiting tasks of one pool; `pop` hands them out in fair order."""

    def __init__(self, spec: PoolSpec) -> None:
        self._root = FairShare()
        self._fullness = _Fullness()
        # Told the tenant whenever the first task of one of its flows is another one, or none.
        self.on_new_head: Callable[[str], None] | None = None
        self._classes: dict[str, _PriorityClass] = {}
        self._size = 0
        self.prompt_tokens = 0
        self.cost_tokens = 0
        self.reconfigure(spec)

    def __len__(self) -> int:
        return self._size

    def reconfigure(self, spec: PoolSpec) -> None:
        """Take over bounds, policy and weights; what waits stays, even above a lower bound."""
        self.capacity = spec.queue_capacity
        self.full_policy = spec.full_policy
        self._tenants = {tenant.id: tenant for tenant in spec.tenants}
        configured = {policy.name: policy for policy in spec.priorities}
        for priority in _URGENT_FIRST:
            policy = configured.get(priority) or PriorityPolicy(
                priority, DEFAULT_WEIGHT[priority], spec.queue_capacity
            )
            if (cls := self._classes.get(priority)) is None:
                self._classes[priority] = _PriorityClass(policy)
            else:
                cls.policy = policy
                self._root.reweigh(priority, policy.weight)
                for tenant in cls.flows:
                    cls.shares.reweigh(tenant, self.tenant(tenant).weight)

    def tenant(self, tenant: str) -> TenantPolicy:
        """The tenant's policy; weight 1 and no quotas where none is configured."""
        return self._tenants.get(tenant, _ANY_TENANT)

    def policy(self, priority: Priority) -> PriorityPolicy:
        return self._classes[priority].policy

    def depth(self, priority: Priority) -> int:
        """Waiting tasks of one priority. O(1)."""
        return len(self._classes[priority].arrivals)

    def keys(self) -> Iterator[str]:
        """Keys of all waiting tasks: urgent class first, in arrival order within."""
        for cls in self._classes.values():
            yield from cls.arrivals

    def find_room(self, priority: Priority) -> Room | None:
        """Whether one more task fits, and at whose expense; None when it does not. O(1)."""
        cls = self._classes[priority]
        class_full = len(cls.arrivals) >= cls.policy.queue_capacity
        if not class_full and self._size < self.capacity:
            return Room()
        lasting = (cls.fullness if class_full else self._fullness).lasting
        if self.full_policy is FullPolicy.REJECT:
            return None
        if self.full_policy is FullPolicy.DROP_LRU:
            candidates = [priority] if class_full else _not_above(priority)
            for candidate in candidates:
                for _, longest_waiting in self._classes[candidate].arrivals.values():
                    return Room(longest_waiting, lasting)
            return None
        if class_full:
            return None
        for candidate in _not_above(priority)[:-1]:
            for _, most_recent in reversed(self._classes[candidate].arrivals.values()):
                return Room(most_recent, lasting)
        return None

    def observe(self, now_ms: int) -> None:
        """Take notice of which bounds are full; call it after each newcomer, and every now and
        then. O(1)."""
        self._fullness.observe(self._size, self.capacity, now_ms)
        for cls in self._classes.values():
            cls.fullness.observe(len(cls.arrivals), cls.policy.queue_capacity, now_ms)

    def contenders(self, priority: Priority) -> list[tuple[Task, int]]:
        """The first and the last task of flows of one priority, with their arrivals: of all flows,
        or of up to `FLOWS_COMPARED` with the longest-waiting and the most recent tasks. O(1)."""
        cls = self._classes[priority]
        tenants = dict.fromkeys(cls.flows) if len(cls.flows) <= FLOWS_COMPARED else {}
        if not tenants:
            half, arrivals = FLOWS_COMPARED // 2, cls.arrivals.values()
            oldest, newest = islice(arrivals, half), islice(reversed(arrivals), half)
            tenants = dict.fromkeys(task.tenant for _, task in (*oldest, *newest))
        return [end for tenant in tenants for end in cls.flows[tenant].ends()]

    def push(self, task: Task, sequence: int) -> None:
        """Let `task` wait; `sequence` is its place in arrival order, unique. O(log n).

        Bounds are the caller's business (`find_room`): what a restart brings back is never refused.
        """
        cls = self._classes[task.priority]
        turn = turn_of(task, sequence)
        flow = cls.flows.get(task.tenant)
        if flow is None:
            flow = cls.flows[task.tenant] = Flow()
            held = task.tenant in cls.held
            cls.shares.activate(task.tenant, self.tenant(task.tenant).weight, held=held)
            if len(cls.shares) == 1:
                rank = task.priority.rank
                self._root.activate(task.priority, cls.policy.weight, rank=rank, held=held)
            elif not held:
                self._root.hold(task.priority, False)
        flow.push(turn, task)
        if flow.head is task:
            cls.watch(task)
        cls.arrivals[task.key] = (turn, task)
        self._size += 1
        cls.cost_tokens += task.cost_tokens
        self.cost_tokens += task.cost_tokens
        self.prompt_tokens += task.prompt_tokens
        if self.on_new_head is not None and flow.head is task:
            self.on_new_head(task.tenant)

    def remove(self, key: str) -> Task | None:
        """Take a waiting task out, wherever it stands; None when it is not here. O(log n)."""
        for cls in self._classes.values():
            if (waiting := cls.arrivals.get(key)) is not None:
                self._take(cls, waiting[1])
                return waiting[1]
        return None

    def peek(self, priority: Priority | None = None) -> Task | None:
        """The next task in fair order (of one priority, if given), None when none may go. O(1)."""
        chosen = priority or self._root.pick()
        if chosen is None:
            return None
        cls = self._classes[chosen]
        if (tenant := cls.shares.pick()) is None:
            return None
        return cls.flows[tenant].head

    def pop(self, priority: Priority | None = None) -> Task | None:
        """Take what `peek` shows and charge it to its flow; None when nobody may go. O(log n)."""
        if (task := self.peek(priority)) is None:
            return None
        self._serve(self._classes[task.priority], task)
        return task

    def serve(self, key: str) -> None:
        """Take a waiting task out and charge it to its flow as `pop` does, wherever it stands: a
        restart repeats what `pop` had chosen. O(log n)."""
        for cls in self._classes.values():
            if (waiting := cls.arrivals.get(key)) is not None:
                self._serve(cls, waiting[1])

    def give_way(self, below: Priority) -> Task | None:
        """Take out the most recent task of the lowest priority below this one; None if none waits.

        Its class gives up a turn of the average cost of its tasks, so that the one who would have
        gone next goes one turn later. O(log n).
        """
        for priority in _not_above(below)[:-1]:
            cls = self._classes[priority]
            for _, task in reversed(cls.arrivals.values()):
                if task.tenant in cls.held:
                    continue  # it takes nobody's turn
                self._give_turn(cls)
                self._take(cls, task)
                return task
        return None

    def repeat_give_way(self, key: str) -> None:
        """Take out a waiting task that `give_way` had chosen before a restart. O(log n)."""
        for cls in self._classes.values():
            if (waiting := cls.arrivals.get(key)) is not None:
                self._give_turn(cls)
                self._take(cls, waiting[1])

    def hold(self, tenant: str, held: bool, priority: Priority | None = None) -> None:
        """Skip the tenant's flows (of one priority, if given) as it is at a quota, or stop it.
        O(log flows)."""
        for name, cls in self._classes.items():
            if held == (tenant in cls.held) or (priority is not None and priority is not name):
                continue
            if held:
                cls.held.add(tenant)
            else:
                cls.held.discard(tenant)
            cls.shares.hold(tenant, held)
            self._root.hold(name, cls.shares.pick() is None)

    def is_held(self, tenant: str, priority: Priority) -> bool:
        return tenant in self._classes[priority].held

    def head(self, tenant: str, priority: Priority) -> Task | None:
        """The first task of a flow; None while nothing of it waits. O(1)."""
        flow = self._classes[priority].flows.get(tenant)
        return None if flow is None else flow.head

    def tenants(self) -> set[str]:
        """Tenants with waiting tasks."""
        return {tenant for cls in self._classes.values() for tenant in cls.flows}

    def expire(self, now_ms: int) -> list[Task]:
        """Take out what waits past its deadline, by priority, tenant, deadline. O(log n) each."""
        expired = []
        for cls in self._classes.values():
            late = set()
            while cls.due and cls.due[0][0] <= now_ms:
                late.add(heappop(cls.due)[1])
            for tenant in sorted(late):
                if (flow := cls.flows.get(tenant)) is None:
                    continue
                while flow.size and flow.head.deadline_at_ms <= now_ms:
                    expired.append(flow.head)
                    self._take(cls, flow.head)
        return expired

    def position(self, task: Task, sequence: int, *, count_below: bool = True) -> int:
        """How many waiting tasks go before `task`, were nothing else to arrive; it may but need not
        wait here already. Exact within a flow and between flows of equally expensive tasks, else an
        estimate from each flow's average; held flows count as absent; those of a lower priority
        count unless `count_below` is false. With more than `wfq.MEMBERS_COUNTED` flows due before
        it, an estimate from as many of them. O(log n)."""
        cls = self._classes[task.priority]
        flow = cls.flows.get(task.tenant)
        own, own_tokens = flow.ahead(turn_of(task, sequence)) if flow is not None else (0, 0)
        weight = self.tenant(task.tenant).weight
        siblings, sibling_tokens = cls.shares.ahead(task.tenant, own_tokens, weight, 0, cls.backlog)
        rank = task.priority.rank

        def backlog(priority: str) -> tuple[int, int] | None:
            other = self._classes[priority]
            if count_below or other.policy.name.rank < rank:
                return len(other.arrivals), other.cost_tokens
            return None

        above, _ = self._root.ahead(
            task.priority, own_tokens + sibling_tokens, cls.policy.weight, rank, backlog
        )
        return own + siblings + above

    def describe(self) -> list[str]:
        """Lines of text, one a class with waiting tasks, flows in the order of their turns."""
        return [
            f"{priority} {len(cls.arrivals)}/{cls.policy.queue_capacity}: {cls.shares.describe()}"
            for priority, cls in self._classes.items()
            if cls.arrivals
        ]

    def _serve(self, cls: _PriorityClass, task: Task) -> None:
        self._root.charge(task.priority, task.cost_tokens)
        cls.shares.charge(task.tenant, task.cost_tokens)
        self._take(cls, task)

    def _give_turn(self, cls: _PriorityClass) -> None:
        self._root.charge(cls.policy.name, -(-cls.cost_tokens // len(cls.arrivals)))

    def _take(self, cls: _PriorityClass, task: Task) -> None:
        turn, _ = cls.arrivals.pop(task.key)
        flow = cls.flows[task.tenant]
        was_head = flow.head is task
        flow.remove(turn)
        self._size -= 1
        cls.cost_tokens -= task.cost_tokens
        self.cost_tokens -= task.cost_tokens
        self.prompt_tokens -= task.prompt_tokens
        if not flow.size:
            del cls.flows[task.tenant]
            cls.shares.retire(task.tenant)
            if not cls.flows:
                self._root.retire(task.priority)
            elif cls.shares.pick() is None:
                self._root.hold(task.priority, True)
        elif was_head:
            cls.watch(flow.head)
        if was_head and self.on_new_head is not None:
            self.on_new_head(task.tenant)


def _not_above(priority: Priority) -> list[Priority]:
    """The priorities not above this one, lowest first; it is the last of them itself."""
    return [other for other in reversed(_URGENT_FIRST) if other.rank >= priority.rank]
