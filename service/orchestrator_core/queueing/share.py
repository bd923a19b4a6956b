"""What each flow has got lately, beside what its weights promise it.

On a task's path: counted once when a task is admitted, started and ended; read by `admission_share`
and by explanations. A flow is a (tenant, priority). The invariants: observed shares are between 0
and 1 and add up to at most 1 over all flows; entitled shares of one pool add up to 1 while anything
waits or runs there. Requirements: ORCH-3076.

Observed is over all pools of a scheduler (the metric names no pool): tokens of started tasks, as
fairness charges them (`Task.cost_tokens`, not settled later), each counting less by exp(-age / 60
s). That is the continuous form of an exponentially weighted moving average, and the one of Linux'
load averages: it needs no timer, as a sum is only aged when somebody looks. Entitled is per pool,
because weights are: class weight over those of the classes with work, times tenant weight over
those of the tenants with work in that class, as the two levels of `pool_queue` share it.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from math import exp

from orchestrator_core.task import Priority
from orchestrator_core.value import Value

# The time constant of the window: what was served a minute ago counts 37 %, five minutes ago 0.7 %.
WINDOW_MS = 60_000

# Flows remembered; beyond this the one that was served longest ago goes.
MAX_FLOWS = 4096

# A flow of which less than this many tokens is left has decayed to nothing.
NOTHING_TOKENS = 0.5

Flow = tuple[str, Priority]  # tenant, priority


class ShareView(Value, frozen=True):
    """What a flow got lately against what its weights promise, both 0..1."""

    observed: float
    entitled: float


class _Fading:
    """Tokens that count less as time passes."""

    __slots__ = ("at_ms", "tokens")

    def __init__(self, at_ms: int) -> None:
        self.tokens = 0.0
        self.at_ms = at_ms

    def left(self, now_ms: int) -> float:
        """Tokens that still count."""
        if now_ms == self.at_ms:
            return self.tokens
        return self.tokens * exp((self.at_ms - now_ms) / WINDOW_MS)

    def add(self, tokens: float, now_ms: int) -> None:
        self.tokens = self.left(now_ms) + tokens
        self.at_ms = now_ms


class ObservedShares:
    """Served tokens of every flow over the last minute or so; at most `max_flows` of them."""

    def __init__(self, max_flows: int = MAX_FLOWS) -> None:
        self._flows: OrderedDict[Flow, _Fading] = OrderedDict()  # by when they were served last
        self._total = _Fading(0)
        self._max_flows = max_flows
        # Time that has passed: the wall clock may step back, and that makes nothing younger.
        self._passed_ms = 0
        self._seen_ms: int | None = None

    def __len__(self) -> int:
        return len(self._flows)

    def serve(self, tenant: str, priority: Priority, tokens: int, now_ms: int) -> None:
        """A task of that flow started; its cost counts from now on. O(1) amortised."""
        at_ms = self._passed_ms = self._passed(now_ms)
        self._seen_ms = now_ms
        key = (tenant, priority)
        if (flow := self._flows.get(key)) is None:
            self._forget(at_ms)
            flow = self._flows[key] = _Fading(at_ms)
        else:
            self._flows.move_to_end(key)
        flow.add(tokens, at_ms)
        self._total.add(tokens, at_ms)

    def serve_again(self, tenant: str, priority: Priority, tokens: int, not_before_ms: int) -> None:
        """A start from before a restart; of its time no more is known than that it was not before
        this, nor before the one that is told before it."""
        at_ms = not_before_ms if self._seen_ms is None else max(not_before_ms, self._seen_ms)
        self.serve(tenant, priority, tokens, at_ms)

    def of(self, tenant: str, priority: Priority, now_ms: int) -> float:
        """The flow's share of what was served lately, 0..1; 0.0 when nothing was. O(1)."""
        at_ms = self._passed(now_ms)
        flow, total = self._flows.get((tenant, priority)), self._total.left(at_ms)
        if flow is None or total < NOTHING_TOKENS:
            return 0.0
        return min(flow.left(at_ms) / total, 1.0)

    def all(self, now_ms: int) -> dict[Flow, float]:
        """The share of every flow that is remembered, longest ago served first. O(flows)."""
        at_ms = self._passed(now_ms)
        if (total := self._total.left(at_ms)) < NOTHING_TOKENS:
            return dict.fromkeys(self._flows, 0.0)
        return {key: min(flow.left(at_ms) / total, 1.0) for key, flow in self._flows.items()}

    def _passed(self, now_ms: int) -> int:
        return self._passed_ms + max(now_ms - (self._seen_ms or now_ms), 0)

    def _forget(self, at_ms: int) -> None:
        """Make room: those of which nothing is left, and one more where there are too many."""
        while self._flows:
            key, oldest = next(iter(self._flows.items()))
            left = oldest.left(at_ms)
            if left >= NOTHING_TOKENS and len(self._flows) < self._max_flows:
                return
            del self._flows[key]
            # What is forgotten counts for nobody: the others' shares still add up to 1.
            self._total.add(-min(left, self._total.left(at_ms)), at_ms)


class _WorkingClass:
    """Tenants with work at one priority: their tasks, and the sum of their weights."""

    __slots__ = ("tasks", "weight")

    def __init__(self) -> None:
        self.tasks: dict[str, int] = {}
        self.weight = 0


class EntitledShares:
    """Who has work in one pool, waiting or running, and what the weights promise them of it."""

    def __init__(
        self, class_weight: Callable[[Priority], int], tenant_weight: Callable[[str], int]
    ) -> None:
        self._class_weight = class_weight
        self._tenant_weight = tenant_weight
        self._classes = {priority: _WorkingClass() for priority in Priority}

    def enter(self, tenant: str, priority: Priority) -> None:
        """A task was admitted. O(1)."""
        working = self._classes[priority]
        count = working.tasks.get(tenant, 0)
        if not count:
            working.weight += self._tenant_weight(tenant)
        working.tasks[tenant] = count + 1

    def leave(self, tenant: str, priority: Priority) -> None:
        """It has ended. O(1)."""
        working = self._classes[priority]
        if working.tasks[tenant] > 1:
            working.tasks[tenant] -= 1
        else:
            del working.tasks[tenant]
            working.weight -= self._tenant_weight(tenant)

    def reweigh(self) -> None:
        """Weights are others now. O(tenants)."""
        for working in self._classes.values():
            working.weight = sum(map(self._tenant_weight, working.tasks))

    def of(self, tenant: str, priority: Priority) -> float:
        """The share that the flow's weights promise it now; 0.0 while it has no work. O(1)."""
        working = self._classes[priority]
        if tenant not in working.tasks:
            return 0.0
        return self._of_class(priority) * self._tenant_weight(tenant) / working.weight

    def all(self) -> dict[Flow, float]:
        """The entitled share of every flow with work. O(flows)."""
        found = {}
        for priority, working in self._classes.items():
            if working.tasks:
                per_weight = self._of_class(priority) / working.weight
                for tenant in working.tasks:
                    found[tenant, priority] = per_weight * self._tenant_weight(tenant)
        return found

    def _of_class(self, priority: Priority) -> float:
        classes = sum(self._class_weight(p) for p, other in self._classes.items() if other.tasks)
        return self._class_weight(priority) / classes
