"""`submit`: what it fills in, what it takes, and what it says to wrong usage."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness_kit.scripted_cli import SESSION, SUBMIT, TASK, run, service
from harness_kit.scripted_server import ScriptedServer
from orch_cli.main import app


def submitted(server: ScriptedServer) -> dict[str, Any]:
    bodies = [request.json() for request in server.requests if request.path == "/v1/tasks"]
    task: dict[str, Any] = bodies[0]
    return task


@pytest.mark.req("OC-CLI-8001")
def test_submit_fills_in_what_the_service_offers() -> None:
    with service() as server:
        result = run("submit", "Hello", "--task-id", TASK, "--url", server.url)

    assert result.exit_code == 0, result.output
    task = submitted(server)
    assert (task["engine"], task["model_ref"], task["ctx"]) == ("llamacpp", "builtin:smollm2", 2048)
    assert (task["task_id"], task["prompt"]) == (TASK, "Hello")
    assert len(task["session_id"]) == 36
    assert (task["priority"], task["max_tokens"], task["deadline_ms"]) == (
        "interactive",
        256,
        60000,
    )
    assert result.stdout == f"{TASK}\n"
    assert f"session {task['session_id']}" in result.stderr
    assert "queue position 3 · start predicted after 420 ms" in result.stderr


def test_submit_asks_nothing_of_the_service_when_all_is_given() -> None:
    with service() as server:
        run("submit", "x", "--engine", "vllm", "--model", "m", "--ctx", "99", "--url", server.url)

    assert [request.path for request in server.requests] == ["/v1/tasks"]
    assert submitted(server)["ctx"] == 99


def test_submit_asks_for_the_context_that_a_long_prompt_needs() -> None:
    with service() as server:
        run("submit", "-", "--max-tokens", "100", "--url", server.url, stdin="x" * 3000)

    assert submitted(server)["ctx"] == 3000 + 100 + 64


def test_submit_takes_every_option_of_the_contract() -> None:
    options = {
        "--session": SESSION,
        "--priority": "batch",
        "--deadline-ms": "5000",
        "--seed": "42",
        "--determinism": "best_effort",
        "--sampler-profile": "v2",
        "--expected-tokens": "9",
        "--kv-hint": "reuse",
        "--temperature": "0.5",
        "--top-p": "0.9",
        "--top-k": "40",
        "--min-p": "0.1",
        "--repeat-penalty": "1.1",
        "--stop": "END",
        "--system": "Be brief.",
    }
    words = [word for pair in options.items() for word in pair]
    with service() as server:
        result = run("submit", "Hi", *words, "--url", server.url)

    assert result.exit_code == 0, result.output
    task = submitted(server)
    assert task["messages"] == [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
    ]
    assert task["sampling"] == {
        "temperature": 0.5,
        "top_p": 0.9,
        "top_k": 40,
        "min_p": 0.1,
        "repeat_penalty": 1.1,
        "stop": ["END"],
    }
    assert (task["seed"], task["priority"], task["determinism"]) == (42, "batch", "best_effort")
    assert (task["sampler_profile_version"], task["kv_hint"]) == ("v2", "reuse")
    assert (task["expected_tokens"], task["session_id"]) == (9, SESSION)
    assert "prompt" not in task


def test_the_prompt_comes_from_a_file_or_stdin(tmp_path: Path) -> None:
    path = tmp_path / "prompt.txt"
    path.write_text("from a file\n", "utf-8")
    with service() as server:
        run("submit", "--file", str(path), "--url", server.url)
    with service() as other:
        run("submit", "-", "--url", other.url, stdin="from stdin")

    assert submitted(server)["prompt"] == "from a file\n"
    assert submitted(other)["prompt"] == "from stdin"


def test_the_seed_has_a_default_in_the_environment() -> None:
    with service() as server:
        run("submit", "x", "--url", server.url, ORCH_SEED_DEFAULT="17")

    assert submitted(server)["seed"] == 17


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["submit"], "a prompt is missing"),
        (["submit", "x", "--file", "y"], "exclude each other"),
        (["submit", "--file", "/nowhere/at/all"], "cannot be read"),
        (["submit", "x", "--workload", "embedding"], "needs at least one --input"),
        (["submit", "x", "--input", "y"], "belongs to --workload"),
        (["submit", "x", "--session", "no-uuid"], "--session no-uuid: is not a UUID"),
        (["submit", "x", "--task-id", TASK + "0"], f"--task-id {TASK}0: is not a UUID"),
        (["submit", "x", "--temperature", "9"], "--temperature 9.0: must be a number <= 2.0"),
        (["submit", "x", "--top-p", "nan"], "--top-p nan: must be a finite number"),
        (
            ["submit", "x", "--max-tokens", "2147483648"],
            "--max-tokens 2147483648: must be a whole number <= 2147483647",
        ),
        (["submit", "caf\udce9"], "error: the prompt is not UTF-8 text"),
        (["submit", "x", "--system", "caf\udce9"], "an argument is not UTF-8 text"),
        (["pools", "caf\udce9"], "an argument is not UTF-8 text"),
        (["stream", "foo"], "TASK_ID foo: is not a UUID"),
        (["stream", TASK + "\n"], "is not a UUID"),
        (["session", "show", "foo"], "SESSION_ID foo: is not a UUID"),
        (["session", "forget", "foo"], "SESSION_ID foo: is not a UUID"),
        (["submit", "x", "--engine", "ollama"], "engine"),
        (["submit", "x", "--model", "other"], "nothing here serves other"),
        (["stream", TASK, "--from", "-1"], "--from"),
        (["submit", "x", "--url", "localhost:1"], "must look like http"),
        (["submit", "x", "--profile", "none"], "no profile 'none'"),
        (["no-such-command"], "no-such-command"),
    ],
)
def test_wrong_usage_is_told_without_a_traceback(arguments: list[str], message: str) -> None:
    with service() as server:
        result = run(*arguments, LLAMA_ORCH_URL=server.url)

    assert message in result.stderr
    assert result.exit_code == (4 if "nothing here" in message else 2)
    assert "Traceback" not in result.output
    assert SUBMIT not in [(request.method, request.path) for request in server.requests]


@pytest.mark.parametrize("arguments", [["-"], ["--file", "FILE"]])
def test_a_prompt_that_is_not_utf8_is_told_alike_wherever_it_comes_from(
    arguments: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "prompt"
    path.write_bytes(b"caf\xe9")
    words = [str(path) if word == "FILE" else word for word in arguments]

    result = CliRunner().invoke(app, ["submit", *words], input=b"caf\xe9")

    assert result.exit_code == 2
    assert result.stderr == "error: the prompt is not UTF-8 text\n"


def test_wrong_options_are_told_without_asking_or_retrying() -> None:
    with service() as server:
        result = run("submit", "x", "--temperature", "9", "--retry", "9", "--url", server.url)

    assert result.exit_code == 2
    assert server.requests == []
