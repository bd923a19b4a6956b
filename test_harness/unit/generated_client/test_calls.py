"""The generated client's calls: what is sent, what comes back, and which error it is."""

from __future__ import annotations

import asyncio
import inspect
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import pytest
import yaml

from harness_kit.scripted_server import Received, ScriptedServer, empty_answer, json_answer
from orch_tools.codegen import collect
from orch_tools.codegen_client import PLANES, generate_clients, operations_of
from orchcontrol_v1.client import AsyncOrchControlClient, OrchControlClient
from orchqueue_v1.client import AsyncOrchQueueClient, OrchQueueClient
from orchqueue_v1.transport import OrchError, Response
from orchqueue_v1.types import TaskRequest

ROOT = Path(__file__).resolve().parents[3]
TASK = "5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11"
SESSION = "0b7e64a8-6a54-4d2a-9c62-3f1f7f6f2c10"

Call = Callable[..., Any]


def call_blocking(url: str, method: str, *arguments: Any, **keywords: Any) -> Any:
    kind = OrchQueueClient if hasattr(OrchQueueClient, method) else OrchControlClient
    with kind(url, "secret") as client:
        return getattr(client, method)(*arguments, **keywords)


def call_in_loop(url: str, method: str, *arguments: Any, **keywords: Any) -> Any:
    kind = AsyncOrchQueueClient if hasattr(OrchQueueClient, method) else AsyncOrchControlClient

    async def call() -> Any:
        async with kind(url, "secret") as client:
            return await getattr(client, method)(*arguments, **keywords)

    return asyncio.run(call())


@pytest.fixture(params=[call_blocking, call_in_loop], ids=["blocking", "asyncio"])
def call(request: pytest.FixtureRequest) -> Call:
    caller: Call = request.param
    return caller


def a_task() -> TaskRequest:
    return TaskRequest(
        task_id=TASK,
        session_id=SESSION,
        workload="completion",
        model_ref="builtin:smollm2",
        engine="llamacpp",
        ctx=2048,
        priority="interactive",
        max_tokens=8,
        deadline_ms=30000,
        seed=42,
        prompt="The capital of France is",
    )


@pytest.mark.req("ORCH-2001", partial="all but the client's side")
def test_a_task_is_sent_as_the_contract_says_and_its_promise_is_typed(call: Call) -> None:
    promise = {"task_id": TASK, "queue_position": 3, "predicted_start_ms": 420, "backoff_ms": 0}
    with ScriptedServer(json_answer(202, promise)) as server:
        answer = call(server.url, "submit_task", a_task(), correlation_id="order-4711")

    assert (answer.queue_position, answer.predicted_start_ms) == (3, 420)
    (request,) = server.requests
    assert (request.method, request.path) == ("POST", "/v1/tasks")
    assert request.headers["content-type"] == "application/json"
    assert request.headers["x-api-key"] == "secret"
    assert request.headers["x-correlation-id"] == "order-4711"
    assert request.json() == {
        "task_id": TASK,
        "session_id": SESSION,
        "workload": "completion",
        "model_ref": "builtin:smollm2",
        "engine": "llamacpp",
        "ctx": 2048,
        "priority": "interactive",
        "max_tokens": 8,
        "deadline_ms": 30000,
        "seed": 42,
        "determinism": "strict",
        "prompt": "The capital of France is",
    }


@pytest.mark.req("ORCH-2003", partial="all but the client's side")
def test_a_cancel_has_no_answer(call: Call) -> None:
    with ScriptedServer(empty_answer()) as server:
        assert call(server.url, "cancel_task", TASK) is None

    assert (server.requests[0].method, server.requests[0].path) == (
        "POST",
        f"/v1/tasks/{TASK}/cancel",
    )


@pytest.mark.req("ORCH-2004", "ORCH-2005", partial="all but the client's side")
def test_a_session_is_read_and_forgotten(call: Call) -> None:
    with ScriptedServer(json_answer(200, {"turns": 2}), empty_answer()) as server:
        session = call(server.url, "get_session", SESSION)
        call(server.url, "delete_session", SESSION)

    assert session.turns == 2
    assert [request.method for request in server.requests] == ["GET", "DELETE"]


@pytest.mark.req("ORCH-2104", partial="all but the client's side")
def test_replica_sets_come_as_a_typed_list(call: Call) -> None:
    with ScriptedServer(json_answer(200, [{"id": "a", "engine": "llamacpp"}])) as server:
        sets = call(server.url, "list_replicasets")

    assert [(item.id, item.engine) for item in sets] == [("a", "llamacpp")]


def test_an_id_cannot_leave_its_path_segment(call: Call) -> None:
    with ScriptedServer(json_answer(200, {})) as server:
        call(server.url, "pool_health", "../x?y#z %2F")

    assert server.requests[0].path == "/v1/pools/..%2Fx%3Fy%23z%20%252F/health"


def test_a_path_prefix_of_the_service_is_kept(call: Call) -> None:
    with ScriptedServer(json_answer(200, {})) as server:
        call(f"{server.url}/llm/", "pool_health", "p")

    assert server.requests[0].path == "/llm/v1/pools/p/health"


