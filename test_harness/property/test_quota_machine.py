"""A tenant's quotas under any order of events, against books that only add.

What must hold whatever happens: the tokens taken within any span of time, less those given back in
it, are at most a minute's worth and what flows in meanwhile; the KV of what runs or resumes stays
within the tenant's bytes; a slot is left empty only beside a tenant that is at its quota; nobody
waits for ever for its own quota.
"""

from __future__ import annotations

from dataclasses import dataclass

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from harness_kit.core_builders import T0_MS, make_pool, make_replica, make_task
from orchestrator_core.effects import Admitted, Dispatch, Effect, Ended, Preempt, Rejected
from orchestrator_core.errors import Reason
from orchestrator_core.events import (
    Aborted,
    Cancel,
    Event,
    Finished,
    PoolAdded,
    ReplicaReady,
    Submit,
    Tick,
    TokensShown,
    WorkerLost,
)
from orchestrator_core.limits import Limits
from orchestrator_core.pool import (
    PreemptionMode,
    PreemptionPolicy,
    ReplicaSpec,
    TenantPolicy,
)
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Determinism, Priority, Task

PER_MINUTE = 300
KV_BYTES = 1_000
BYTES_PER_TOKEN = 2
CTX_MAX = KV_BYTES // BYTES_PER_TOKEN

positions = st.integers(0, 99)


@dataclass
class Known:
    """The books of one admitted task of the bounded tenant, or of the other one."""

    number: int
    task: Task
    running: bool = False
    resuming: bool = False

    @property
    def reserved(self) -> int:
        return self.task.prompt_tokens + self.task.max_tokens


