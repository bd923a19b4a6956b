"""Refusals and absent services: what is said, the exit status, and what `--retry` repeats."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from typer.testing import Result

import orch_cli.submit
from harness_kit.scripted_cli import CAPABILITIES, PROMISE, TASK, run, service
from harness_kit.scripted_server import ScriptedServer, json_answer

FULL = {
    "code": "ADMISSION_REJECT",
    "message": "the queue of pool p is full",
    "pool_id": "p",
    "retriable": True,
    "retry_after_ms": 750,
    "policy_label": "reject",
}

Run = Callable[..., Result]


@pytest.mark.req("OC-CLI-8001")
@pytest.mark.req("ORCH-2006", partial="all but the command line's side")
@pytest.mark.parametrize(
    ("status", "envelope", "exit_code", "words"),
    [
        (
            429,
            FULL,
            3,
            ["queue of pool p is full", "policy reject", "try again in 750 ms", "--retry"],
        ),
        (400, {"code": "INVALID_PARAMS", "message": "ctx: too large"}, 4, ["ctx: too large"]),
        (401, {"code": "ADMISSION_REJECT", "message": "no key"}, 4, ["LLAMA_ORCH_API_KEY"]),
        (403, {"code": "ADMISSION_REJECT", "message": "no"}, 4, ["lacks the role"]),
        (429, {"code": "DEADLINE_UNMET", "message": "late"}, 4, ["--deadline-ms"]),
        (
            429,
            {"code": "ADMISSION_REJECT", "message": "spent", "policy_label": "budget"},
            4,
            ["another session"],
        ),
        (503, {"code": "POOL_UNREADY", "message": "loading", "retriable": True}, 3, ["try again"]),
        (503, {"code": "POOL_UNAVAILABLE", "message": "none"}, 4, ["capabilities"]),
        (501, {"code": "INTERNAL", "message": "later", "retriable": False}, 4, ["later"]),
    ],
)
def test_a_refusal_says_what_and_what_to_do_and_has_its_exit_status(
    status: int, envelope: dict[str, Any], exit_code: int, words: list[str]
) -> None:
    with service(submit=json_answer(status, envelope, X_Correlation_Id="c-9")) as server:
        result = run("submit", "x", "--url", server.url)

    assert result.exit_code == exit_code
    assert result.stdout == ""
    for word in [*words, envelope["code"], "c-9"]:
        assert word in result.stderr


@pytest.mark.req("OC-CLI-8002", partial="all but what is no stream")
def test_a_refusal_as_json_is_the_envelope_on_stderr() -> None:
    with service(submit=json_answer(429, FULL)) as server:
        result = run("submit", "x", "--json", "--url", server.url)

    error = json.loads(result.stderr)["error"]
    assert {name: error[name] for name in FULL} == FULL
    assert error["status"] == 429


@pytest.mark.req("ORCH-3025")
def test_retry_repeats_the_same_task_after_the_time_that_was_asked_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(orch_cli.submit.submit_with_retries, "__defaults__", (waits.append,))
    with service(json_answer(429, FULL), json_answer(429, FULL), PROMISE) as server:
        result = run("submit", "x", "--retry", "2", "--url", server.url)

    assert result.exit_code == 0, result.output
    assert waits == [0.75, 0.75]
    bodies = [request.body for request in server.requests if request.path == "/v1/tasks"]
    assert len(bodies) == 3
    assert len(set(bodies)) == 1


@pytest.mark.req("ORCH-3025")
def test_retry_does_not_repeat_what_cannot_succeed() -> None:
    with service(submit=json_answer(400, {"code": "INVALID_PARAMS", "message": "no"})) as server:
        result = run("submit", "x", "--retry", "5", "--url", server.url)

    assert result.exit_code == 4
    assert len([request for request in server.requests if request.path == "/v1/tasks"]) == 1


@pytest.mark.req("ORCH-3025")
def test_retry_waits_for_a_service_that_is_not_listening_yet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    monkeypatch.setattr(orch_cli.submit.submit_with_retries, "__defaults__", (waits.append,))
    url = f"http://127.0.0.1:{port}"

    result = run("submit", "x", "--retry", "5", "--url", url)

    assert result.exit_code == 5
    assert waits == [0.5, 1.0, 2.0, 2.0, 2.0]
    assert "not reachable; try 2 of 6 in 500 ms" in result.stderr


@pytest.mark.req("ORCH-3025")
def test_retry_asks_for_the_target_again_and_submits_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    waits: list[float] = []
    monkeypatch.setattr(orch_cli.submit.submit_with_retries, "__defaults__", (waits.append,))
    with ScriptedServer(lambda _request: [], CAPABILITIES, PROMISE) as server:
        result = run("submit", "x", "--task-id", TASK, "--retry", "1", "--url", server.url)

    assert (result.exit_code, result.stdout) == (0, f"{TASK}\n")
    assert waits == [0.5]
    assert [request.path for request in server.requests] == [
        "/v1/capabilities",
        "/v1/capabilities",
        "/v1/tasks",
    ]


def test_a_service_that_is_not_there_gives_exit_status_5() -> None:
    with ScriptedServer() as server:
        url = server.url

    result = run("capabilities", "--url", url)

    assert result.exit_code == 5
    assert "is the service running there?" in result.stderr


def test_text_of_a_service_cannot_drive_the_terminal() -> None:
    evil = {"code": "INVALID_PARAMS", "message": "\x1b[2J[bold]x[/bold]\u202e"}
    with service(submit=json_answer(400, evil)) as server:
        result = run("submit", "x", "--url", server.url, FORCE_COLOR="1")

    assert "\x1b[2J" not in result.stderr
    assert "\u202e" not in result.stderr
    assert "[bold]x[/bold]" in result.stderr
