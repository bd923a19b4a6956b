"""Engines are killed and stopped at random moments under strict streams of a real model.

Two llama.cpp processes serve one pool; while four readers work through a list of streams, one of
the engines is ended with SIGKILL or halted with SIGSTOP, again and again, at seeded moments that
are counted in tokens. Every stream must end byte-equal to the undisturbed run (ORCH-3201).

`make chaos` runs the nightly size (LLORCH_CHAOS_FAULTS=50); the tests run a small one. Recovery
times are printed, and decide nothing.
"""

from __future__ import annotations

import itertools
import os
import random
import signal
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from statistics import quantiles
from typing import Any

import pytest

from harness_kit.http_probe import Event, HttpProbe, numbered, task, text_of
from harness_kit.llamacpp_engine import LlamaCppEngine
from harness_kit.service_process import CONTROL_KEY, DATA_KEY, ServiceProcess, external_pool
from harness_kit.waiting import wait_until

FAULTS = int(os.environ.get("LLORCH_CHAOS_FAULTS", "8"))
STREAMS = FAULTS
TOKENS = 64
READERS = 4
SEED = 20261123
MODEL = "builtin:smollm2"
SAMPLED = {"temperature": 0.9, "top_p": 0.95, "top_k": 40}
# One look at a stopped engine takes three seconds, a start of one about as long on a busy machine.
RECOVERED_S = 60.0
LONG_S = 60.0 + 30.0 * FAULTS


@dataclass(frozen=True)
class Chaos:
    """The texts of the undisturbed run by prompt; of the disturbed one each stream with the number
    of its prompt; what was done to the engines; and the service after both."""

    service: ServiceProcess
    undisturbed: list[str]
    disturbed: list[tuple[int, list[Event]]]
    faults: list[str]


