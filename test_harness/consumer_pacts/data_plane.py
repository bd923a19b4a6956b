"""What a client of OrchQueue v1 relies on: tasks, their streams, sessions, and every refusal."""

from __future__ import annotations

from typing import Any

from pact import match

from consumer_pacts.interaction import (
    BACKPRESSURE,
    MILLISECONDS,
    WHOLE_SECONDS,
    Event,
    Exactly,
    Interaction,
    Stream,
    envelope,
    id_of,
)
from harness_kit.service_process import CONTROL_KEY, model_of

READY = "the pool open is ready"
ENGINE = "llamacpp"
COUNT = match.regex("0", regex=r"^\d+$")


def task(pool: str, task_id: str, **fields: Any) -> dict[str, Any]:
    """A completion of three tokens for the pool, in a session of its own."""
    return {
        "task_id": task_id,
        "session_id": id_of(f"session of {task_id}"),
        "workload": "completion",
        "model_ref": model_of(pool),
        "engine": ENGINE,
        "ctx": 512,
        "priority": "interactive",
        "max_tokens": 3,
        "deadline_ms": 60_000,
        "seed": 42,
        "determinism": "strict",
        "prompt": "Once upon a time",
    } | fields


def started() -> Event:
    return Event("started", 1, {"queue_position": 0, "predicted_start_ms": 0})


def tokens(count: int, first: int = 0) -> tuple[Event, ...]:
    words = (" the", " river", " was")
    return tuple(
        Event("token", i + 2, {"t": words[i], "i": Exactly(i)}) for i in range(first, count)
    )


def end(count: int, **more: Any) -> Event:
    return Event("end", count + 2, {"tokens_out": Exactly(count), "decode_ms": 12} | more)


def failed(code: str, pool: str, place: int = 2, **more: Any) -> Event:
    fields = {"code": Exactly(code), "message": "why", "engine": Exactly(ENGINE)}
    return Event("error", place, fields | {"pool_id": Exactly(pool)} | more)


def submits(
    receiving: str, given: str, status: int, body: dict[str, Any], answer: Any, **more: Any
) -> Interaction:
    return Interaction("submit_task", receiving, given, status, answer, body=body, **more)


def refused(pool: str, given: str, code: str, label: str | None, **task_fields: Any) -> Interaction:
    """A 429 that says when to come back, and the policy in full."""
    what = f"a task for the pool {pool}, {label or code}"
    policy = {"policy_label": label} if label else {}
    answer = envelope(code, "not now", retriable=True, engine=ENGINE, pool_id=pool, **policy)
    body = task(pool, id_of(what), **task_fields)
    return submits(what, given, 429, body, answer, headers=BACKPRESSURE, about=pool)


def streams(receiving: str, given: str, *events: Event, after: int | None = None) -> Interaction:
    return Interaction(
        "stream_task",
        receiving,
        given,
        200,
        Stream(events),
        path_id=id_of(receiving),
        last_event_id=after,
    )


PROMISE = {
    "queue_position": match.int(0),
    "predicted_start_ms": match.int(0),
    "backoff_ms": match.int(0),
}
PROMISED = {"X-Queue-Position": COUNT, "X-Queue-ETA-Ms": COUNT}
BUDGET = {"X-Budget-Tokens-Remaining": match.regex("3993", regex=r"^\d+$")}


def admitted(receiving: str, **fields: Any) -> Interaction:
    body = task("open", id_of(receiving), **fields)
    answer = {"task_id": body["task_id"]} | PROMISE
    return submits(receiving, READY, 202, body, answer, headers=PROMISED | BUDGET)


