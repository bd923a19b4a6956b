"""`llama-orch` in this process, against a service that is written down in the test.

Off every request's path: the unit tests of the command line type commands with `run` and say with
`service` what they are answered. Invariant: nothing of a command goes to another process, and
nothing of the user's own settings comes in (the folder's `own_environment`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from typer.main import get_command
from typer.testing import CliRunner, Result

from harness_kit.scripted_server import Answer, ScriptedServer, json_answer
from orch_cli.main import app

TASK = "5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11"
SESSION = "0b7e64a8-6a54-4d2a-9c62-3f1f7f6f2c10"
STREAM = ("GET", f"/v1/tasks/{TASK}/stream")
SUBMIT = ("POST", "/v1/tasks")
CAPABILITIES = json_answer(
    200,
    {
        "api_version": "1.0.0",
        "cpu_carve_out": True,
        "engines": [
            {
                "engine": "llamacpp",
                "ctx_max": 4096,
                "supported_workloads": ["completion"],
                "model_refs": ["builtin:smollm2"],
                "rate_limits": {"interactive_rps": 20},
                "features": ["chat_template"],
            }
        ],
    },
)
PROMISE = json_answer(
    202, {"task_id": TASK, "queue_position": 3, "predicted_start_ms": 420, "backoff_ms": 0}
)


def run(*arguments: str, stdin: str | None = None, **environment: str) -> Result:
    """Type one command; `environment` is added to the environment."""
    return CliRunner().invoke(app, list(arguments), input=stdin, env=environment)


def service(*answers: Answer, **routes: Answer) -> ScriptedServer:
    """A service with capabilities, which admits every task; `stream=` and `submit=` replace."""
    table = {("GET", "/v1/capabilities"): CAPABILITIES, SUBMIT: routes.get("submit", PROMISE)}
    if "stream" in routes:
        table[STREAM] = routes["stream"]
    if answers:
        del table[SUBMIT]
    return ScriptedServer(*answers, routes=table)


def every_command() -> Iterator[tuple[str, ...]]:
    """The words of each command and group, the root's first."""
    return _below(get_command(app), ())


def _below(command: Any, words: tuple[str, ...]) -> Iterator[tuple[str, ...]]:
    yield words
    for name, below in getattr(command, "commands", {}).items():
        yield from _below(below, (*words, name))
