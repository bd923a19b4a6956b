"""Orders to pools from the command line: what is sent, what is shown while they go on, exits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import orch_cli.pool_orders
from harness_kit.scripted_server import Answer, ScriptedServer, json_answer
from orch_cli.main import app


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LLAMA_ORCH_URL", "LLAMA_ORCH_API_KEY", "LLAMA_ORCH_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setattr(orch_cli.pool_orders, "LOOK_S", 0.0)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(app, list(arguments))


def replicas(*states: str) -> dict[str, Any]:
    return {"replicas": [{"id": f"p-{n}", "state": state} for n, state in enumerate(states)]}


def reload(phase: str, message: str | None = None) -> Answer:
    said = {} if message is None else {"message": message}
    return json_answer(200, {"state": "Ready", "reload": {"phase": phase, **said}})


@pytest.mark.req("ORCH-2101", "ORCH-2102", "ORCH-3033", partial="the command line")
@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (["drain", "p", "--deadline-ms", "5"], "drain", {"deadline_ms": 5}),
        (
            ["drain", "p", "--replica", "p-1"],
            "drain",
            {"deadline_ms": 30_000, "replica_id": "p-1"},
        ),
        (["cordon", "p"], "cordon", {}),
        (["cordon", "p", "--replica", "p-1"], "cordon", {"replica_id": "p-1"}),
        (["resume", "p"], "resume", {}),
        (["reload", "p", "--model", "m2"], "reload", {"new_model_ref": "m2"}),
        (
            ["reload", "p", "--model", "m2", "--canary-percent", "5", "--deadline-ms", "9"],
            "reload",
            {"new_model_ref": "m2", "canary_percent": 5, "deadline_ms": 9},
        ),
        (
            ["reload", "p", "--model", "m2", "--canary-tenant", "a", "--canary-tenant", "b"],
            "reload",
            {"new_model_ref": "m2", "canary_tenants": ["a", "b"]},
        ),
    ],
)
def test_an_order_sends_what_the_contract_names(
    arguments: list[str], path: str, body: dict[str, Any]
) -> None:
    with ScriptedServer(json_answer(202, {"state": "Ready"})) as server:
        result = run(*arguments, "--url", server.url)

    (request,) = server.requests
    assert (request.path, request.json()) == (f"/v1/pools/p/{path}", body)
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1].startswith("p\tReady\t")


@pytest.mark.parametrize("name", ["promote", "rollback"])
def test_an_order_without_a_body_sends_none(name: str) -> None:
    with ScriptedServer(json_answer(202, {})) as server:
        run(name, "p", "--url", server.url)

    (request,) = server.requests
    assert (request.method, request.path) == ("POST", f"/v1/pools/p/{name}")
    assert request.body == b""


@pytest.mark.req("ORCH-2101", partial="the command line")
def test_wait_shows_every_step_of_a_drain_and_ends_when_all_have_stopped() -> None:
    steps = [replicas("Draining", "Draining"), replicas("Stopped", "Draining")]
    answers = [json_answer(202, steps[0]), json_answer(200, steps[1])]
    done = json_answer(200, replicas("Stopped", "Stopped"))
    with ScriptedServer(*answers, done) as server:
        result = run("drain", "p", "--wait", "--url", server.url)

    assert result.exit_code == 0
    assert result.stderr.splitlines() == [
        "p-0: Draining",
        "p-1: Draining",
        "p-0: Stopped",
        "p-1: Stopped",
    ]
    assert [request.path for request in server.requests[1:]] == ["/v1/pools/p/health"] * 2


def test_wait_for_one_replica_looks_at_no_other() -> None:
    with ScriptedServer(
        json_answer(202, replicas("Ready", "Draining")),
        json_answer(200, replicas("Ready", "Stopped")),
    ) as server:
        result = run("drain", "p", "--replica", "p-1", "--wait", "--url", server.url)

    assert (result.exit_code, len(server.requests)) == (0, 2)


@pytest.mark.req("ORCH-2102", partial="the command line")
@pytest.mark.parametrize(
    ("arguments", "phases", "exit_code"),
    [
        (["reload", "p", "--model", "m"], ["preloading", "switching", "done"], 0),
        (["reload", "p", "--model", "m"], ["preloading", "failed"], 1),
        (["reload", "p", "--model", "m"], ["preloading", "rolling_back", "rolled_back"], 1),
        (["reload", "p", "--model", "m", "--canary-percent", "5"], ["preloading", "canary"], 0),
        (["promote", "p"], ["switching", "done"], 0),
        (["rollback", "p"], ["rolling_back", "rolled_back"], 0),
        (["rollback", "p"], ["rolling_back", "failed"], 1),
        (["rollback", "p"], ["failed"], 0),
    ],
)
def test_wait_ends_with_the_outcome_of_a_reload(
    arguments: list[str], phases: list[str], exit_code: int
) -> None:
    with ScriptedServer(*map(reload, phases)) as server:
        result = run(*arguments, "--wait", "--url", server.url)

    assert result.exit_code == exit_code
    assert result.stderr.splitlines() == [f"reload: {phase}" for phase in phases]


def test_why_a_reload_failed_is_said_to_people_and_to_programs() -> None:
    answers = [reload("preloading"), reload("failed", "it does not fit")]
    with ScriptedServer(*answers) as server:
        shown = run("reload", "p", "--model", "m", "--wait", "--url", server.url)
    with ScriptedServer(*answers) as server:
        as_json = run("reload", "p", "--model", "m", "--wait", "--json", "--url", server.url)

    assert shown.stderr.splitlines()[-1] == "reload: failed (it does not fit)"
    assert json.loads(as_json.stdout)["health"]["reload"] == {
        "phase": "failed",
        "message": "it does not fit",
    }
    assert (shown.exit_code, as_json.exit_code, as_json.stderr) == (1, 1, "")


def test_a_refused_order_is_a_failure_of_its_own_kind() -> None:
    conflict = {"code": "INVALID_PARAMS", "message": "pool p has no canary", "retriable": False}
    with ScriptedServer(json_answer(409, conflict)) as server:
        result = run("promote", "p", "--url", server.url)

    assert result.exit_code == 4
    assert "pool p has no canary" in result.stderr