def _admissions() -> tuple[Interaction, ...]:
    chat = [{"role": "user", "content": "What is a scheduler?"}]
    repeated, other = "a task that it has already sent", "a task id that it has already used"
    return (
        admitted("a completion of a prompt"),
        admitted("a completion of a chat", prompt=None, messages=chat),
        admitted("an embedding", prompt=None, workload="embedding", inputs=["a", "b"]),
        submits(
            repeated,
            "the task was admitted",
            202,
            task("open", id_of(repeated)),
            {"task_id": id_of(repeated)} | PROMISE,
            about=id_of(repeated),
        ),
        submits(
            other,
            "the task was admitted",
            409,
            task("open", id_of(other), seed=7),
            envelope("INVALID_PARAMS", "task_id: already used with another body"),
            about=id_of(other),
        ),
    )


def _refusals() -> tuple[Interaction, ...]:
    unready, gone, nobody = "a task for a pool that loads", "a task for a lost pool", "no pool"
    late = {"Retry-After": WHOLE_SECONDS, "X-Backoff-Ms": MILLISECONDS}
    budget = envelope("ADMISSION_REJECT", "max_tokens: 40 tokens left", policy_label="budget")
    unwritten = "a task while nothing can be written"
    return (
        submits(
            "a completion without a prompt",
            READY,
            400,
            task("open", id_of("no prompt"), prompt=None),
            envelope("INVALID_PARAMS", "prompt: missing"),
        ),
        refused("full-reject", "the queue of the pool is full", "ADMISSION_REJECT", "reject"),
        refused(
            "full-drop-lru",
            "the queue of the pool is full of more urgent tasks",
            "QUEUE_FULL_DROP_LRU",
            "drop-lru",
            priority="batch",
        ),
        refused(
            "full-shed-low-priority",
            "the queue of the pool is full",
            "ADMISSION_REJECT",
            "shed-low-priority",
        ),
        refused("rate", "the caller has used up its rate", "ADMISSION_REJECT", "rate-limit"),
        refused("quota", "the caller has used up its rate", "ADMISSION_REJECT", "quota"),
        submits(
            "a task beyond its session's budget",
            READY,
            429,
            task("open", id_of("budget"), max_tokens=5000, ctx=8192),
            budget,
            headers=BACKPRESSURE,
        ),
        submits(
            "a task that cannot be done in time",
            "the speed of the pool measured is known",
            429,
            task("measured", id_of("no time"), ctx=4000, max_tokens=2000, deadline_ms=50),
            envelope("DEADLINE_UNMET", "too late", engine=ENGINE, pool_id="measured"),
            headers=BACKPRESSURE,
        ),
        submits(
            unready,
            "the engine of the pool loading has not loaded its model",
            503,
            task("loading", id_of(unready)),
            envelope("POOL_UNREADY", "it loads", retriable=True, engine=ENGINE, pool_id="loading"),
            headers=late,
        ),
        submits(
            gone,
            "the last engine of the pool lost is gone",
            503,
            task("lost", id_of(gone)),
            envelope(
                "POOL_UNAVAILABLE", "no engine", retriable=True, engine=ENGINE, pool_id="lost"
            ),
            headers=late,
        ),
        submits(
            "a task for a model that nobody serves",
            READY,
            503,
            task("of-nobody", id_of(nobody)),
            envelope("POOL_UNAVAILABLE", "no pool serves it", retriable=True, engine=ENGINE),
            headers=late,
        ),
        submits(
            unwritten,
            "the journal cannot be written",
            500,
            task("open", id_of(unwritten)),
            envelope("INTERNAL", "the journal cannot be written", retriable=True),
        ),
    )


