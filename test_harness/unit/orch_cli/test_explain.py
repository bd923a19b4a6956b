"""What `llama-orch explain` prints of what the service says."""

from __future__ import annotations

import json
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from harness_kit.scripted_server import Answer, ScriptedServer, json_answer
from orch_cli.main import app

TASK = "5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11"
PATH = f"/v1/tasks/{TASK}/explanation"
T0_MS = 1_800_000_000_000  # 2027-01-15 08:00:00 UTC
WAITING: dict[str, Any] = {
    "task_id": TASK,
    "tenant": "acme",
    "state": "waiting",
    "summary": "Waits in pool p behind 2 tasks; starts in about 3.4 s.",
    "priority": "batch",
    "pool_id": "p",
    "queue_position": 2,
    "predicted_start_ms": 3400,
    "slack_ms": -1200,
    "on_time_probability": 0.25,
    "share": {"observed": 0.24, "entitled": 0.25},
    "decisions": [
        {
            "at_ms": T0_MS,
            "decision": "refused",
            "reason": "rate-limit",
            "values": {"limit_rps": 0.5, "cause": "too many"},
        },
        {
            "at_ms": T0_MS + 2500,
            "decision": "admitted",
            "reason": "queued",
            "values": {"affinity": False, "queue_position": 3},
        },
    ],
}


def run(server: ScriptedServer, *arguments: str) -> Result:
    return CliRunner().invoke(app, ["explain", *arguments, "--url", server.url])


def answering(answer: Answer) -> ScriptedServer:
    return ScriptedServer(answer)


@pytest.mark.req("ORCH-3091", "OC-CLI-8001", partial="one command")
def test_a_sentence_then_how_it_stands_then_each_decision() -> None:
    with answering(json_answer(200, WAITING)) as server:
        result = run(server, TASK)

    assert result.exit_code == 0, result.output
    summary, _, *lines = result.stdout.splitlines()
    assert summary == WAITING["summary"]
    assert lines == [
        "WHAT\tVALUE",
        "state\twaiting",
        "tenant\tacme",
        "priority\tbatch",
        "pool\tp",
        "tasks before it\t2",
        "starts in about\t3.4 s",
        "slack\t1.2 s late",
        "on time\t25 %",
        "share it got\t24 %",
        "share it is promised\t25 %",
        "first decision\t2027-01-15 08:00:00.000+00:00",
        "",
        "AFTER\tDECISION\tREASON\tVALUES",
        '0 ms\trefused\trate-limit\tlimit_rps=0.5 cause="too many"',
        "2.5 s\tadmitted\tqueued\taffinity=no queue_position=3",
    ]


def test_what_is_not_known_has_no_line() -> None:
    bare = {"task_id": TASK, "state": "ended", "summary": "Over.", "decisions": []}
    with answering(json_answer(200, bare)) as server:
        result = run(server, TASK)

    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [
        *("Over.", "", "WHAT\tVALUE", "state\tended", ""),
        "AFTER\tDECISION\tREASON\tVALUES",
    ]


def test_json_is_what_the_service_said_and_the_tenant_is_asked_for() -> None:
    with answering(json_answer(200, WAITING)) as server:
        result = run(server, TASK, "--tenant", "acme", "--json")

    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == WAITING
    (request,) = server.requests
    assert (request.method, request.path) == ("GET", f"{PATH}?tenant=acme")


def test_without_a_tenant_nobody_is_named() -> None:
    with answering(json_answer(200, WAITING)) as server:
        run(server, TASK)

    assert [request.path for request in server.requests] == [PATH]


def test_an_unknown_task_is_a_refusal() -> None:
    unknown = json_answer(404, {"code": "INVALID_PARAMS", "message": "id: no such task"})
    with answering(unknown) as server:
        result = run(server, TASK)

    assert result.exit_code == 4
    assert "id: no such task" in result.stderr
    assert result.stdout == ""


def test_what_is_no_id_is_told_before_anybody_is_asked() -> None:
    with answering(json_answer(200, WAITING)) as server:
        result = run(server, "five")

    assert result.exit_code == 2
    assert "TASK_ID five: is not a UUID" in result.stderr
    assert server.requests == []


def test_control_characters_of_a_summary_do_not_reach_the_terminal() -> None:
    told = WAITING | {"summary": "Refused: \x1b[2Jgone"}
    with answering(json_answer(200, told)) as server:
        result = run(server, TASK)

    assert "\x1b" not in result.stdout