@pytest.mark.req("ORCH-3025")
@pytest.mark.req("ORCH-2006", "ORCH-2007", partial="all but the client's side")
def test_a_refusal_raises_all_that_the_envelope_says(call: Call) -> None:
    envelope = {
        "code": "ADMISSION_REJECT",
        "message": "pool p: queue is full",
        "engine": "llamacpp",
        "pool_id": "p",
        "retriable": True,
        "retry_after_ms": 750,
        "policy_label": "reject",
        "added_in_a_later_version": 1,
    }
    answer = json_answer(429, envelope, Retry_After="1", X_Correlation_Id="c-1")
    with ScriptedServer(answer) as server, pytest.raises(OrchError) as caught:
        call(server.url, "submit_task", a_task())

    error = caught.value
    assert (error.status, error.code, error.engine, error.pool_id) == (
        429,
        "ADMISSION_REJECT",
        "llamacpp",
        "p",
    )
    assert (error.retriable, error.retry_after_ms, error.policy_label) == (True, 750, "reject")
    assert error.correlation_id == "c-1"
    assert "queue is full" in str(error)


@pytest.mark.parametrize(
    ("headers", "expected_ms"),
    [
        ({"Retry_After": "2"}, 2000),
        ({"Retry_After": "2", "X_Backoff_Ms": "1100"}, 1100),
        ({}, None),
    ],
)
def test_the_finest_hint_of_the_headers_counts(
    call: Call, headers: dict[str, str], expected_ms: int | None
) -> None:
    body = {"code": "POOL_UNREADY", "message": "m", "retriable": True}
    with ScriptedServer(json_answer(503, body, **headers)) as server, pytest.raises(OrchError) as e:
        call(server.url, "get_session", SESSION)

    assert e.value.retry_after_ms == expected_ms


@pytest.mark.parametrize(("status", "retriable"), [(502, True), (503, True), (500, False)])
def test_a_page_of_a_proxy_is_still_a_typed_error(call: Call, status: int, retriable: bool) -> None:
    def page(_request: Received) -> list[bytes]:
        return [f"HTTP/1.1 {status} X\r\nConnection: close\r\n\r\n<html>".encode()]

    with ScriptedServer(page) as server, pytest.raises(OrchError) as caught:
        call(server.url, "get_session", SESSION)

    assert (caught.value.code, caught.value.status) == ("BAD_RESPONSE", status)
    assert caught.value.retriable is retriable


def test_an_answer_against_the_contract_is_a_typed_error(call: Call) -> None:
    with (
        ScriptedServer(json_answer(200, {"turns": "two"})) as server,
        pytest.raises(OrchError) as caught,
    ):
        call(server.url, "get_session", SESSION)

    assert (caught.value.code, caught.value.retriable) == ("BAD_RESPONSE", False)


def test_a_redirect_is_not_followed_so_that_the_key_stays_here(call: Call) -> None:
    def redirect(_request: Received) -> list[bytes]:
        return [b"HTTP/1.1 307 X\r\nLocation: /elsewhere\r\nContent-Length: 0\r\n\r\n"]

    with ScriptedServer(redirect) as server, pytest.raises(OrchError):
        call(server.url, "get_session", SESSION)

    assert len(server.requests) == 1


def test_nobody_there_is_unreachable_and_worth_another_try(call: Call) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

    with pytest.raises(OrchError) as caught:
        call(f"http://127.0.0.1:{port}", "get_session", SESSION)

    assert (caught.value.code, caught.value.status) == ("UNREACHABLE", 0)
    assert caught.value.retriable


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "ftp://x", "http://", "http://x:port"])
def test_a_url_that_is_none_is_refused_at_once(url: str) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - urllib's own words for a bad port
        OrchQueueClient(url)


def test_a_key_that_no_header_can_carry_is_refused_without_being_shown() -> None:
    with pytest.raises(ValueError, match="visible ASCII") as caught:
        OrchQueueClient("http://127.0.0.1:1", "se\ncret")

    assert "cret" not in str(caught.value)


@pytest.mark.req("ORCH-3099", partial="all but the client's side")
def test_an_observer_sees_the_budget_headers() -> None:
    seen: list[Response] = []
    promise = {"task_id": TASK, "queue_position": 0, "predicted_start_ms": 0, "backoff_ms": 0}
    with ScriptedServer(json_answer(202, promise, X_Budget_Tokens_Remaining="3800")) as server:
        OrchQueueClient(server.url, observe=seen.append).submit_task(a_task())

    assert [answer.headers["x-budget-tokens-remaining"] for answer in seen] == ["3800"]


@pytest.mark.req("OC-CONFIG-6010", partial="all but the client's side")
@pytest.mark.parametrize("plane", PLANES, ids=lambda plane: plane.package)
def test_every_operation_of_the_contract_has_a_method_in_both_flavours(plane: Any) -> None:
    document = yaml.safe_load((ROOT / plane.contract).read_text("utf-8"))
    wanted = {
        entry["operationId"]
        for item in document["paths"].values()
        for method, entry in item.items()
        if method in {"get", "post", "put", "delete"}
    }
    blocking = OrchQueueClient if plane.package == "orchqueue_v1" else OrchControlClient
    looped = AsyncOrchQueueClient if plane.package == "orchqueue_v1" else AsyncOrchControlClient

    for kind in (blocking, looped):
        methods = {name for name, _ in inspect.getmembers(kind, inspect.isfunction)}
        assert wanted <= methods
    assert {operation.name for operation in operations_of(document, plane.contract)} == wanted


@pytest.mark.req("OC-CONFIG-6010", partial="all but the client's side")
def test_generation_is_the_same_twice_and_equal_to_what_is_committed() -> None:
    files = collect(ROOT, [generate_clients])

    assert files == collect(ROOT, [generate_clients])
    for name, content in files.items():
        assert (ROOT / name).read_bytes() == content, name


def test_a_request_leaves_absent_options_out() -> None:
    sent = msgspec.json.decode(msgspec.json.encode(a_task()))

    assert "sampling" not in sent
    assert None not in sent.values()
