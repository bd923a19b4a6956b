"""Commands of one call, or of one for each id: cancel, session, pools, the fleet."""

from __future__ import annotations

import json

import pytest

from harness_kit.scripted_cli import CAPABILITIES, SESSION, TASK, run
from harness_kit.scripted_server import ScriptedServer, empty_answer, json_answer


@pytest.mark.req("OC-CLI-8001")
def test_cancel_session_and_forget_call_what_they_say() -> None:
    with ScriptedServer(
        empty_answer(), json_answer(200, {"turns": 2, "kv_warmth": True}), empty_answer()
    ) as server:
        canceled = run("cancel", TASK, "--url", server.url)
        shown = run("session", "show", SESSION, "--url", server.url)
        forgotten = run("session", "forget", SESSION, "--url", server.url)

    assert [(request.method, request.path) for request in server.requests] == [
        ("POST", f"/v1/tasks/{TASK}/cancel"),
        ("GET", f"/v1/sessions/{SESSION}"),
        ("DELETE", f"/v1/sessions/{SESSION}"),
    ]
    assert canceled.stdout == f"canceled {TASK}\n"
    assert "turns\t2\n" in shown.stdout
    assert "kv warm\tyes\n" in shown.stdout
    assert "tokens left\tunlimited\n" in shown.stdout
    assert forgotten.stdout == f"forgot {SESSION}\n"


OTHER = "6a0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11"

UNKNOWN = json_answer(404, {"code": "INVALID_PARAMS", "message": "no such id"})

NOT_NOW = json_answer(503, {"code": "INTERNAL", "message": "not now", "retriable": True})


@pytest.mark.req("OC-CLI-8001")
def test_cancel_goes_on_after_an_id_that_fails_and_names_it() -> None:
    with ScriptedServer(UNKNOWN, empty_answer()) as server:
        result = run("cancel", OTHER, "no-uuid", TASK, "--url", server.url)

    assert result.exit_code == 4
    assert result.stdout == f"canceled {TASK}\n"
    assert f"error: {OTHER}: INVALID_PARAMS: no such id" in result.stderr
    assert "error: TASK_ID no-uuid: is not a UUID" in result.stderr


def test_a_failing_id_among_several_is_named_in_json_too() -> None:
    with ScriptedServer(UNKNOWN, NOT_NOW) as server:
        result = run("cancel", OTHER, TASK, "--json", "--url", server.url)

    errors = [json.loads(line)["error"] for line in result.stderr.splitlines()]
    assert [error["task_id"] for error in errors] == [OTHER, TASK]
    assert result.exit_code == 4


def test_pools_goes_on_after_a_pool_that_fails_and_names_it() -> None:
    health = json_answer(200, {"live": True, "draining": False, "state": "Ready"})
    with ScriptedServer(NOT_NOW, health) as server:
        result = run("pools", "a", "b", "--url", server.url)

    assert result.exit_code == 3
    assert result.stdout.splitlines()[1].startswith("b\tReady\t")
    assert "error: a: INTERNAL: not now" in result.stderr


SETS = [
    {
        "id": "s",
        "engine": "llamacpp",
        "replicas": [
            {"id": "r0", "pool_id": "p", "state": "Ready", "slots_total": 4, "slots_free": 3}
        ],
    }
]


@pytest.mark.req("OC-CLI-8001", partial="the tasks, which are tested beside it")
def test_the_fleet_is_shown_as_tables_of_tabs_in_a_pipe() -> None:
    health = {"live": True, "ready": True, "draining": False, "state": "Ready", "metrics": {"q": 1}}
    with ScriptedServer(
        json_answer(200, SETS), json_answer(200, SETS), json_answer(200, health), CAPABILITIES
    ) as server:
        sets = run("replicasets", "--url", server.url)
        pools = run("pools", "--url", server.url)
        offer = run("capabilities", "--url", server.url)

    assert sets.stdout == (
        "SET\tENGINE\tPOOL\tREPLICA\tSTATE\tSLOTS FREE\ns\tllamacpp\tp\tr0\tReady\t3/4\n"
    )
    assert pools.stdout.splitlines()[1] == "p\tReady\tyes\tno\tq=1\t"
    assert offer.stdout.splitlines()[1] == (
        "llamacpp\tbuiltin:smollm2\t4096\tcompletion\tinteractive_rps=20\tchat_template"
    )
    assert "CPU carve-out" in offer.stderr


@pytest.mark.req("OC-CLI-8002", partial="all but what is no stream")
def test_on_a_terminal_the_fleet_is_a_drawn_table() -> None:
    with ScriptedServer(json_answer(200, SETS)) as server:
        result = run("replicasets", "--url", server.url, FORCE_COLOR="1")

    assert "┃" in result.stdout
    assert "Ready" in result.stdout
