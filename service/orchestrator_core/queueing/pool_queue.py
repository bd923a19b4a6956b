"""The bounded queue of one pool: classes by priority, flows by tenant, and what gives when full.

On a task's path: between admission and dispatch. The invariant: a class never holds more than its
capacity and the pool never more than its total, except for what `push` puts back after a restart;
every waiting task is in exactly one flow and one class. Requirements: ORCH-3004, ORCH-3005,
ORCH-3075, ORCH-3077, OC-CORE-1001, OC-CORE-1002, OC-CORE-1004, OC-CORE-1005.

Full policies (a victim must free the bound that is full: with a full class it can only come from
that class, however much of a lower priority waits):
- reject: nobody goes;
- drop-lru: the longest-waiting task of the lowest priority not above the new one's;
- shed-low-priority: the most recent task of the lowest strictly lower priority. It would have
  started last and has waited least, so its loss costs least (ORCH-3080 asks for expected start
  ahead of age).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

from orchestrator_core.pool import FullPolicy, PoolSpec, PriorityPolicy, TenantPolicy
from orchestrator_core.queueing.flow import Flow, turn_of
from orchestrator_core.queueing.wfq import FairShare
from orchestrator_core.task import Priority, Task

# Weight of a priority class that the pool's specification leaves out (ORCH-3075's defaults).
DEFAULT_WEIGHT = {Priority.INTERACTIVE: 8, Priority.BATCH: 1}

_ANY_TENANT = TenantPolicy("")

_URGENT_FIRST = tuple(sorted(Priority, key=lambda priority: priority.rank))


@dataclass(frozen=True, slots=True)
class Room:
    """There is room for the task, once `victim` (if any) has left the queue."""

    victim: Task | None = None


class _PriorityClass:
    """Waiting tasks of one priority."""

    __slots__ = ("arrivals", "cost_tokens", "due", "flows", "policy", "shares")

    def __init__(self, policy: PriorityPolicy) -> None:
        self.policy = policy
        self.flows: dict[str, Flow] = {}  # only those with waiting tasks
        self.shares = FairShare()
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
        self._held: set[str] = set()
        self._classes: dict[str, _PriorityClass] = {}
        self._size = 0
        self.prompt_tokens = 0
        self.cost_tokens = 0
        self.reconfigure(spec)

    def __len__(self) -> int:
        return self._size

    def __contains__(self, key: str) -> bool:
        return any(key in cls.arrivals for cls in self._classes.values())

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
        if self.full_policy is FullPolicy.REJECT:
            return None
        if self.full_policy is FullPolicy.DROP_LRU:
            candidates = [priority] if class_full else _not_above(priority)
            for candidate in candidates:
                for _, longest_waiting in self._classes[candidate].arrivals.values():
                    return Room(longest_waiting)
            return None
        if class_full:
            return None
        for candidate in _not_above(priority)[:-1]:
            for _, most_recent in reversed(self._classes[candidate].arrivals.values()):
                return Room(most_recent)
        return None

    def push(self, task: Task, sequence: int) -> None:
        """Let `task` wait; `sequence` is its place in arrival order, unique. O(log n).

        Bounds are the caller's business (`find_room`): what a restart brings back is never refused.
        """
        cls = self._classes[task.priority]
        turn = turn_of(task, sequence)
        flow = cls.flows.get(task.tenant)
        if flow is None:
            flow = cls.flows[task.tenant] = Flow()
            held = task.tenant in self._held
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
        cls = self._classes[task.priority]
        self._root.charge(task.priority, task.cost_tokens)
        cls.shares.charge(task.tenant, task.cost_tokens)
        self._take(cls, task)
        return task

    def give_way(self, below: Priority) -> Task | None:
        """Take out the most recent task of the lowest priority below this one; None if none waits.

        Its class gives up a turn of the average cost of its tasks, so that the one who would have
        gone next goes one turn later. O(log n).
        """
        for priority in _not_above(below)[:-1]:
            cls = self._classes[priority]
            for _, task in reversed(cls.arrivals.values()):
                if task.tenant in self._held:
                    continue  # it takes nobody's turn
                self._root.charge(priority, -(-cls.cost_tokens // len(cls.arrivals)))
                self._take(cls, task)
                return task
        return None

    def hold(self, tenant: str, held: bool) -> None:
        """Skip the tenant's flows (it runs `max_concurrent` tasks) or stop it. O(log flows)."""
        if held == (tenant in self._held):
            return
        if held:
            self._held.add(tenant)
        else:
            self._held.discard(tenant)
        for priority, cls in self._classes.items():
            cls.shares.hold(tenant, held)
            self._root.hold(priority, cls.shares.pick() is None)

    def is_held(self, tenant: str) -> bool:
        return tenant in self._held

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

    def _take(self, cls: _PriorityClass, task: Task) -> None:
        turn, _ = cls.arrivals.pop(task.key)
        flow = cls.flows[task.tenant]
        was_head = flow.head is task
        flow.remove(turn)
        self._size -= 1
        cls.cost_tokens -= task.cost_tokens
        self.cost_tokens -= task.cost_tokens
        self.prompt_tokens -= task.prompt_tokens
        if flow.size:
            if was_head:
                cls.watch(flow.head)
            return
        del cls.flows[task.tenant]
        cls.shares.retire(task.tenant)
        if not cls.flows:
            self._root.retire(task.priority)
        elif cls.shares.pick() is None:
            self._root.hold(task.priority, True)


def _not_above(priority: Priority) -> list[Priority]:
    """The priorities not above this one, lowest first; it is the last of them itself."""
    return [other for other in reversed(_URGENT_FIRST) if other.rank >= priority.rank]
