"""What a stream shows in a pipe and as JSON, and how Ctrl-C leaves it."""

from __future__ import annotations

import json
from typing import Any

import pytest

from harness_kit.scripted_cli import CAPABILITIES, PROMISE, STREAM, SUBMIT, TASK, run, service
from harness_kit.scripted_server import (
    ScriptedServer,
    empty_answer,
    end,
    event,
    started,
    stream_answer,
    token,
)

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