class Tokens:
    """How many tokens all readers together have seen; faults wait for a number of them."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = threading.Condition()

    def seen(self) -> None:
        with self._changed:
            self.count += 1
            self._changed.notify_all()

    def wait_for(self, count: int) -> None:
        """Until so many tokens were seen."""
        with self._changed:
            seen = self._changed.wait_for(lambda: self.count >= count, LONG_S)
        assert seen, f"{self.count} of {count} tokens were seen within {LONG_S} s"


class Streams:
    """The numbers of the streams to come: each prompt once, then again while faults go on."""

    def __init__(self) -> None:
        self.over = threading.Event()  # all faults have happened
        self._next = itertools.count()
        self._lock = threading.Lock()

    def __iter__(self) -> Iterator[int]:
        while True:
            with self._lock:
                number = next(self._next)
            if number >= STREAMS and self.over.is_set():
                return
            yield number % STREAMS


def document(number: int) -> dict[str, Any]:
    """A task of its own for prompt `number`."""
    return task(
        MODEL,
        prompt=f"Story number {number}: once upon a time there was",
        max_tokens=TOKENS,
        seed=number,
        sampling=SAMPLED,
        deadline_ms=600_000,
    )


def read(port: int, number: int, tokens: Tokens | None = None) -> list[Event]:
    """Submit a task and read its stream to the end."""
    events = []
    wanted = document(number)
    with HttpProbe(port, DATA_KEY, timeout_s=RECOVERED_S) as probe:
        answer = probe.post("/v1/tasks", wanted)
        assert answer.status == 202, answer
        for event in probe.stream(wanted["task_id"]):
            events.append(event)
            if tokens is not None and event.name == "token":
                tokens.seen()
    return events


def read_on(port: int, streams: Streams, tokens: Tokens) -> list[tuple[int, list[Event]]]:
    """One reader: stream after stream, until there are no more to come."""
    return [(number, read(port, number, tokens)) for number in streams]


def disturb(service: ServiceProcess, engines: list[LlamaCppEngine], tokens: Tokens) -> list[str]:
    """All faults, one after the other; what was done, in order."""
    generator = random.Random(SEED)
    done = []
    for _ in range(FAULTS):
        wait_until(
            lambda: service.metric("replica_ready") == len(engines), RECOVERED_S, "all are Ready"
        )
        tokens.wait_for(tokens.count + generator.randint(1, TOKENS))
        engine = generator.choice(engines)
        if generator.random() < 0.5:
            engine.kill()
            engine.launch()
            done.append("kill")
            continue
        os.kill(engine.pid, signal.SIGSTOP)
        try:
            wait_until(
                lambda: service.metric("replica_ready") < len(engines), RECOVERED_S, "it is missed"
            )
        finally:
            os.kill(engine.pid, signal.SIGCONT)
        done.append("stop")
    return done


@pytest.fixture(scope="module")
def chaos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chaos]:
    with ExitStack() as stack:
        engines = [stack.enter_context(LlamaCppEngine(ctx=512)) for _ in range(2)]
        pool = external_pool(
            *(engine.url for engine in engines),
            model=MODEL,
            ctx=512,
            timeouts={"wall_ms": 600_000, "idle_ms": 600_000},
        )
        service = stack.enter_context(ServiceProcess(tmp_path_factory.mktemp("chaos"), pool))
        with ThreadPoolExecutor(READERS) as readers:
            calm = list(readers.map(lambda number: read(service.port, number), range(STREAMS)))
        tokens, streams = Tokens(), Streams()
        with ThreadPoolExecutor(READERS + 1) as threads:
            faults = threads.submit(disturb, service, engines, tokens)
            faults.add_done_callback(lambda _: streams.over.set())
            readers_on = [
                threads.submit(read_on, service.port, streams, tokens) for _ in range(READERS)
            ]
            done = faults.result(LONG_S)
            disturbed = [pair for reader in readers_on for pair in reader.result(LONG_S)]
        report(service, done)
        yield Chaos(service, [text_of(events) for events in calm], disturbed, done)


def report(service: ServiceProcess, faults: list[str]) -> None:
    """Say how long streams stood still; pytest shows it with -s."""
    times = sorted(line["recovery_ms"] for line in service.log_lines("task.failed_over"))
    streams = len(service.log_lines("task.ended")) - STREAMS
    print(f"\n{streams} streams, {len(faults)} faults", end=" ")
    print(f"({faults.count('kill')} kills, {faults.count('stop')} stops)")
    if len(times) > 1:
        cuts = quantiles(times, n=100, method="inclusive")
        print(f"{len(times)} recoveries: p50 {cuts[49]:.0f} ms, p99 {cuts[98]:.0f} ms")


# Loading, decoding twice and standing still for three seconds at each halt.
pytestmark = pytest.mark.timeout(int(LONG_S) + 120)


@pytest.mark.req("ORCH-3201", "ORCH-3051")
def test_every_stream_ends_byte_equal_to_the_undisturbed_run(chaos: Chaos) -> None:
    broken = [events[-1].data for _, events in chaos.disturbed if events[-1].name != "end"]
    other = [n for n, events in chaos.disturbed if text_of(events) != chaos.undisturbed[n]]

    assert broken == []
    assert other == []
    assert {number for number, _ in chaos.disturbed} == set(range(STREAMS))


@pytest.mark.req("ORCH-3201")
@pytest.mark.req("ORCH-3202", partial="a crash of the service, and another node")
def test_no_token_comes_twice_or_out_of_order(chaos: Chaos) -> None:
    for _, events in chaos.disturbed:
        kept = numbered(events)
        assert [event.id for event in kept] == [*range(1, len(kept) + 1)]


@pytest.mark.req("ORCH-3201", "ORCH-3017")
def test_streams_did_move_and_no_slot_is_leaked(chaos: Chaos) -> None:
    assert len(chaos.faults) == FAULTS
    assert chaos.service.metric("failovers_total", outcome="resumed") > 0
    assert chaos.service.metric("failovers_total", outcome="mismatch") == 0
    assert chaos.service.metric("slots_busy") == 0
    assert chaos.service.metric("tasks_running") == 0
    with chaos.service.probe(CONTROL_KEY) as probe:
        wait_until(
            lambda: all(
                (entry["slots_free"], entry["slots_total"]) in {(4, 4), (2, 2)}
                for entry in probe.get("/v1/replicasets").json()
            ),
            RECOVERED_S,
            "the engines have let go of what was broken off",
        )