def _streams() -> tuple[Interaction, ...]:
    live = Event("metrics", None, {"on_time_probability": 1.0, "queue_depth": 0, "tokens_out": 0})
    vectors = {"embeddings": [[1.0, 1.0], [1.0, 1.0]]}
    again: dict[str, Any] = {"retriable": Exactly(True)}
    return (
        streams(
            "a stream that is read while its task runs",
            "the task starts once its stream is read",
            started(),
            live,
            *tokens(3),
            end(3),
        ),
        streams("a stream that is read late", "the task has ended", started(), *tokens(3), end(3)),
        streams(
            "a stream from where the client left",
            "the task has ended",
            *tokens(3, first=1),
            end(3),
            after=2,
        ),
        streams(
            "the stream of an embedding",
            "the embedding has ended",
            started(),
            end(0, result=vectors),
        ),
        streams(
            "the stream of a canceled task",
            "the task was canceled while it waited",
            end(0, canceled=Exactly(True)),
        ),
        streams(
            "the stream of a dropped task",
            "the task was dropped for a newer one",
            failed(
                "QUEUE_FULL_DROP_LRU",
                "full-drop-lru",
                policy_label=Exactly("drop-lru"),
                **again,
            ),
        ),
        streams(
            "the stream of a task that waited too long",
            "the deadline of the task passed while it waited",
            failed("DEADLINE_UNMET", "full-reject", **again),
        ),
        streams(
            "the stream of a task whose engine stood still",
            "the engine of the task went silent after one token",
            started(),
            *tokens(1),
            failed("DECODE_TIMEOUT", "impatient", 3, **again),
        ),
        streams(
            "the stream of a task that lost its worker",
            "the worker of the task was lost after one token",
            started(),
            *tokens(1),
            failed("WORKER_RESET", "open", 3, **again),
        ),
    )


def _about_tasks() -> tuple[Interaction, ...]:
    waits, runs, over = "why a task waits", "the end of a task", "the end of a task that has ended"
    proof, not_yet = "what proves a stream", "what proves a stream too early"
    explained = {
        "task_id": id_of(waits),
        "state": "waiting",
        "summary": match.like("It waits for a slot of pool full-reject."),
        "queue_position": match.int(0),
        "decisions": match.each_like(
            {
                "at_ms": match.int(1),
                "decision": match.regex("admitted", regex=r"^[a-z]+$"),
                "reason": match.like("queued"),
                "values": match.like({}),
            }
        ),
    }
    report = {
        "task_id": id_of(proof),
        "key": match.like("blake2b:00"),
        "seed": 42,
        "engine_version": match.like("1"),
        "model_digest": match.like("unknown"),
        "sha256": match.regex("0" * 64, regex=r"^[0-9a-f]{64}$"),
        "tokens_out": 3,
        "request": match.like(task("open", id_of(proof))),
    }
    return (
        Interaction("cancel_task", runs, "the task runs", 204, path_id=id_of(runs)),
        Interaction("cancel_task", over, "the task has ended", 204, path_id=id_of(over)),
        Interaction(
            "explain_task",
            waits,
            "the task waits in the pool full-reject",
            200,
            explained,
            path_id=id_of(waits),
        ),
        Interaction(
            "explain_task",
            "an operator's question about a tenant's task",
            "the task has ended",
            200,
            {"task_id": id_of("operator"), "state": "ended", "summary": match.like("It ended.")}
            | {"decisions": explained["decisions"]},
            key=CONTROL_KEY,
            path_id=id_of("operator"),
            query={"tenant": "acme"},
        ),
        Interaction(
            "get_determinism", proof, "the task has ended", 200, report, path_id=id_of(proof)
        ),
        Interaction(
            "get_determinism",
            not_yet,
            "the task runs",
            409,
            envelope("INVALID_PARAMS", "the task has not ended"),
            path_id=id_of(not_yet),
        ),
    )


def _sessions() -> tuple[Interaction, ...]:
    shown, forgotten = "a session that exists", "the end of a session"
    session = {
        "ttl_ms_remaining": match.int(599_000),
        "turns": 1,
        "kv_bytes": match.int(0),
        "kv_warmth": match.bool(False),
        "tokens_budget_remaining": match.int(3993),
    }
    return (
        Interaction("get_session", shown, "the session exists", 200, session, path_id=id_of(shown)),
        Interaction(
            "delete_session", forgotten, "the session exists", 204, path_id=id_of(forgotten)
        ),
    )


DATA_PLANE = (*_admissions(), *_refusals(), *_streams(), *_about_tasks(), *_sessions())
