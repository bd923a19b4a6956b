"""After a crash the queue goes on as if nothing had happened, whatever had happened before.

The books are what the services write down: an admission, a first dispatch and an end, each when it
is decided. A scheduler that is built from them gives the same fair order, holds the same tenants
and refuses the same requests as the one that did not crash. What retention has forgotten moves a
flow against another by no more than start-time fair queueing itself allows: a task of each over its
weight.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec import structs

from harness_kit.core_builders import SET_KEY, T0_MS, finished, make_pool, make_replica, make_task
from orchestrator_core.effects import Admitted, Dispatch, Effect, Ended, Rejected, Stop
from orchestrator_core.errors import Reason
from orchestrator_core.events import (
    Aborted,
    Cancel,
    Event,
    Finished,
    PoolAdded,
    Recover,
    RecoverEnded,
    RecoverStarted,
    ReplicaLost,
    ReplicaReady,
    Submit,
    Tick,
    WorkerLost,
)
from orchestrator_core.limits import Limits
from orchestrator_core.pool import (
    FullPolicy,
    PoolSpec,
    PreemptionMode,
    PreemptionPolicy,
    TenantPolicy,
)
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Priority

Fact = Recover | RecoverStarted | RecoverEnded

FAR_MS = 10**8
PROMPT_TOKENS = 10
LIMITS = Limits(session_max_turns=10**9, session_ttl_ms=10**9)


def recovered(spec: PoolSpec, facts: Sequence[Fact], now_ms: int) -> Scheduler:
    """What a restart at `now_ms` makes of the books."""
    scheduler = Scheduler(LIMITS)
    scheduler.step(PoolAdded(spec), now_ms)
    for fact in facts:
        assert scheduler.step(fact, now_ms) == ()
    return scheduler


class Life:
    """A scheduler at work and its books."""

    def __init__(self, spec: PoolSpec) -> None:
        self.spec = spec
        self.now_ms = T0_MS
        self.facts: list[Fact] = []
        self.started: set[str] = set()
        self.ready: dict[str, int] = {}
        self.number = 0
        self.scheduler = recovered(spec, (), self.now_ms)

    def step(self, event: Event) -> list[Effect]:
        """An event, and what the services write down of its effects."""
        effects = list(self.scheduler.step(event, self.now_ms))
        for effect in effects:
            match effect:
                case Admitted():
                    assert isinstance(event, Submit)
                    self.facts.append(Recover(event.task, "p", self.now_ms))
                case Dispatch(key) if key not in self.started:
                    self.started.add(key)
                    self.facts.append(RecoverStarted(key, SET_KEY))
                case Ended(key, refusal):
                    gave_way = refusal is not None and refusal.reason is Reason.PREEMPTED
                    self.end(key, gave_way)
                case Stop(key):
                    self.end(key)
        return effects

    def end(self, key: str, gave_way: bool = False, tokens_out: int = 0) -> None:
        started = key in self.started
        tokens = PROMPT_TOKENS + tokens_out if started else 0
        self.facts.append(RecoverEnded(key, tokens, started, gave_way))

    def submit(
        self, tenant: str, priority: Priority, due_ms: int, cost_tokens: int
    ) -> list[Effect]:
        self.number += 1
        task = make_task(
            f"t{self.number}",
            tenant=tenant,
            priority=priority,
            deadline_at_ms=self.now_ms + due_ms,
            arrived_ms=self.now_ms,
            cost_tokens=cost_tokens,
            prompt_tokens=PROMPT_TOKENS,
        )
        return self.step(Submit(task))

    def flood(self, tenants: list[str], priority: Priority) -> None:
        """Tasks with time to wait for each other."""
        for number, tenant in enumerate(tenants):
            self.submit(tenant, priority, FAR_MS, 20 + number)

    def rush(self, tenant: str, due_ms: list[int]) -> None:
        """Urgent tasks behind a large one, where batch is due before them; speed is known."""
        for _ in range(3):
            self.flood([tenant, "x"], Priority.BATCH)
            self.finish(0, 5)
        self.flood([tenant, "y", "x"], Priority.BATCH)
        self.submit("y", Priority.INTERACTIVE, FAR_MS, 400)
        for each_ms in due_ms:
            self.submit(tenant, Priority.INTERACTIVE, each_ms, 20)

    def running(self, position: int) -> str | None:
        running = sorted(self.scheduler.running("p"))
        return running[position % len(running)] if running else None

    def finish(self, position: int, speed: int) -> None:
        if (key := self.running(position)) is not None:
            # The services write the end before the core hears of it.
            self.end(key, tokens_out=20)
            self.step(Finished(key, PROMPT_TOKENS, 20, 10 * speed, 20 * speed))

    def abort(self, position: int) -> None:
        if (key := self.running(position)) is not None:
            self.end(key)
            self.step(Aborted(key))

    def lose_worker(self, position: int, resume: bool) -> None:
        if (key := self.running(position)) is not None:
            if not resume:
                self.end(key)
            self.step(WorkerLost(key, resume))

    def cancel(self, position: int) -> None:
        known = sorted([*self.scheduler.running("p"), *self.scheduler.waiting_keys("p")])
        if known:
            self.step(Cancel(known[position % len(known)]))

    def add_replica(self, slots: int) -> None:
        name = f"r{len(self.ready)}"
        self.ready[name] = slots
        self.step(ReplicaReady(make_replica(name, slots=slots)))

    def pass_time(self, passed_ms: int) -> None:
        self.now_ms += passed_ms
        self.step(Tick())

    def crash(self) -> None:
        """The next life has the same engines; what ran resumes on them."""
        self.scheduler = recovered(self.spec, self.facts, self.now_ms)
        for name, slots in self.ready.items():
            self.step(ReplicaReady(make_replica(name, slots=slots)))

    def lose_all(self) -> None:
        """All engines die, without any effect on the queue."""
        self.scheduler.step(PoolAdded(calm(self.spec)), self.now_ms)
        for name in self.ready:
            assert self.scheduler.step(ReplicaLost("p", name), self.now_ms) == ()
        for key in self.scheduler.running("p"):
            assert self.scheduler.step(WorkerLost(key, resume=True), self.now_ms) == ()


def calm(spec: PoolSpec) -> PoolSpec:
    """Without preemption, which asks for speeds that only the one that lived on has learned."""
    return replace(spec, preemption=PreemptionPolicy(PreemptionMode.OFF))


def queue_of(scheduler: Scheduler) -> list[str]:
    """What resumes and what waits, by flow with its tag."""
    words = ("resuming", *Priority)
    return [line for line in scheduler.describe().splitlines() if line.split()[0] in words]


def drained(scheduler: Scheduler, now_ms: int) -> list[str]:
    """Every end and dispatch there is, with one slot for everything."""
    effects = list(scheduler.step(ReplicaReady(make_replica("last")), now_ms))
    story = []
    while effects:
        effect = effects.pop(0)
        assert isinstance(effect, Dispatch | Ended)
        story.append(f"{type(effect).__name__} {effect.task_key}")
        if isinstance(effect, Dispatch):
            effects += scheduler.step(finished(effect.task_key), now_ms)
    return story


positions = st.integers(0, 99)
submissions = st.tuples(
    st.just("submit"),
    st.sampled_from("xyz"),
    st.sampled_from(Priority),
    st.sampled_from([40, 900, 5_000, FAR_MS, FAR_MS, FAR_MS]),
    st.integers(11, 60) | st.just(1000),
)
floods = st.tuples(
    st.just("flood"), st.lists(st.sampled_from("xyz"), min_size=3), st.sampled_from(Priority)
)
rushes = st.tuples(
    st.just("rush"),
    st.sampled_from("xz"),
    st.lists(st.integers(1, 16).map(lambda n: n * 250), min_size=1),
)
events = (
    submissions
    | floods
    | rushes
    | st.tuples(st.just("finish"), positions, st.just(5))
    | st.tuples(st.just("finish"), positions, st.integers(1, 20))
    | st.tuples(st.just("abort"), positions)
    | st.tuples(st.just("lose_worker"), positions, st.booleans())
    | st.tuples(st.just("cancel"), positions)
    | st.tuples(st.just("add_replica"), st.integers(1, 2))
    | st.tuples(st.just("pass_time"), st.sampled_from([1, 30, 400, 3_000]))
    | st.tuples(st.just("crash"))
)
pools = st.builds(
    lambda policy, mode: make_pool(
        capacity=16,
        interactive=12,
        batch=12,
        policy=policy,
        preemption=PreemptionPolicy(mode, 3),
        tenants=(
            TenantPolicy("x", weight=3, max_concurrent=1),
            TenantPolicy("y", weight=2, rps=2.0),
            TenantPolicy("z", tokens_per_minute=1500),
        ),
    ),
    st.sampled_from(FullPolicy),
    st.sampled_from(PreemptionMode),
)


@pytest.mark.req("ORCH-3203", partial="the journal; a node that is replaced")
@pytest.mark.req("ORCH-3075", "ORCH-3077", partial="that they survive a restart")
@given(spec=pools, history=st.lists(events, min_size=20, max_size=60))
def test_who_is_next_after_a_crash_is_who_was_next_before_it(
    spec: PoolSpec, history: list[tuple[object, ...]]
) -> None:
    life = Life(spec)
    life.add_replica(1)
    for name, *arguments in history:
        getattr(life, str(name))(*arguments)
    life.lose_all()

    after = recovered(calm(spec), life.facts, life.now_ms)

    assert queue_of(after) == queue_of(life.scheduler)
    assert drained(after, life.now_ms) == drained(life.scheduler, life.now_ms)
    for tenant in "xyz":
        probe = Submit(make_task("probe", tenant=tenant, deadline_at_ms=10**15))
        answers = [each.step(probe, life.now_ms) for each in (after, life.scheduler)]
        refusals = [[e.refusal for e in effects if isinstance(e, Rejected)] for effects in answers]
        assert refusals[0] == refusals[1]


COST_TOKENS = 60
WEIGHTS = {"x": 3, "y": 1, "z": 1}


@pytest.mark.req("ORCH-3075", partial="that shares survive a restart")
@given(
    history=st.lists(st.sampled_from([*WEIGHTS, *["finish"] * 6]), min_size=20, max_size=60),
    forgotten=st.sets(st.sampled_from([*WEIGHTS]) | st.integers(1, 60), min_size=1),
)
def test_what_is_forgotten_moves_no_flow_by_more_than_a_task_over_its_weight(
    history: list[str], forgotten: set[str | int]
) -> None:
    life = Life(make_pool(tenants=tuple(TenantPolicy(*item) for item in WEIGHTS.items())))
    life.add_replica(1)
    for _ in range(30):
        for tenant in WEIGHTS:
            life.submit(tenant, Priority.BATCH, FAR_MS, COST_TOKENS)
    for word in history:
        if word == "finish":
            life.finish(0, 1)
        else:
            life.submit(word, Priority.BATCH, FAR_MS, COST_TOKENS)

    after = recovered(life.spec, kept(life.facts, forgotten), life.now_ms)

    served = dict.fromkeys(WEIGHTS, 0)
    resuming = [key.partition("/")[0] for key in life.scheduler.running("p")]
    order = [line.split()[1].partition("/")[0] for line in drained(after, life.now_ms)]
    waiting = {tenant: order.count(tenant) - resuming.count(tenant) for tenant in WEIGHTS}
    for tenant in order[len(resuming) :]:
        served[tenant] += COST_TOKENS
        for one, other in combinations(WEIGHTS, 2):
            lead = served[one] / WEIGHTS[one] - served[other] / WEIGHTS[other]
            # Once for the order itself, and once for what is forgotten.
            assert abs(lead) <= 2 * (COST_TOKENS / WEIGHTS[one] + COST_TOKENS / WEIGHTS[other])
        if served[tenant] == waiting[tenant] * COST_TOKENS:
            return  # not backlogged any more


def kept(facts: Sequence[Fact], forgotten: set[str | int]) -> list[Fact]:
    """The books without the tasks that have ended and whose tenant or number is `forgotten`, as the
    services read them: what was charged before something that is missing is charged no more."""
    ended = {fact.task_key for fact in facts if isinstance(fact, RecoverEnded)}
    left: list[Fact] = []
    known_from = 0
    for fact in facts:
        key = fact.task.key if isinstance(fact, Recover) else fact.task_key
        if key in ended and forgotten & {key[0], int(key.rpartition("t")[2])}:
            known_from = len(left)
        else:
            left.append(fact)
    return [
        structs.replace(fact, charged=number >= known_from)
        if isinstance(fact, RecoverStarted)
        else fact
        for number, fact in enumerate(left)
    ]
