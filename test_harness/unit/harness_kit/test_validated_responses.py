"""The recording transport: a response that no contract allows fails the test that received it."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from harness_kit.scripted_server import ScriptedServer, event, stream_answer, token
from harness_kit.trees import write_tree
from harness_kit.validated_responses import ResponseLedger, shape
from orchqueue_v1.async_transport import AsyncTransport
from orchqueue_v1.transport import Endpoint, Request, SyncTransport

pytest_plugins = ["pytester"]
# The ledger of the outer run must not hear what these tests tell.
pytestmark = pytest.mark.unvalidated_responses("tells wrong responses on purpose")

TASK = "/v1/tasks/5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11"
PROMISE = {
    "task_id": "5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11",
    "queue_position": 0,
    "predicted_start_ms": 0,
    "backoff_ms": 0,
}
FULL = {"code": "ADMISSION_REJECT", "message": "full", "retriable": True, "retry_after_ms": 1}
HEAD = {"content-type": "application/json", "x-correlation-id": "c-1"}
BACKPRESSURE = HEAD | {"retry-after": "1", "x-backoff-ms": "1"}


def told(
    status: int, document: Any, method: str = "POST", path: str = "/v1/tasks", **headers: str
) -> list[str]:
    """What a fresh ledger objects to in one response."""
    ledger = ResponseLedger()
    fields = HEAD | {name.replace("_", "-"): value for name, value in headers.items()}
    ledger.hear(method, path, status, fields, json.dumps(document).encode())
    return ledger.taken_violations()


def without(document: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in document.items() if key != name}


def test_responses_of_the_contract_are_not_objected_to() -> None:
    assert told(202, PROMISE) == []
    assert told(429, FULL, retry_after="1", x_backoff_ms="1") == []
    assert told(405, {"code": "INVALID_PARAMS", "message": "m"}, "PATCH", allow="POST") == []
    assert told(200, {"live": True}, "GET", "/livez") == []


@pytest.mark.parametrize(
    ("violations", "operation", "rule"),
    [
        (told(202, without(PROMISE, "backoff_ms")), "submit_task", "'backoff_ms' is a required"),
        (told(202, PROMISE | {"eta_ms": 1}), "submit_task", "'eta_ms' was unexpected"),
        (told(202, PROMISE | {"queue_position": -1}), "submit_task", "['queue_position']"),
        (told(429, FULL), "submit_task (POST /v1/tasks) 429", "Retry-After"),
        (told(418, FULL), "submit_task (POST /v1/tasks) 418", "documents no such status"),
        (told(204, {}, "POST", f"{TASK}/cancel"), "cancel_task", "a body of 2 bytes"),
        (told(202, PROMISE, "PUT"), "submit_task (PUT", "knows no such method"),
        (told(404, FULL, "GET", "/v1/nowhere"), "GET /v1/nowhere 404", "in no contract"),
        (told(401, {"no": 1}, "GET", "/metrics"), "GET /metrics 401", "required"),
    ],
)
def test_a_violation_names_operation_status_place_and_rule(
    violations: list[str], operation: str, rule: str
) -> None:
    (said,) = violations

    assert operation in said
    assert rule in said


@pytest.mark.parametrize(
    ("name", "number", "data", "rule"),
    [
        ("token", 2, {"t": "a", "i": 0, "id": 1}, "'id' was unexpected"),
        ("token", 2, {"t": "", "i": 0}, "['t']"),
        ("metrics", 3, {"queue_depth": 0}, "have an id"),
        ("end", None, {"tokens_out": 0, "decode_ms": 0}, "have an id"),
        ("done", 3, {}, "names no such event"),
        ("error", 3, {"code": "BROKEN", "message": "m", "engine": "vllm"}, "'BROKEN'"),
    ],
)
def test_every_event_of_a_stream_is_judged(
    name: str, number: int | None, data: dict[str, Any], rule: str
) -> None:
    ledger = ResponseLedger()
    numbers = "" if number is None else f"id: {number}\n"
    body = f"event: {name}\n{numbers}data: {json.dumps(data)}\n\n".encode()

    ledger.hear_event(name, number, data)
    ledger.hear("GET", f"{TASK}/stream", 200, HEAD | {"content-type": "text/event-stream"}, body)

    violations = ledger.taken_violations()
    assert [rule in said for said in violations] == [True, True]
    assert ledger.judged == 2  # the head of the response, and the event once


def test_a_shape_is_judged_once_and_counted_always() -> None:
    ledger = ResponseLedger()
    for number in range(50):
        body = json.dumps(PROMISE | {"queue_position": number}).encode()
        ledger.hear("POST", "/v1/tasks", 202, HEAD, body)

    assert ledger.judged == 1
    assert ledger.summary()["operations"] == {"submit_task": {"202": 50}}
    assert ("submit_task", 202) not in ledger.never_received()
    assert ("submit_task", 429) in ledger.never_received()


def test_words_signs_and_kinds_of_numbers_make_a_shape_until_there_are_too_many(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("harness_kit.validated_responses.SHAPES_MAX", 20)
    base = shape({"a": "word", "b": 1}, words=True)
    ledger = ResponseLedger()
    for number in range(30):
        document = {"code": "INVALID_PARAMS", "message": f"k{'x' * number}", f"f{number}": 1}
        ledger.hear("POST", "/v1/tasks", 400, HEAD, json.dumps(document).encode())

    assert shape({"b": 2, "a": "word"}, words=True) == base
    assert shape({"a": "other", "b": 1}, words=True) != base
    assert shape({"a": "word", "b": -1}, words=True) != base
    assert shape({"a": "word", "b": 1.0}, words=True) != base
    assert shape({"a": "other", "b": -1}, words=False) == shape({"a": "word", "b": 1}, words=False)
    assert ledger.judged == 20


def test_the_test_that_received_it_fails_and_the_counts_are_reported(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    monkeypatch.setenv("LLORCH_REPORTS_DIR", str(tmp_path / "reports"))
    heard: list[ResponseLedger] = []  # by the inner run alone: a leak fails exempt tests too
    for module in ("response_tap", "validated_responses"):
        monkeypatch.setattr(f"harness_kit.{module}.listeners", heard)
    source = f"""
        import pytest
        from harness_kit.response_tap import tell

        def said(status):
            body = b'{{"code": "INVALID_PARAMS", "message": "no"}}'
            tell("POST", "/v1/tasks", status, {HEAD!r}, body)

        @pytest.fixture
        def broken():
            yield said(418)

        def test_good(): said(400)
        def test_bad(): said(418)
        def test_set_up(broken): pass
        def test_fails_anyway(): said(418); assert False
        @pytest.mark.unvalidated_responses("sends nonsense")
        def test_meant(): said(418)
        @pytest.mark.unvalidated_responses("sends nonsense")
        def test_leaks():
            sent = b"POST / HTTP/1.1\\r\\nX-API-Key: whoever-it-is\\r\\n\\r\\n"
            tell("POST", "/v1/tasks", 500, {{}}, b'{{"message": "whoever-it-is"}}', sent)
    """
    write_tree(pytester.path, {"pytest.ini": "[pytest]\n", "test_a.py": source})

    run = pytester.runpytest_inprocess("-p", "harness_kit.validated_responses")

    run.assert_outcomes(passed=2, failed=3, errors=1)
    run.stdout.fnmatch_lines(["*submit_task (POST /v1/tasks) 418: the contract documents no such*"])
    run.stdout.fnmatch_lines(["*against the contract: submit_task*"])
    run.stdout.fnmatch_lines(["*POST /v1/tasks 500 holds the secret whoe…"])
    report = json.loads((tmp_path / "reports/responses/validated.json").read_text())
    assert report["operations"] == {"submit_task": {"400": 1, "418": 3}}
    meant = ["test_a.py::test_leaks", "test_a.py::test_meant"]
    assert report["not_validated"] == dict.fromkeys(meant, "sends nonsense")
    table = (tmp_path / "reports/responses/never_received.md").read_text()
    assert "| submit_task | 429 |" in table
    assert "| submit_task | 400 |" not in table


def test_a_marker_without_a_reason_stops_the_run(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    source = "import pytest\n@pytest.mark.unvalidated_responses\ndef test_it(): pass\n"
    write_tree(pytester.path, {"pytest.ini": "[pytest]\n", "test_a.py": source})

    run = pytester.runpytest_inprocess("-p", "harness_kit.validated_responses")

    assert run.ret == pytest.ExitCode.USAGE_ERROR
    run.stderr.fnmatch_lines(["*test_a.py::test_it: unvalidated_responses takes a reason*"])


@pytest.mark.parametrize("live", [True, False])
def test_the_generated_clients_tell_of_live_services_only(
    monkeypatch: pytest.MonkeyPatch, live: bool
) -> None:
    ledger = ResponseLedger()
    monkeypatch.setattr("harness_kit.response_tap.listeners", [ledger])
    asked = Request("GET", f"{TASK}/stream")
    events = token(0, "a"), event("end", {"x": 1}, 3)

    async def read(endpoint: Endpoint) -> None:
        transport = AsyncTransport(endpoint, 5.0, None)
        async with transport.open_stream(asked, 5.0) as (_, chunks):
            assert b"".join([chunk async for chunk in chunks]) == b"".join(events)
        await transport.close()

    with ScriptedServer(*[stream_answer(*events, X_Correlation_Id="c")] * 2) as server:
        endpoint = Endpoint(server.url, "k")
        port = urlsplit(server.url).port
        monkeypatch.setattr("harness_kit.tapped_clients.live_ports", {port} if live else set())
        with SyncTransport(endpoint, 5.0, None).open_stream(asked, 5.0) as (_, chunks):
            assert b"".join(chunks) == b"".join(events)
        asyncio.run(read(endpoint))

    assert ledger.events == ({"token": 2, "end": 2} if live else {})
    assert len(ledger.taken_violations()) == (2 if live else 0)
    assert ledger.summary()["operations"] == ({"stream_task": {"200": 2}} if live else {})
