"""What must hold after any faults, as pure functions over the recorded history.

Each gives its violations as sentences that name the task, none where it holds. The reader of a
failure sees what was promised and what came. Requirements: ORCH-3024, ORCH-3026, ORCH-3051,
ORCH-3201, ORCH-3202, ORCH-3203, ORCH-2006, ORCH-2007.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from chaos.history import Footprint, TaskHistory
from harness_kit.http_probe import Answer, Event, text_of

Violations = Iterator[str]

# The pinned status of each code; INVALID_PARAMS has several, none of which chaos may cause.
STATUS = {
    "ADMISSION_REJECT": 429,
    "QUEUE_FULL_DROP_LRU": 429,
    "DEADLINE_UNMET": 429,
    "POOL_UNREADY": 503,
    "POOL_UNAVAILABLE": 503,
    "REPLICA_EXHAUSTED": 503,
    "DECODE_TIMEOUT": 504,
    "WORKER_RESET": 502,
    "INTERNAL": 500,
}
BACKPRESSURE = (429, 503)
IDLE = ("slots_busy", "tasks_running", "queue_depth", "stream_readers")
# An idle CPython process gives little back: what a leak of one log per task would exceed in a run
# of the size of continuous integration.
RSS_GROWTH_BYTES = 24 << 20
# Connections to engines that are kept alive come and go.
DESCRIPTOR_GROWTH = 12


def ends_exactly_once(task: TaskHistory) -> Violations:
    """Every 202 has one terminal event, the last one; what was refused has no event."""
    terminals = [place for place, event in enumerate(task.joined) if event.terminal]
    if not task.admitted:
        if task.joined:
            yield f"task {task.id} was refused and has {len(task.joined)} events"
        if not task.answers:
            yield f"task {task.id} got no answer"
    elif terminals != [len(task.joined) - 1]:
        yield (
            f"task {task.id} was answered 202 and has {len(task.joined)} events, terminal ones at "
            f"{terminals}"
        )


def tokens_in_order(task: TaskHistory) -> Violations:
    """No token twice, missing or out of order; ids are those of their places."""
    index = 0
    for place, event in enumerate(task.joined):
        if event.name == "started":
            if (place, event.id) != (0, 1):
                yield f"task {task.id}: started at place {place} with id {event.id}"
        elif event.name == "token":
            if (event.data["i"], event.id) != (index, index + 2):
                yield f"task {task.id}: token {index} has i {event.data['i']} and id {event.id}"
            index += 1
        elif event.id != index + 2:
            yield f"task {task.id}: {event.name} after {index} tokens has id {event.id}"
    terminal = task.terminal
    if terminal is not None and terminal.name == "end":
        tokens_out = terminal.data["tokens_out"]
        # Of what a crash cut back, only those are counted that were decoded again.
        if not (tokens_out <= index if _cut_back(task) else tokens_out == index):
            yield f"task {task.id}: {index} tokens, and tokens_out is {tokens_out}"


def strict_text(task: TaskHistory) -> Violations:
    """A strict stream never shows a byte that the undisturbed one has not at that place, and all
    of them where it completes."""
    if task.expected is None or not task.strict:
        return
    text = text_of(task.joined)
    if not task.expected.startswith(text):
        yield f"task {task.id} says {text!r} instead of {task.expected!r}"
    elif task.outcome == "completed" and text != task.expected:
        yield f"task {task.id} completed with {text!r}, a part of {task.expected!r}"


def strict_completes(task: TaskHistory) -> Violations:
    """A strict task that nobody cancelled completes: a lost worker is no reason to fail."""
    if task.strict and task.outcome == "failed":
        terminal = task.terminal
        assert terminal is not None
        yield f"strict task {task.id} failed: {terminal.data['code']}: {terminal.data['message']}"


def nothing_after_a_cancel(task: TaskHistory) -> Violations:
    """When the cancel was answered the log was complete: no token came after that, to anybody."""
    if task.at_cancel is None:
        if task.outcome == "canceled":
            yield f"task {task.id} ended as cancelled, and no cancel was answered"
        return
    if not task.at_cancel or not task.at_cancel[-1].terminal:
        yield f"task {task.id} had no terminal event after its cancel was answered"
    known = {event.id for event in task.at_cancel if event.name == "token"}
    since = (*task.joined[task.joined_at_cancel :], *(task.again or ()))
    later = [event.id for event in since if event.name == "token" and event.id not in known]
    if later:
        yield f"task {task.id} has tokens {later} that were not there when its cancel was answered"


def replays_are_equal(task: TaskHistory) -> Violations:
    """Whoever reads a log from the start gets the same bytes; of one that a crash cut back, what
    is left of them."""
    cut = _cut_back(task)
    for name, other in (("a second", task.again), ("the canceller's", task.at_cancel)):
        if other is None:
            continue
        first, second = ([e.raw for e in read] for read in (task.joined, other))
        if cut:
            length = min(len(first), len(second)) - 1  # the terminal event moves with the cut
            first, second = first[:length], second[:length]
        if first != second:
            yield f"task {task.id}: {name} read differs: {_ids(other)} and {_ids(task.joined)}"


def one_task_per_id(task: TaskHistory) -> Violations:
    """The same id with the same body is the same task: one promise, and never refused again."""
    promises = [answer.body for answer in task.answers if answer.status == 202]
    if len(set(promises)) > 1:
        yield f"task {task.id} got different promises: {promises}"
    first = next((n for n, answer in enumerate(task.answers) if answer.status == 202), None)
    if first is not None:
        refused = [a.status for a in task.answers[first:] if a.status != 202]
        if refused:
            yield f"task {task.id} was admitted and then answered {refused}"


def refusals_are_typed(task: TaskHistory) -> Violations:
    """Everything but success is an envelope: a code of the contract with its status, a message,
    and when to try again where that makes sense."""
    for answer in (*task.answers, *task.refused_reads):
        if answer.status != 202:
            for fault in _faults_of(answer):
                yield f"task {task.id} was answered {answer.status} {answer.body!r}: {fault}"
    terminal = task.terminal
    if terminal is not None and terminal.name == "error":
        typed = terminal.data.get("code") in STATUS and terminal.data.get("message")
        if not typed:
            yield f"task {task.id} ends with {terminal.data}, which is no typed error"


def the_protocol_holds(task: TaskHistory) -> Violations:
    """Whatever the service sent was HTTP and SSE, and an admitted task was always known."""
    for said in task.broken:
        yield f"task {task.id}: {said}"
    unknown = [answer.status for answer in task.refused_reads if answer.status == 404]
    if unknown and task.admitted:
        yield f"task {task.id} was admitted and then unknown {len(unknown)} times"


OF_A_TASK: tuple[Callable[[TaskHistory], Violations], ...] = (
    ends_exactly_once,
    tokens_in_order,
    strict_text,
    strict_completes,
    nothing_after_a_cancel,
    replays_are_equal,
    one_task_per_id,
    refusals_are_typed,
    the_protocol_holds,
)


def violations(tasks: Iterable[TaskHistory]) -> dict[str, list[str]]:
    """All violations of what holds for every task, by the invariant's name; empty lists too."""
    histories = list(tasks)
    return {
        invariant.__name__: [said for task in histories for said in invariant(task)]
        for invariant in OF_A_TASK
    }


