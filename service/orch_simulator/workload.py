"""What arrives, and when: Poisson arrivals by tenant and priority, from a handed-in generator.

Before a simulated task's path. The invariant: the same specification and the same seed give the
same arrivals, and how they are scheduled changes none of them (lengths and deadlines are drawn
here, never while the simulation runs). Requirements: ORCH-3075, ORCH-3079.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import accumulate
from math import exp, log
from random import Random

from orchestrator_core.task import Priority


@dataclass(frozen=True, slots=True)
class Arrival:
    """One task that asks for admission.

    Args:
        at_ms: since the start of the simulation.
        max_tokens / expected_tokens: what the client says; `tokens_out` is what it will get.
        deadline_ms: from its arrival.
        model_ref: None is the first pool's model.
        session: None is a session of its own.
    """

    at_ms: int
    tenant: str
    priority: Priority
    prompt_tokens: int
    max_tokens: int
    tokens_out: int
    deadline_ms: int
    expected_tokens: int | None = None
    model_ref: str | None = None
    session: str | None = None


@dataclass(frozen=True, slots=True)
class Lengths:
    """Log-normal token counts, 1..`most`: many short ones, a few very long ones, as traces of real
    services show them. `sigma` is the spread of the logarithm; 0 makes all equal."""

    median: int
    sigma: float
    most: int

    def draw(self, random: Random) -> int:
        """One length in tokens."""
        drawn = round(self.median * exp(random.gauss(0.0, self.sigma)))
        return min(max(drawn, 1), self.most)


@dataclass(frozen=True, slots=True)
class DeadlineRange:
    """Deadlines in milliseconds, spread evenly over the orders of magnitude between the two."""

    least_ms: int
    most_ms: int

    def draw(self, random: Random) -> int:
        """One deadline in milliseconds from arrival."""
        return round(exp(random.uniform(log(self.least_ms), log(self.most_ms))))


# A person waits seconds to a minute for an answer; a batch job is wanted within the hour.
DEADLINES = {
    Priority.INTERACTIVE: DeadlineRange(5_000, 60_000),
    Priority.BATCH: DeadlineRange(60_000, 3_600_000),
}


@dataclass(frozen=True, slots=True)
class PoissonWorkload:
    """A Poisson process for each tenant and priority, together `rate_per_s`.

    Args:
        tasks: how many arrive before it ends.
        tenants: names, most active first.
        tenant_skew: Zipf exponent of their activity; 0 makes all equally active.
        priority_mix: relative rates, not all 0.
        expected_sigma: how far `tokens_out` lies from `expected_tokens` (spread of the logarithm).
        ctx_tokens: prompt and max_tokens together never exceed it.
        model_refs: drawn evenly; empty is the first pool's.
    """

    tasks: int
    rate_per_s: float
    tenants: tuple[str, ...]
    tenant_skew: float = 0.0
    priority_mix: Mapping[Priority, float] = field(
        default_factory=lambda: {Priority.INTERACTIVE: 0.2, Priority.BATCH: 0.8}
    )
    prompt: Lengths = Lengths(256, 0.8, 2048)
    output: Lengths = Lengths(128, 0.7, 1024)
    expected_sigma: float = 0.2
    deadlines: Mapping[Priority, DeadlineRange] = field(default_factory=lambda: dict(DEADLINES))
    ctx_tokens: int = 4096
    model_refs: tuple[str, ...] = ()

    def arrivals(self, random: Random) -> Iterator[Arrival]:
        """All arrivals in order of time; O(log tenants) each.

        The sum of independent Poisson processes is one, whose arrivals draw their process by rate.
        """
        activity = [1.0 / rank**self.tenant_skew for rank in range(1, len(self.tenants) + 1)]
        tenant_weights = list(accumulate(activity))
        priorities = sorted(self.priority_mix, key=lambda priority: priority.rank)
        priority_weights = list(accumulate(self.priority_mix[p] for p in priorities))
        rate_per_ms = self.rate_per_s / 1000.0
        at_ms = 0.0
        for _ in range(self.tasks):
            at_ms += random.expovariate(rate_per_ms)
            tenant = random.choices(self.tenants, cum_weights=tenant_weights)[0]
            priority = random.choices(priorities, cum_weights=priority_weights)[0]
            expected = min(self.output.draw(random), self.ctx_tokens // 2)
            # Clients leave room: nobody wants an answer cut off at the length they expected.
            max_tokens = min(2 * expected, self.ctx_tokens - 1)
            drawn = round(expected * exp(random.gauss(0.0, self.expected_sigma)))
            yield Arrival(
                at_ms=int(at_ms),
                tenant=tenant,
                priority=priority,
                prompt_tokens=min(self.prompt.draw(random), self.ctx_tokens - max_tokens),
                max_tokens=max_tokens,
                tokens_out=min(max(drawn, 1), max_tokens),
                deadline_ms=self.deadlines[priority].draw(random),
                expected_tokens=expected,
                model_ref=random.choice(self.model_refs) if self.model_refs else None,
            )
