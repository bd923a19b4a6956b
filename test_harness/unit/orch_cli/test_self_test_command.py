"""`self-test` against services that work and that do not."""

from __future__ import annotations

import json

from harness_kit.scripted_cli import CAPABILITIES, run
from harness_kit.scripted_server import (
    Received,
    ScriptedServer,
    empty_answer,
    end,
    json_answer,
    started,
    stream_answer,
    token,
)


def healthy(request: Received) -> list[bytes]:
    """A whole service for the self-test: each task is decoded, or cancelled when it is long."""
    parts = request.path.split("/")
    if parts[-1] == "metrics":
        return list(json_answer(200, "tasks_started_total 1")(request))
    if parts[-1] == "tasks":
        task = request.json()
        LONG[task["task_id"]] = task["max_tokens"] > 100
        promise = {"task_id": task["task_id"], "queue_position": 0}
        return list(json_answer(202, promise | {"predicted_start_ms": 0, "backoff_ms": 0})(request))
    if parts[-1] == "cancel":
        return list(empty_answer()(request))
    if parts[-1] == "capabilities":
        return list(CAPABILITIES(request))
    canceled = True if LONG[parts[-2]] else None
    return list(stream_answer(started(), token(0, "four"), end(1, canceled=canceled))(request))


LONG: dict[str, bool] = {}


def test_the_self_test_passes_against_a_service_that_works() -> None:
    with ScriptedServer(*[healthy] * 12) as server:
        result = run("self-test", "--json", "--url", server.url)

    findings = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(f["check"], f["passed"]) for f in findings] == [
        ("capabilities", True),
        ("decode", True),
        ("determinism", True),
        ("cancel", True),
        ("metrics", True),
    ]
    assert result.exit_code == 0


def test_the_self_test_fails_where_the_same_seed_gives_other_bytes() -> None:
    seen: list[str] = []

    def fickle(request: Received) -> list[bytes]:
        if request.path.endswith("/stream"):
            seen.append(request.path)
            return list(stream_answer(started(), token(0, f"{len(seen)}"), end(1))(request))
        return healthy(request)

    with ScriptedServer(*[fickle] * 12) as server:
        result = run("self-test", "--url", server.url)

    assert result.exit_code == 1
    rows = dict(line.split("\t")[:2] for line in result.stdout.splitlines())
    assert (rows["decode"], rows["determinism"], rows["cancel"]) == ("ok", "FAILED", "FAILED")