def nothing_is_held(
    metric: Callable[[str], float], replica_sets: Iterable[Mapping[str, Any]]
) -> Violations:
    """With nothing to do no slot, place in a queue or reader is held."""
    for name in IDLE:
        if metric(name) != 0:
            yield f"{name} is {metric(name):g} with nothing to do"
    for entry in replica_sets:
        if entry["slots_free"] != entry["slots_total"]:
            yield f"{entry['id']} has {entry['slots_free']} of {entry['slots_total']} slots free"


def counters_agree(counted: Mapping[str, float], tasks: Iterable[TaskHistory]) -> Violations:
    """The metrics' counters say what the clients saw."""
    histories = list(tasks)
    seen = Counter(task.outcome for task in histories)
    refusals = sum(answer.status != 202 for task in histories for answer in task.answers)
    expected = {
        "admitted": sum(task.admitted for task in histories),
        "completed": seen["completed"],
        "canceled": seen["canceled"],
        "failed": seen["failed"],
        "rejected": refusals,
    }
    for name, value in expected.items():
        if counted[name] != value:
            yield f"the metrics count {counted[name]:g} {name}, the clients {value}"


def footprint_is_flat(before: Footprint, after: Footprint) -> Violations:
    """Memory and descriptors of the idle process do not grow with the work that is over."""
    grown = after.rss_bytes - before.rss_bytes
    if grown > RSS_GROWTH_BYTES:
        yield f"memory grew by {grown} bytes, more than {RSS_GROWTH_BYTES}"
    opened = after.descriptors - before.descriptors
    if opened > DESCRIPTOR_GROWTH:
        yield f"{opened} more descriptors are open, more than {DESCRIPTOR_GROWTH}"


def _faults_of(answer: Answer) -> Iterator[str]:
    try:
        envelope = answer.json()
    except json.JSONDecodeError:
        yield "the body is no JSON"
        return
    if not isinstance(envelope, dict) or not envelope.get("message"):
        yield "there is no envelope with a message"
        return
    code = envelope.get("code")
    if STATUS.get(str(code)) != answer.status and (code, answer.status) != ("INVALID_PARAMS", 404):
        yield f"code {code} does not belong to the status"
    if answer.status in BACKPRESSURE and "retry-after" not in answer.headers:
        yield "there is no Retry-After"
    if envelope.get("retriable") and not isinstance(envelope.get("retry_after_ms"), int):
        yield "it is retriable and says not when"


def _cut_back(task: TaskHistory) -> bool:
    """Whether its log may be shorter than what a reader got before the orchestrator was killed."""
    return task.outlived_a_crash and task.outcome != "completed"


def _ids(events: Iterable[Event]) -> list[int | None]:
    return [event.id for event in events]
