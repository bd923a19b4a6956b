from __future__ import annotations

import errno
import io
import json
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.main import get_command
from typer.testing import CliRunner, Result

import orch_cli.submit
from harness_kit.scripted_server import (
    Answer,
    Received,
    ScriptedServer,
    empty_answer,
    end,
    event,
    json_answer,
    started,
    stream_answer,
    token,
)
from orch_cli.main import app, main

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
FULL = {
    "code": "ADMISSION_REJECT",
    "message": "the queue of pool p is full",
    "pool_id": "p",
    "retriable": True,
    "retry_after_ms": 750,
    "policy_label": "reject",
}

Run = Callable[..., Result]


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("LLAMA_ORCH_URL", "LLAMA_ORCH_API_KEY", "LLAMA_ORCH_CONFIG", "ORCH_SEED_DEFAULT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    monkeypatch.setenv("COLUMNS", "100")


def run(*arguments: str, stdin: str | None = None, **environment: str) -> Result:
    return CliRunner().invoke(app, list(arguments), input=stdin, env=environment)


def service(*answers: Answer, **routes: Answer) -> ScriptedServer:
    """A service with capabilities, which admits every task; `stream=` and `submit=` replace."""
    table = {("GET", "/v1/capabilities"): CAPABILITIES, SUBMIT: routes.get("submit", PROMISE)}
    if "stream" in routes:
        table[STREAM] = routes["stream"]
    if answers:
        del table[SUBMIT]
    return ScriptedServer(*answers, routes=table)


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


WHOLE = stream_answer(started(), token(0, "Hé"), token(1, "llo\x1b[31m"), end(2))


@pytest.mark.req("OC-CLI-8002")
def test_a_stream_in_a_pipe_is_the_bare_text() -> None:
    with service(stream=WHOLE) as server:
        result = run("submit", "x", "--task-id", TASK, "--stream", "--url", server.url)

    assert result.exit_code == 0
    assert result.stdout == "Héllo\x1b[31m"
    assert "\n2 tokens" in result.stderr


def test_a_text_that_ends_its_line_gets_no_empty_line_after_it() -> None:
    with service(stream=stream_answer(started(), token(0, "a\n"), end(1))) as server:
        result = run("stream", TASK, "--url", server.url)

    assert result.stderr == "1 token\n"


def test_a_broken_stream_is_told_on_a_line_of_its_own() -> None:
    failed = event("error", {"code": "DECODE_TIMEOUT", "message": "stuck", "engine": "vllm"}, 3)
    with service(stream=stream_answer(started(), token(0, "a"), failed)) as server:
        result = run("stream", TASK, "--url", server.url)

    assert result.stderr.startswith("\nerror: DECODE_TIMEOUT")


class FullDisk(io.TextIOWrapper):
    """Stdout that takes `room` writes and then no more, as /dev/full does at once."""

    def __init__(self, room: int) -> None:
        super().__init__(io.BytesIO(), "utf-8")
        self.room = room
        self.taken = ""

    def write(self, text: str) -> int:
        if self.room == 0:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.room -= 1
        self.taken += text
        return len(text)


@pytest.mark.parametrize(
    ("room", "place"), [(0, ""), (1, " --from 2"), (2, " --from 3")], ids=["none", "one", "two"]
)
def test_a_full_disk_in_a_stream_is_told_with_the_way_back(
    room: int, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = stream_answer(started(), token(0, "a"), token(1, "b"), token(2, "c"), end(3))
    if room == 0:
        place = " --from 1"  # `started` writes nothing
    errors = io.StringIO()
    monkeypatch.setattr("sys.stdout", FullDisk(room))
    monkeypatch.setattr("sys.stderr", errors)
    with service(stream=whole) as server:
        command = ["submit", "x", "--task-id", TASK, "--stream", "--url", server.url]
        status = get_command(app).main(command, standalone_mode=False)

    assert status == 1
    assert "error: stdout cannot be written: No space left on device" in errors.getvalue()
    assert f"Come back: llama-orch stream {TASK}{place}\n" in errors.getvalue()


def test_a_full_disk_after_admission_tells_the_task_also_as_json(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    errors = io.StringIO()
    monkeypatch.setattr("sys.stdout", FullDisk(0))
    monkeypatch.setattr("sys.stderr", errors)
    with service() as server:
        command = ["submit", "x", "--task-id", TASK, "--json", "--url", server.url]
        status = get_command(app).main(command, standalone_mode=False)

    error = json.loads(errors.getvalue())["error"]
    assert status == 1
    assert f"llama-orch stream {TASK}" in error["hint"]


@pytest.mark.parametrize("arguments", [["--help"], ["config", "schema"], ["profiles"]])
def test_a_full_disk_gives_a_message_and_no_traceback_from_any_command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    errors = io.StringIO()
    with Path("/dev/full").open("w") as full:
        monkeypatch.setattr("sys.stdout", full)
        monkeypatch.setattr("sys.stderr", errors)
        monkeypatch.setattr("sys.argv", ["llama-orch", *arguments])

        with pytest.raises(SystemExit) as caught:
            main()

    assert caught.value.code == 1
    assert "No space left on device\n" in errors.getvalue()
    assert "Traceback" not in errors.getvalue()


def test_a_stderr_that_takes_nothing_does_not_cost_the_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken = FullDisk(9)
    monkeypatch.setattr("sys.stdout", taken)
    monkeypatch.setattr("sys.stderr", FullDisk(0))
    with service() as server:
        command = ["submit", "x", "--task-id", TASK, "--url", server.url]
        status = get_command(app).main(command, standalone_mode=False)

    assert status in {None, 0}
    assert taken.taken == f"{TASK}\n"


@pytest.mark.req("OC-CLI-8002")
def test_a_stream_as_json_is_one_event_a_line_and_nothing_else() -> None:
    with service(
        stream=stream_answer(started(), token(0, "a"), event("metrics", {"queue_depth": 1}), end(1))
    ) as server:
        result = run("submit", "x", "--task-id", TASK, "-s", "--json", "--url", server.url)

    admitted, *events = [json.loads(line) for line in result.stdout.splitlines()]
    assert admitted["event"] == "admitted"
    assert admitted["data"]["queue_position"] == 3
    assert events == [
        {"event": "started", "id": 1, "data": {"queue_position": 0, "predicted_start_ms": 5}},
        {"event": "token", "id": 2, "data": {"t": "a", "i": 0}},
        {"event": "metrics", "data": {"queue_depth": 1}},
        {"event": "end", "id": 3, "data": {"tokens_out": 1, "decode_ms": 60000}},
    ]
    assert result.stderr == ""


@pytest.mark.req("OC-CLI-8001")
@pytest.mark.req("ORCH-3202", partial="all but the command line's side")
def test_stream_goes_on_after_the_event_it_is_told() -> None:
    with service(stream=stream_answer(token(5, "rest"), end(6))) as server:
        result = run("stream", TASK, "--from", "6", "--url", server.url)

    assert (result.exit_code, result.stdout) == (0, "rest")
    assert server.requests[0].headers["last-event-id"] == "6"


def test_a_task_that_fails_or_was_canceled_gives_exit_status_1() -> None:
    failed = event("error", {"code": "DECODE_TIMEOUT", "message": "stuck", "engine": "vllm"}, 2)
    with service(stream=stream_answer(started(), failed)) as server:
        result = run("stream", TASK, "--url", server.url)
    with service(stream=stream_answer(end(0, canceled=True))) as other:
        canceled = run("stream", TASK, "--url", other.url)

    assert result.exit_code == canceled.exit_code == 1
    assert "DECODE_TIMEOUT: stuck" in result.stderr
    assert "the task was canceled" in canceled.stderr


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


@pytest.mark.req("OC-CLI-8001", partial="all but what Ctrl-C does")
def test_ctrl_c_leaves_the_task_running_and_says_how_to_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("orch_cli.stream_view.PlainView.show", _interrupt_at_token)
    with service(stream=stream_answer(started(), token(0, "a"), end(1))) as server:
        result = run("submit", "x", "--task-id", TASK, "--stream", "--url", server.url)

    assert result.exit_code == 130
    assert f"llama-orch stream {TASK} --from 2" in result.stderr
    assert not any(request.path.endswith("/cancel") for request in server.requests)


@pytest.mark.req("OC-CLI-8001", partial="all but what Ctrl-C does")
def test_ctrl_c_cancels_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("orch_cli.stream_view.PlainView.show", _interrupt_at_token)
    with ScriptedServer(
        routes={
            ("GET", "/v1/capabilities"): CAPABILITIES,
            SUBMIT: PROMISE,
            STREAM: stream_answer(started(), token(0, "a"), end(1)),
            ("POST", f"/v1/tasks/{TASK}/cancel"): empty_answer(),
        }
    ) as server:
        words = ["submit", "x", "--task-id", TASK, "--stream", "--cancel-on-interrupt"]
        result = run(*words, "--url", server.url)

    assert result.exit_code == 130
    assert server.requests[-1].path == f"/v1/tasks/{TASK}/cancel"


def _interrupt_at_token(view: Any, item: Any) -> None:
    view.progress.take(item)
    if view.progress.tokens:
        raise KeyboardInterrupt


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


def test_text_of_a_service_cannot_drive_the_terminal() -> None:
    evil = {"code": "INVALID_PARAMS", "message": "\x1b[2J[bold]x[/bold]\u202e"}
    with service(submit=json_answer(400, evil)) as server:
        result = run("submit", "x", "--url", server.url, FORCE_COLOR="1")

    assert "\x1b[2J" not in result.stderr
    assert "\u202e" not in result.stderr
    assert "[bold]x[/bold]" in result.stderr


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


@pytest.mark.parametrize(
    "command",
    [
        [],
        *[[c.name] for c in app.registered_commands if c.name],
        ["config", "validate"],
        ["keys", "hash"],
        ["pools"],
        ["pools", "show"],
        ["pools", "plan"],
    ],
    ids=lambda words: " ".join(words) or "root",
)
def test_every_help_has_an_example_and_the_exit_statuses(command: list[str]) -> None:
    result = run(*command, "--help")

    assert result.exit_code == 0
    assert "llama-orch " in result.stdout
    assert "Exit status: 0 done" in result.stdout


@pytest.mark.parametrize(
    ("command", "lines"),
    [
        (
            ["submit"],
            [
                'git diff | llama-orch submit - --system "Summarise this change." --stream '
                "--retry 5",
            ],
        ),
        (
            ["profiles"],
            [
                "default: dev",
                "profiles:",
                '  dev:  { url: "http://127.0.0.1:8080", api_key_env: ACME_KEY }',
                '  prod: { url: "https://llm.example.com", api_key_file: ~/.keys/llm }',
            ],
        ),
        ([], ['llama-orch submit "The capital of France is" --stream']),
        (["keys", "hash"], ["pass show llm/acme | llama-orch keys hash"]),
    ],
)
def test_examples_in_help_can_be_pasted_whatever_the_width(
    command: list[str], lines: list[str]
) -> None:
    shown = run(*command, "--help", COLUMNS="50").stdout.splitlines()

    first = next(number for number, line in enumerate(shown) if line.strip() == lines[0])
    indent = shown[first].index(lines[0][0])
    assert [line[indent:] for line in shown[first : first + len(lines)]] == lines
