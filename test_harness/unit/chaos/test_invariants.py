"""Each invariant of a chaos run is silent over a sound history and names a planted violation."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from chaos import invariants
from chaos.history import Footprint, TaskHistory
from harness_kit.http_probe import Answer, Event

TASK = "11111111-1111-4111-8111-111111111111"
PROMISE = Answer(202, {}, b'{"queue_position":0}')


def event(name: str, number: int, **data: Any) -> Event:
    return Event(name, number, data, f"{name} {number} {data}".encode())


def token(index: int, text: str = "a") -> Event:
    return event("token", index + 2, t=text, i=index)


def refusal(status: int = 429, code: str = "ADMISSION_REJECT", **more: Any) -> Answer:
    body = {"code": code, "message": "full", "retriable": True, "retry_after_ms": 5} | more
    return Answer(status, {"retry-after": "1"}, json.dumps(body).encode())


def completed(**changes: Any) -> TaskHistory:
    """A strict task of two tokens that was posted twice and read twice."""
    events = [event("started", 1), token(0), token(1), event("end", 4, tokens_out=2)]
    fields = {"expected": "aa", "answers": [PROMISE, PROMISE], "joined": events, "again": events}
    return TaskHistory({"task_id": TASK}, "acme", **fields | changes)


def cancelled(**changes: Any) -> TaskHistory:
    """One that was cancelled after its first token."""
    events = [event("started", 1), token(0), event("end", 3, tokens_out=1, canceled=True)]
    return completed(**{"joined": events, "again": None, "at_cancel": events} | changes)


def refused(**changes: Any) -> TaskHistory:
    """One that was never admitted."""
    return completed(**{"answers": [refusal()], "joined": [], "again": None} | changes)


def failed(code: str = "WORKER_RESET", determinism: str = "best_effort") -> TaskHistory:
    """One whose stream ended with an error before its first token."""
    document = {"task_id": TASK, "determinism": determinism}
    ended = [event("error", 2, code=code, message="lost", engine="llamacpp")]
    return replace(completed(joined=ended, again=None), document=document)


def cut_back() -> TaskHistory:
    """One that a crash ended after its second token, of which one was decoded again."""
    read = [event("started", 1), token(0), token(1), event("end", 4, tokens_out=1, canceled=True)]
    left = [event("started", 1), token(0), event("end", 3, tokens_out=1, canceled=True)]
    return cancelled(joined=read, at_cancel=left, joined_at_cancel=3, outlived_a_crash=True)


SOUND = [completed(), cancelled(), refused(), failed(), cut_back()]


@pytest.mark.parametrize("invariant", invariants.OF_A_TASK)
@pytest.mark.parametrize("history", SOUND, ids=lambda history: str(history.outcome))
def test_a_sound_history_violates_nothing(
    history: TaskHistory, invariant: Callable[[TaskHistory], invariants.Violations]
) -> None:
    assert list(invariant(history)) == []


start, end = event("started", 1), event("end", 4, tokens_out=2)
PLANTED: dict[str, tuple[Callable[[TaskHistory], invariants.Violations], TaskHistory]] = {
    "no terminal": (invariants.ends_exactly_once, completed(joined=[start, token(0)])),
    "two terminals": (
        invariants.ends_exactly_once,
        completed(joined=[start, token(0), token(1), end, end]),
    ),
    "an event after the terminal": (
        invariants.ends_exactly_once,
        completed(joined=[start, token(0), end, token(1)]),
    ),
    "events of a refused task": (invariants.ends_exactly_once, refused(joined=[start])),
    "no answer": (invariants.ends_exactly_once, refused(answers=[])),
    "a token twice": (
        invariants.tokens_in_order,
        completed(joined=[start, token(0), token(0), end]),
    ),
    "a token missing": (
        invariants.tokens_in_order,
        completed(joined=[start, token(0), token(2), end]),
    ),
    "tokens out of order": (
        invariants.tokens_in_order,
        completed(joined=[start, token(1), token(0), end]),
    ),
    "an id that is not of its place": (
        invariants.tokens_in_order,
        completed(joined=[start, event("token", 7, t="a", i=0), token(1), end]),
    ),
    "started twice": (
        invariants.tokens_in_order,
        completed(joined=[start, token(0), token(1), start, end]),
    ),
    "a terminal with another id": (
        invariants.tokens_in_order,
        completed(joined=[start, token(0), token(1), event("end", 9, tokens_out=2)]),
    ),
    "tokens_out that is wrong": (
        invariants.tokens_in_order,
        completed(joined=[start, token(0), token(1), event("end", 4, tokens_out=3)]),
    ),
    "another byte": (
        invariants.strict_text,
        completed(joined=[start, token(0), token(1, "b"), end]),
    ),
    "a text cut short": (invariants.strict_text, completed(expected="aaa")),
    "a strict task that failed": (
        invariants.strict_completes,
        failed(determinism="strict"),
    ),
    "a token after the cancel": (
        invariants.nothing_after_a_cancel,
        cancelled(joined=[start, token(0), token(1), end]),
    ),
    "a cancel that was answered too early": (
        invariants.nothing_after_a_cancel,
        cancelled(at_cancel=[start, token(0)]),
    ),
    "a cancel that nobody asked for": (
        invariants.nothing_after_a_cancel,
        cancelled(at_cancel=None),
    ),
    "a second reader gets other bytes": (
        invariants.replays_are_equal,
        completed(again=[start, token(0), token(1, "b"), end]),
    ),
    "other bytes before the cut": (
        invariants.replays_are_equal,
        replace(cut_back(), at_cancel=[start, token(0, "b"), end]),
    ),
    "more than was decoded again": (
        invariants.tokens_in_order,
        replace(cut_back(), joined=[*cut_back().joined[:-1], event("end", 4, tokens_out=3)]),
    ),
    "a crash that cuts back what completed": (
        invariants.replays_are_equal,
        completed(again=[start, token(0), end], outlived_a_crash=True),
    ),
    "two promises": (
        invariants.one_task_per_id,
        completed(answers=[PROMISE, replace(PROMISE, body=b'{"queue_position":1}')]),
    ),
    "refused after 202": (invariants.one_task_per_id, completed(answers=[PROMISE, refusal()])),
    "an unknown code": (
        invariants.refusals_are_typed,
        refused(answers=[refusal(code="OVERLOADED")]),
    ),
    "a status of another code": (
        invariants.refusals_are_typed,
        refused(answers=[refusal(status=503)]),
    ),
    "no envelope": (
        invariants.refusals_are_typed,
        refused(answers=[Answer(500, {}, b"Internal Server Error")]),
    ),
    "no message": (invariants.refusals_are_typed, refused(answers=[refusal(message="")])),
    "no Retry-After": (
        invariants.refusals_are_typed,
        refused(answers=[replace(refusal(), headers={})]),
    ),
    "retriable, but not when": (
        invariants.refusals_are_typed,
        refused(answers=[refusal(retry_after_ms=None)]),
    ),
    "an error event without a code": (invariants.refusals_are_typed, failed(code="")),
    "a broken frame": (invariants.the_protocol_holds, completed(broken=["no event"])),
    "an admitted task that is unknown": (
        invariants.the_protocol_holds,
        completed(refused_reads=[refusal(status=404, code="INVALID_PARAMS")]),
    ),
}


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_named(name: str) -> None:
    invariant, history = PLANTED[name]

    said = list(invariant(history))

    assert said
    assert all(TASK in sentence for sentence in said)


def test_every_invariant_of_a_task_has_a_planted_violation() -> None:
    assert {invariant for invariant, _ in PLANTED.values()} == set(invariants.OF_A_TASK)


IDLE_SET = {"id": "s0", "slots_free": 4, "slots_total": 4}


@pytest.mark.parametrize("name", invariants.IDLE)
def test_whatever_is_held_with_nothing_to_do_is_named(name: str) -> None:
    def metric(asked: str) -> float:
        return float(asked == name)

    said = list(invariants.nothing_is_held(metric, [IDLE_SET]))

    assert said == [f"{name} is 1 with nothing to do"]


def test_a_slot_that_a_replica_set_misses_is_named() -> None:
    leaking = IDLE_SET | {"slots_free": 3}

    said = list(invariants.nothing_is_held(lambda _: 0.0, [IDLE_SET, leaking]))

    assert said == ["s0 has 3 of 4 slots free"]


# Of SOUND: four were admitted; refused was answered once.
COUNTED = {"admitted": 4, "completed": 1, "canceled": 2, "failed": 1, "rejected": 1}


def test_counters_that_say_what_clients_saw_agree() -> None:
    assert list(invariants.counters_agree(COUNTED, SOUND)) == []


@pytest.mark.parametrize("name", COUNTED)
def test_a_counter_that_is_one_off_is_named(name: str) -> None:
    off = COUNTED | {name: COUNTED[name] + 1}

    said = list(invariants.counters_agree(off, SOUND))

    assert said == [f"the metrics count {off[name]} {name}, the clients {COUNTED[name]}"]


BEFORE = Footprint(100 << 20, 40)
MOST = Footprint(
    BEFORE.rss_bytes + invariants.RSS_GROWTH_BYTES,
    BEFORE.descriptors + invariants.DESCRIPTOR_GROWTH,
)


def test_growth_up_to_the_bound_is_flat_and_beyond_it_is_named() -> None:
    leaked = Footprint(MOST.rss_bytes + 1, MOST.descriptors + 1)

    within = list(invariants.footprint_is_flat(BEFORE, MOST))
    beyond = list(invariants.footprint_is_flat(BEFORE, leaked))

    assert within == []
    assert [sentence.split()[0] for sentence in beyond] == ["memory", "13"]