class QuotaMachine(RuleBasedStateMachine):
    @initialize(slots=st.integers(2, 5), mode=st.sampled_from(PreemptionMode))
    def begin(self, slots: int, mode: PreemptionMode) -> None:
        self.scheduler = Scheduler(Limits(session_max_turns=10**9, session_ttl_ms=10**9))
        self.now_ms = T0_MS
        self.live: dict[str, Known] = {}
        self.taken: list[tuple[int, int]] = []  # when, tokens; negative where they came back
        self.worst_units = 0
        self.number = 0
        self.slots = slots
        bounded = TenantPolicy("x", tokens_per_minute=PER_MINUTE, kv_bytes=KV_BYTES)
        self.step(PoolAdded(make_pool(tenants=(bounded,), preemption=PreemptionPolicy(mode, 60))))
        plain = make_replica(slots=slots)
        replica = ReplicaSpec(
            plain.id, "p", plain.set_key, slots, 8192,
            interruptible=True, kv_bytes_per_token=BYTES_PER_TOKEN,
        )  # fmt: skip
        self.step(ReplicaReady(replica))

    def step(self, event: Event, *, used_tokens: int = 0) -> tuple[Effect, ...]:
        """Feed an event and book what comes out; `used_tokens` by the task that it ends."""
        effects = self.scheduler.step(event, self.now_ms)
        for effect in effects:
            match effect:
                case Admitted():
                    assert isinstance(event, Submit)
                    self.live[effect.task_key] = Known(self.number, event.task)
                    self.take(event.task, event.task.prompt_tokens + event.task.max_tokens)
                case Dispatch():
                    known = self.live[effect.task_key]
                    known.running, known.resuming = True, False
                case Preempt():
                    known = self.live[effect.task_key]
                    known.running, known.resuming = False, True
                case Ended():
                    known = self.live[effect.task_key]
                    self.end(effect.task_key, known.task.prompt_tokens if known.resuming else 0)
                case _:
                    pass
        return effects

    def take(self, task: Task, tokens: int) -> None:
        """Book it, and what a span that ends now has taken at worst beyond what flowed in."""
        if task.tenant != "x":
            return
        since_ms = self.now_ms - self.taken[-1][0] if self.taken else 0
        self.taken.append((self.now_ms, tokens))
        self.worst_units = max(self.worst_units - since_ms * PER_MINUTE, 0) + tokens * 60_000
        assert self.worst_units <= PER_MINUTE * 60_000

    def end(self, key: str, used: int) -> None:
        known = self.live.pop(key)
        self.take(known.task, used - known.reserved)

    def of(self, tenant: str, *, active: bool) -> list[Known]:
        return [
            known
            for known in self.live.values()
            if known.task.tenant == tenant and (known.running or known.resuming) == active
        ]

    def running(self) -> list[str]:
        return sorted(key for key, known in self.live.items() if known.running)

    @rule(
        tenant=st.sampled_from("xxy"),
        priority=st.sampled_from(Priority),
        determinism=st.sampled_from(Determinism),
        ctx=st.integers(1, CTX_MAX + 5) | st.integers(100, 300),
        max_tokens=st.integers(1, 30) | st.just(80) | st.just(PER_MINUTE),
        due_ms=st.integers(100, 5_000) | st.just(1_000_000),
    )
    def submit(
        self,
        tenant: str,
        priority: Priority,
        determinism: Determinism,
        ctx: int,
        max_tokens: int,
        due_ms: int,
    ) -> None:
        self.number += 1
        task = make_task(
            f"t{self.number}",
            tenant=tenant,
            priority=priority,
            determinism=determinism,
            ctx=max(ctx, max_tokens + 10),
            max_tokens=max_tokens,
            cost_tokens=max_tokens + 10,
            arrived_ms=self.now_ms,
            deadline_at_ms=self.now_ms + due_ms,
        )
        effects = self.step(Submit(task))
        refusals = [e.refusal for e in effects if isinstance(e, Rejected)]
        over = [refusal for refusal in refusals if refusal.reason is Reason.QUOTA]
        if tenant == "y":
            assert not over
        elif max_tokens + 10 > PER_MINUTE or task.ctx > CTX_MAX:
            assert over
            assert not over[0].retriable
        elif over:
            assert over[0].retriable
            assert over[0].retry_after_ms is not None
            # Were nothing to come back, the tokens would be there then and not before.
            level = PER_MINUTE * 60_000 - self.owed_units()
            missing = (max_tokens + 10) * 60_000 - level
            assert over[0].retry_after_ms == -(-missing // PER_MINUTE)

    @rule(contexts=st.lists(st.sampled_from([100, 200, 300, 450]), min_size=2, max_size=4))
    def flood(self, contexts: list[int]) -> None:
        """More than fits at once, of unlike sizes."""
        for ctx in contexts:
            self.submit("x", Priority.INTERACTIVE, Determinism.STRICT, ctx, 1, 1_000_000)

    def owed_units(self) -> int:
        """What a full bucket lacks now, in 60,000ths of a token, from the books alone."""
        owed, at_ms = 0, T0_MS
        for when_ms, tokens in self.taken:
            owed = max(owed - (when_ms - at_ms) * PER_MINUTE, 0)
            owed, at_ms = max(owed + tokens * 60_000, 0), when_ms
        return max(owed - (self.now_ms - at_ms) * PER_MINUTE, 0)

    @precondition(lambda self: self.running())
    @rule(position=positions, tokens_out=st.integers(0, 1), kind=st.sampled_from("fffcalr"))
    def end_one(self, position: int, tokens_out: int, kind: str) -> None:
        running = self.running()
        key = running[position % len(running)]
        known = self.live[key]
        used = known.task.prompt_tokens + tokens_out
        if kind == "r":
            known.running, known.resuming = False, True
            self.step(WorkerLost(key, resume=True))
            return
        self.end(key, used)
        ends: dict[str, Event] = {
            "f": Finished(key, known.task.prompt_tokens, tokens_out, 10, 20),
            "c": Cancel(key, tokens_out),
            "a": Aborted(key, tokens_out),
            "l": WorkerLost(key, resume=False, tokens_out=tokens_out),
        }
        self.step(ends[kind])

    @precondition(lambda self: self.running())
    @rule(position=positions)
    def show_tokens(self, position: int) -> None:
        running = self.running()
        self.step(TokensShown(running[position % len(running)]))

    @precondition(lambda self: self.of("x", active=False) + self.of("y", active=False))
    @rule(position=positions)
    def cancel_waiting(self, position: int) -> None:
        waiting = sorted(
            key for key, known in self.live.items() if not (known.running or known.resuming)
        )
        self.step(Cancel(waiting[position % len(waiting)]))

    @rule(passed_ms=st.integers(0, 3_000) | st.integers(10_000, 90_000))
    def tick(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self.step(Tick())

    @invariant()
    def kv_of_what_runs_and_resumes_is_bounded(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        ctx = sum(known.task.ctx for known in self.of("x", active=True))
        assert ctx * BYTES_PER_TOKEN <= KV_BYTES

    @invariant()
    def a_slot_is_empty_only_beside_a_tenant_at_its_quota(self) -> None:
        if not hasattr(self, "scheduler") or len(self.running()) >= self.slots:
            return
        assert not self.of("y", active=False)
        active_ctx = sum(known.task.ctx for known in self.of("x", active=True))
        waiting = self.of("x", active=False)
        assert active_ctx or not waiting
        for priority in Priority:  # the most urgent first: it holds the others
            own = [known for known in waiting if known.task.priority is priority]
            if own:
                head = min(own, key=lambda known: (known.task.deadline_at_ms, known.number))
                assert (active_ctx + head.task.ctx) * BYTES_PER_TOKEN > KV_BYTES
                return

    def teardown(self) -> None:
        """Whatever waits for a quota runs in the end: as tasks finish, all of them do."""
        if not hasattr(self, "scheduler"):
            return
        for _ in range(len(self.live)):
            if not (running := self.running()):
                break
            known = self.live[running[0]]
            self.end(running[0], known.task.prompt_tokens)
            self.step(Finished(known.task.key, known.task.prompt_tokens, 0, 1, 1))
        assert not self.live


@pytest.mark.req("ORCH-3036", partial="concurrent jobs are in the machine of the scheduler")
class TestQuotas(QuotaMachine.TestCase):  # type: ignore[misc, valid-type]
    """The machine as a test."""
