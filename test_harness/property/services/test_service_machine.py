"""The whole service under any order of requests, crashes, dead engines and a disk that stalls.

The model keeps no scheduler: it holds what each client was told and compares it with the mock's own
definition of an answer. What must hold at every instant: ids without gap or repeat, the bytes of an
undisturbed run, at most one terminal event and the same for everybody, nothing shown that a crash
could take back, nothing after an acknowledged cancel. What must hold in the end: every task that
was answered 202 has ended, no slot is held, no journal row is left. Above 400 lines: the rules, the
model and the invariants of one machine are read together.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from harness_kit.core_builders import make_pool
from harness_kit.service_clients import (
    Frame,
    StreamClient,
    draft,
    end_event,
    started_event,
    token_events,
)
from harness_kit.service_world import POOL, PROFILE, Cancellation, ServiceWorld, Setup, Submission
from harness_kit.virtual_time import VirtualTimeLoop
from orchestrator_core.errors import Refusal
from orchestrator_core.limits import Limits
from orchestrator_core.pool import FullPolicy, PreemptionMode, PreemptionPolicy
from orchestrator_core.task import Determinism, Priority, Workload
from orchestratord.services import records
from orchestratord.services.admission import IdConflict
from orchestratord.services.dispatch import MAX_ATTEMPTS
from orchestratord.services.drafts import Draft, SamplingOverride
from orchestratord.services.jobs import Promise
from worker_adapters.adapter_api.types import Health
from worker_adapters.mock.script import Misbehaviour, MockFault, MockScript, vector_of

TOKEN_MS = 10
RETAIN_S = 600
IDLE_MS = 500
WALL_MS = 30_000
SHORT_MS, LONG_MS = 200, 3_600_000
SCRIPT = MockScript(slots_total=1, token_delay_ms=TOKEN_MS)

positions = st.integers(0, 99)
engines = st.sampled_from(["r0", "r1"])
workloads = st.sampled_from(
    [{"workload": Workload.COMPLETION}] * 4
    + [{"workload": Workload.EMBEDDING, "prompt": None, "inputs": ("one", "two")}]
)
bodies = st.builds(
    lambda workload, body: {**workload, **body},
    workloads,
    st.fixed_dictionaries(
        {
            "determinism": st.sampled_from(Determinism),
            "priority": st.sampled_from(Priority),
            "tenant": st.sampled_from(["acme", "umbra"]),
            "max_tokens": st.integers(1, 6),
            "sampling": st.sampled_from([0.0, 0.8]).map(lambda t: SamplingOverride(temperature=t)),
            "deadline_ms": st.sampled_from([LONG_MS, LONG_MS, SHORT_MS]),
        }
    ),
)


@dataclass
class Known:
    """What clients know of one task that was answered 202."""

    draft: Draft
    promise: Promise
    asked_s: float
    clients: list[StreamClient] = field(default_factory=list)
    cancel_tokens: int | None = None  # once a cancel was acknowledged
    terminal: tuple[str, Any] | None = None
    decodes: int = 0  # begun since the last crash

    @property
    def strict(self) -> bool:
        return self.draft.determinism is Determinism.STRICT


class ServiceMachine(RuleBasedStateMachine):
    @initialize(
        policy=st.sampled_from(FullPolicy),
        mode=st.sampled_from([PreemptionMode.HARD, *PreemptionMode]),
        first=st.lists(bodies, min_size=2, max_size=5),
    )
    def begin(self, policy: FullPolicy, mode: PreemptionMode, first: list[dict[str, Any]]) -> None:
        self.logs = structlog.testing.capture_logs()
        self.logs.__enter__()
        self.runner = asyncio.Runner(loop_factory=VirtualTimeLoop)
        self.policy = policy
        self.mode = mode
        self.number = 0
        self.known: dict[str, Known] = {}
        self.asked_s: dict[str, float] = {}
        self.bodies: list[tuple[int, dict[str, Any]]] = []
        self.asked: list[Submission] = []
        self.open_requests: list[tuple[Submission, bool]] = []  # and whether a 202 came before
        self.cancels: list[Cancellation] = []
        self.checked: dict[StreamClient, int] = {}
        self.faulty = False  # an engine was told to stand still or to lie
        self.held = self.ever_held = False
        self.run(self.create())
        # Hypothesis leaves some rules out of each run; work there always is.
        self.submit_tasks(first, reading=True)

    async def create(self) -> None:
        setup = Setup(
            engines={"r0": SCRIPT, "r1": SCRIPT},
            pool=make_pool(
                capacity=5,
                interactive=3,
                batch=3,
                policy=self.policy,
                preemption=PreemptionPolicy(self.mode),
                sampler_profile_version=PROFILE,
            ),
            limits=Limits(session_ttl_ms=RETAIN_S * 1000, session_max_turns=10**6),
            retain_s=RETAIN_S,
            idle_ms=IDLE_MS,
            wall_ms=WALL_MS,
        )
        self.world = ServiceWorld(setup)
        self.world.on_decode = self.book_decode
        await self.world.start()

    def run(self, work: Coroutine[Any, Any, None]) -> None:
        self.runner.run(work)

    def choose(self, position: int) -> Known:
        tasks = list(self.known.values())
        return tasks[position % len(tasks)]

    def book_decode(self, task_id: str) -> None:
        """An engine is asked: a best_effort task of which tokens were shown never restarts."""
        for known in self.known.values():
            if known.draft.task_id == task_id:
                known.decodes += 1
                assert known.strict or not any(client.tokens for client in known.clients)
                assert known.terminal is None or known.terminal[1].keys() >= {"decode_ms"}

    # --- requests ----------------------------------------------------------------------------

    @rule(bodies=st.lists(bodies, min_size=1, max_size=4), reading=st.booleans())
    def submit(self, bodies: list[dict[str, Any]], reading: bool) -> None:
        self.submit_tasks(bodies, reading)

    def submit_tasks(self, bodies: list[dict[str, Any]], reading: bool) -> None:
        numbers = range(self.number, self.number + len(bodies))
        self.number += len(bodies)
        drafts = []
        for number, body in zip(numbers, bodies, strict=True):
            session_id = f"00000000-0000-4000-9000-{number % 3:012d}"
            self.bodies.append((number, {**body, "session_id": session_id}))
            drafts.append(draft(number, **self.bodies[-1][1]))
        self.run(self.ask(*drafts))
        if reading:
            self.run(self.world.settle())
            self.answers_keep_their_word()
            for one in drafts:
                if one.key in self.known:
                    self.read(list(self.known).index(one.key))

    async def ask(self, *drafts: Draft) -> None:
        for one in drafts:
            self.asked_s.setdefault(one.key, self.world.now_s)
            submission = self.world.submit(one)
            self.asked.append(submission)
            self.open_requests.append((submission, one.key in self.known))

    @rule(
        flood=st.lists(st.sampled_from(Determinism), min_size=1, max_size=3),
        ms=st.sampled_from([1, 25, 60, 95]),
        urgent=st.integers(1, 2),
        later_ms=st.sampled_from([0, 5, 15, 60]),
    )
    def rush(self, flood: list[Determinism], ms: int, urgent: int, later_ms: int) -> None:
        """Long tasks run; then some come that have no time to wait for them."""
        long = {"priority": Priority.BATCH, "max_tokens": 30, "deadline_ms": LONG_MS}
        soon = {"priority": Priority.INTERACTIVE, "max_tokens": 2, "deadline_ms": SHORT_MS}
        self.submit_tasks([{**long, "determinism": determinism} for determinism in flood], True)
        self.pass_time(ms)
        self.submit_tasks([soon] * urgent, True)
        self.pass_time(later_ms)

    @precondition(lambda self: self.bodies)
    @rule(position=positions, same=st.booleans())
    def submit_again(self, position: int, same: bool) -> None:
        number, body = self.bodies[position % len(self.bodies)]
        self.run(self.ask(draft(number, **(body if same else {**body, "ctx": 500}))))

    @precondition(lambda self: self.known)
    @rule(position=positions)
    def read_another_time(self, position: int) -> None:
        self.read(position)

    def read(self, position: int) -> None:
        known = self.choose(position)

        async def attach() -> None:
            known.clients.append(self.world.read(known.draft))

        self.run(attach())

    @precondition(lambda self: any(k.clients for k in self.known.values()))
    @rule(position=positions, what=st.sampled_from(["leave", "stall", "resume", "come back"]))
    def change_reading(self, position: int, what: str) -> None:
        clients = [client for known in self.known.values() for client in known.clients]
        client = clients[position % len(clients)]

        async def change() -> None:
            if what == "leave":
                client.leave()
            elif what == "stall":
                client.congested = True
            elif what == "resume":
                client.resume()
            elif not client.connected and client.terminal is None:
                assert client.connect(), "a task is kept until its end was read"

        self.run(change())

    @precondition(lambda self: self.known)
    @rule(position=positions)
    def cancel(self, position: int) -> None:
        known = self.choose(position)

        async def cancel() -> None:
            self.cancels.append(self.world.cancel(known.draft))

        self.run(cancel())

    # --- what goes wrong ---------------------------------------------------------------------

    def engines_by_state(self, *, alive: bool) -> list[str]:
        """Those that work first: what happens to them matters most."""
        engines = self.world.engines
        names = [n for n, e in engines.items() if (e.health is Health.OK) is alive]
        return sorted(names, key=lambda name: -engines[name].running_count)

    @precondition(lambda self: self.known and self.engines_by_state(alive=True))
    @rule()
    def kill(self) -> None:
        async def kill() -> None:
            self.world.kill(self.engines_by_state(alive=True)[0])

        self.run(kill())

    @precondition(lambda self: self.engines_by_state(alive=False))
    @rule()
    def revive(self) -> None:
        async def revive() -> None:
            self.world.revive(self.engines_by_state(alive=False)[0])

        self.run(revive())

    @rule(name=engines, kind=st.sampled_from(Misbehaviour), after_tokens=st.integers(0, 4))
    def misbehave(self, name: str, kind: Misbehaviour, after_tokens: int) -> None:
        self.faulty = self.faulty or kind in (Misbehaviour.SILENT, Misbehaviour.SLOW)
        self.world.engines[name].inject(MockFault(kind, after_tokens))

    @precondition(lambda self: self.known and not self.held)
    @rule()
    def hold_the_disk(self) -> None:
        self.held = self.ever_held = True
        self.world.life.journal.hold()

    @precondition(lambda self: self.held)
    @rule()
    def resume_the_disk(self) -> None:
        self.held = False

        async def resume() -> None:
            self.world.life.journal.resume()

        self.run(resume())

    @precondition(lambda self: self.asked)
    @rule(ready=st.booleans())
    def crash(self, ready: bool) -> None:
        before = self.waiting_on_disk()
        kept = self.world.disk_records()
        ended = {f"{r.tenant}/{r.task_id}" for r in kept if isinstance(r, records.TaskEnded)}
        self.held = False
        self.open_requests.clear()
        self.cancels = [asked for asked in self.cancels if asked.acknowledged]
        for known in self.known.values():
            known.decodes = 0
            if known.draft.key not in ended:
                # Only the end of a strict completion is shown before it is durable: it is decoded
                # again, but may also be cancelled now by somebody who has not seen it.
                assert known.terminal is None or (known.strict and known.terminal[0] == "end")
                known.terminal = None

        async def crash() -> None:
            self.world.crash()
            self.world.restart(ready=False)
            after = self.world.life.scheduling.scheduler.waiting_keys(POOL)
            assert [key for key in after if key in before] == before, "the queue lost its order"
            assert self.world.life.dispatcher.running == ()
            if ready:
                for name in self.world.engines:
                    self.world.probe(name)

        self.run(crash())

    def waiting_on_disk(self) -> list[str]:
        """Who waits for a first slot, in order, as far as a restart can know."""
        kept = self.world.disk_records()
        admitted = {f"{r.tenant}/{r.task_id}" for r in kept if isinstance(r, records.TaskAdmitted)}
        begun = {
            f"{r.tenant}/{r.task_id}"
            for r in kept
            if isinstance(r, records.TaskStarted | records.TaskEnded)
        }
        keys = self.world.life.scheduling.scheduler.waiting_keys(POOL)
        return [key for key in keys if key in admitted - begun]

    @rule(turns=st.integers(0, 5))
    def turn(self, turns: int) -> None:
        """A few rounds of the event loop: what was begun may stop anywhere."""

        async def turn() -> None:
            for _ in range(turns):
                await asyncio.sleep(0)

        self.run(turn())

    @precondition(lambda self: self.known)
    @rule(ms=st.sampled_from([0.001, 1, 10, 15, 25, 60]))
    def pass_a_moment(self, ms: float) -> None:
        self.run(self.world.advance(ms / 1000))

    @rule(ms=st.sampled_from([250, 600, 1500]))
    def pass_time(self, ms: float) -> None:
        self.run(self.world.advance(ms / 1000))

    # --- what must hold ----------------------------------------------------------------------

    @invariant()
    def nothing_broke(self) -> None:
        assert not self.world.failures, self.world.failures

    @invariant()
    def answers_keep_their_word(self) -> None:
        unanswered = []
        for submission, was_known in self.open_requests:
            key, digest = submission.draft.key, submission.draft.body_digest
            known = self.known.get(key)
            if submission.outcome is None:
                unanswered.append((submission, was_known))
            elif isinstance(submission.outcome, IdConflict):
                assert known is None or known.draft.body_digest != digest
            elif isinstance(submission.outcome, Refusal):
                assert not was_known, "refused what had been admitted"
            else:
                assert submission.promise is not None
                assert submission.on_disk, "a 202 before the task was durable"
                if known is None:
                    asked_s = self.asked_s[key]
                    known = Known(submission.draft, submission.promise, asked_s)
                    self.known[key] = known
                assert known.draft.body_digest == digest, "two tasks under one id"
                assert known.promise == submission.promise, "two promises for one task"
        self.open_requests = unanswered

    @invariant()
    def a_refusal_leaves_nothing(self) -> None:
        asked = {submission.draft.key for submission, _ in self.open_requests}
        for key in self.refused_keys() - asked:
            assert self.world.life.jobs.get(key) is None

    def refused_keys(self) -> set[str]:
        """Tasks that were asked for, and refused each time."""
        keys: dict[str, bool] = {}
        for submission in self.asked:
            refused = isinstance(submission.outcome, Refusal)
            keys[submission.draft.key] = keys.get(submission.draft.key, True) and refused
        return {key for key, refused in keys.items() if refused} - self.known.keys()

    @invariant()
    def streams_are_those_of_an_undisturbed_run(self) -> None:
        for known in self.known.values():
            for client in known.clients:
                numbered = client.numbered
                for index in range(self.checked.get(client, 0), len(numbered)):
                    self.check_frame(known, numbered[:index], numbered[index])
                self.checked[client] = len(numbered)
                if client.finished:
                    assert client.terminal is not None, "a response that ends without a terminal"

    def check_frame(self, known: Known, before: list[Frame], frame: Frame) -> None:
        assert not any(earlier.is_terminal for earlier in before), "something after the end"
        tokens = sum(1 for earlier in before if earlier.event == "token")
        if frame.event == "started":
            assert not before
            assert frame.raw == started_event(known.promise)
        elif frame.event == "token":
            assert before, "a token before started"
            assert frame.raw == token_events(known.draft)[tokens]
            assert known.cancel_tokens is None or tokens < known.cancel_tokens
        else:
            assert frame.id == tokens + 2
            self.check_terminal(known, tokens, frame)

    def check_terminal(self, known: Known, tokens: int, frame: Frame) -> None:
        ending = (frame.event, frame.data)
        assert known.terminal in (None, ending), "two ends of one task"
        known.terminal = ending
        one, data = known.draft, frame.data
        completion = one.workload is Workload.COMPLETION
        completed = frame.event == "end" and "canceled" not in data
        if not (completed and known.strict and completion):
            assert frame.on_disk, "shown before it was durable"
        if completed and completion:
            whole = len(token_events(one))
            assert tokens == whole
            assert frame.raw == end_event(whole, whole * TOKEN_MS)
        elif completed:
            assert data["result"] == {"embeddings": [vector_of(text) for text in one.inputs]}
        elif frame.event == "error":
            assert self.may_fail(known, data["code"]), data

    @invariant()
    def only_those_are_interrupted_that_may_be(self) -> None:
        for known in self.known.values():
            for client in known.clients:
                if any(frame.data["preempted"] for frame in client.metrics):
                    assert self.mode is PreemptionMode.HARD
                    assert known.draft.priority is Priority.BATCH
                    assert known.draft.workload is Workload.COMPLETION
        running = [attempt.job.replica_id for attempt in self.world.life.dispatcher.running]
        assert len(set(running)) == len(running), "two tasks in one slot"

    def may_fail(self, known: Known, code: str) -> bool:
        """Whether this error has a cause in what happened to the task."""
        past_s = self.world.now_s - known.asked_s
        match code:
            case "DEADLINE_UNMET" | "POOL_UNAVAILABLE":
                return past_s * 1000 >= min(known.draft.deadline_ms, LONG_MS) - 1
            case "QUEUE_FULL_DROP_LRU":
                return self.policy is FullPolicy.DROP_LRU
            case "ADMISSION_REJECT":
                below = known.draft.priority is Priority.BATCH
                preempted = below and self.mode is not PreemptionMode.OFF
                return preempted or self.policy is FullPolicy.SHED_LOW_PRIORITY
            case "DECODE_TIMEOUT":
                return self.faulty or self.ever_held or past_s * 1000 >= WALL_MS
            case "WORKER_RESET":
                return not known.strict or known.decodes >= MAX_ATTEMPTS - 1
        return False

    @invariant()
    def acknowledged_cancels_are_final(self) -> None:
        for asked in self.cancels:
            known = self.known[asked.draft.key]
            if asked.acknowledged and known.cancel_tokens is None:
                assert not asked.unaware, "acknowledged before a reader saw the end"
                shown = (len(client.tokens) for client in known.clients)
                known.cancel_tokens = max([asked.tokens, *shown])

    # --- the end -----------------------------------------------------------------------------

    def teardown(self) -> None:
        if not hasattr(self, "runner"):
            return
        try:
            if hasattr(self, "world"):
                self.run(self.end())
        finally:
            self.runner.close()
            self.logs.__exit__(None, None, None)

    async def end(self) -> None:
        """Everything is repaired; every promise is kept, and nothing is left behind."""
        world = self.world
        if self.held:
            world.life.journal.resume()
        for name in world.engines:
            world.revive(name)
        await world.settle()
        self.answers_keep_their_word()
        for known in self.known.values():
            known.clients.append(world.read(known.draft))
            for client in known.clients:
                client.resume()
                if not client.connected and client.terminal is None:
                    assert client.connect()
        for _ in range(60):
            if all(c.terminal for k in self.known.values() for c in k.clients):
                break
            await world.advance(2.0)
        self.streams_are_those_of_an_undisturbed_run()
        for known in self.known.values():
            for client in known.clients:
                assert client.terminal is not None, "a promise was not kept"
                assert client.finished
            if known.terminal is not None and "canceled" not in known.terminal[1]:
                whole = known.strict and known.terminal[0] == "end"
                assert not whole or len({client.raw for client in known.clients}) == 1
        await world.advance(2.0)
        self.nothing_is_held()
        await self.rows_are_freed()

    def nothing_is_held(self) -> None:
        life = self.world.life
        assert life.dispatcher.running == ()
        assert life.scheduling.scheduler.running(POOL) == ()
        assert life.scheduling.scheduler.waiting_keys(POOL) == ()
        for engine in self.world.engines.values():
            assert engine.running_count == engine.waiting_count == 0
        assert len(life.hub) == 0

    async def rows_are_freed(self) -> None:
        """Past retention and session life nothing is kept, in memory or on disk."""
        world = self.world
        world.life.dead = True  # no ticks: one look at the far end will do
        await world.advance(2 * RETAIN_S)
        world.life.watchdog.look()
        await world.settle()
        world.life.watchdog.look()
        await world.settle()
        assert len(world.life.jobs) == 0
        assert world.disk.rows == {}


TestService = pytest.mark.req(
    "ORCH-3017",
    "ORCH-3024",
    "ORCH-3026",
    "ORCH-3085",
    "ORCH-3086",
    "ORCH-3201",
    "ORCH-3202",
    "ORCH-3203",
    partial="processes that die, and a disk",
)(ServiceMachine.TestCase)
