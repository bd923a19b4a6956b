"""Who may do what over HTTP: keys, roles, tenants, methods, correlation ids, per operation."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator

import pytest

from harness_kit.contract_files import Operation, operations
from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import Answer, HttpProbe, task
from harness_kit.service_process import (
    ALL_KEY,
    CONTROL_KEY,
    DATA_KEY,
    METRICS_KEY,
    MODEL,
    OTHER_TENANT_KEY,
    ServiceProcess,
    external_pool,
)

OPERATIONS = tuple(operations())
KEYS = {"data": DATA_KEY, "control": CONTROL_KEY, "metrics": METRICS_KEY}
LATER = (
    "register_model",
    "get_model",
    "verify_model",
    "set_model_state",
    "create_artifact",
    "get_artifact",
)
BY_ID = pytest.mark.parametrize("operation", OPERATIONS, ids=lambda operation: operation.id)


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("access")
    with GatedEngine() as engine, ServiceProcess(directory, external_pool(engine.url)) as running:
        yield running


@pytest.fixture
def probe(service: ServiceProcess) -> Iterator[HttpProbe]:
    with service.probe() as client:
        yield client


def call(probe: HttpProbe, operation: Operation, **headers: str) -> Answer:
    if not operation.has_body:
        return probe.request(operation.method, operation.unknown_path, headers=headers)
    fields = {"Content-Type": "application/json"} | headers
    return probe.request(operation.method, operation.unknown_path, b"{}", fields)


def assert_envelope(answer: Answer, status: int, code: str, *, retriable: bool = False) -> str:
    """Checks an error's whole form; returns its message."""
    assert answer.status == status
    assert answer.headers["content-type"] == "application/json"
    envelope = answer.json()
    assert envelope["code"] == code
    assert envelope["retriable"] is retriable
    assert 1 <= len(answer.headers["x-correlation-id"]) <= 128
    message = envelope["message"]
    assert isinstance(message, str)
    return message


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040")
@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@BY_ID
def test_an_operation_without_a_key_is_401(service: ServiceProcess, operation: Operation) -> None:
    with service.probe(None) as anonymous:
        answer = call(anonymous, operation)

    message = assert_envelope(answer, 401, "ADMISSION_REJECT")
    assert "X-API-Key" in message
    assert answer.headers["www-authenticate"] == "Bearer"


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040")
@BY_ID
def test_an_unknown_key_is_403_and_not_repeated(
    service: ServiceProcess, operation: Operation
) -> None:
    with service.probe("not-a-key-of-anyone") as stranger:
        answer = call(stranger, operation)

    message = assert_envelope(answer, 403, "ADMISSION_REJECT")
    assert "not-a-key-of-anyone" not in message


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040")
@BY_ID
def test_each_role_opens_exactly_the_operations_of_its_contract(
    service: ServiceProcess, operation: Operation
) -> None:
    outcome = {}
    for role, key in KEYS.items():
        with service.probe(key) as client:
            outcome[role] = call(client, operation).status != 403

    assert outcome == {role: role in operation.roles for role in KEYS}


@pytest.mark.req("ORCH-3035")
@pytest.mark.parametrize(
    "headers",
    [
        {"X_API_Key": DATA_KEY},
        {"Authorization": f"Bearer {DATA_KEY}"},
        {"Authorization": f"bearer {DATA_KEY}"},
        {"x_api_key": ALL_KEY},
    ],
    ids=["x-api-key", "bearer", "lower-case scheme", "lower-case name"],
)
def test_a_key_is_taken_from_either_header(
    service: ServiceProcess, headers: dict[str, str]
) -> None:
    with service.probe(None) as client:
        answer = client.get("/v1/capabilities", **headers)

    assert answer.status == 200


@pytest.mark.req("ORCH-3035")
@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Authorization": "Bearer"}, 401),
        ({"Authorization": f"Basic {DATA_KEY}"}, 401),
        ({"Authorization": DATA_KEY}, 401),
        ({"X_API_Key": DATA_KEY.upper()}, 403),
        ({"X_API_Key": DATA_KEY + "x"}, 403),
        ({"X_API_Key": f"{DATA_KEY},{ALL_KEY}"}, 403),
    ],
    ids=["bearer alone", "basic", "no scheme", "other case", "longer", "two"],
)
def test_what_is_not_quite_a_key_opens_nothing(
    service: ServiceProcess, headers: dict[str, str], status: int
) -> None:
    with service.probe(None) as client:
        answer = client.get("/v1/capabilities", **headers)

    assert answer.status == status


@pytest.mark.req("ORCH-3035")
def test_metrics_need_the_role_metrics_and_probes_need_no_key(service: ServiceProcess) -> None:
    with service.probe(None) as anonymous, service.probe(DATA_KEY) as client:
        statuses = {
            path: anonymous.get(path).status for path in ("/livez", "/readyz", "/metrics", "/docs")
        }
        with_data_role = client.get("/metrics").status

    assert statuses == {"/livez": 200, "/readyz": 200, "/metrics": 401, "/docs": 200}
    assert with_data_role == 403


@pytest.mark.req("ORCH-3035")
def test_what_belongs_to_another_tenant_does_not_exist(
    service: ServiceProcess, probe: HttpProbe
) -> None:
    document = task(MODEL)
    assert probe.post("/v1/tasks", document).status == 202
    paths = [
        ("GET", f"/v1/tasks/{document['task_id']}/stream"),
        ("POST", f"/v1/tasks/{document['task_id']}/cancel"),
        ("GET", f"/v1/sessions/{document['session_id']}"),
        ("DELETE", f"/v1/sessions/{document['session_id']}"),
    ]

    with service.probe(OTHER_TENANT_KEY) as stranger:
        answers = [stranger.request(method, path) for method, path in paths]

    for answer in answers:
        assert assert_envelope(answer, 404, "INVALID_PARAMS").startswith("id: ")
    assert probe.stream(document["task_id"]).rest()[-1].data["tokens_out"] == 8
    assert probe.get(f"/v1/sessions/{document['session_id']}").status == 200


@pytest.mark.req("ORCH-3035")
@pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
def test_the_same_task_id_of_another_tenant_is_another_task(service: ServiceProcess) -> None:
    mine = task(MODEL, max_tokens=3)
    theirs = mine | {"max_tokens": 5}

    with service.probe(DATA_KEY) as acme, service.probe(OTHER_TENANT_KEY) as zeta:
        statuses = [acme.post("/v1/tasks", mine).status, zeta.post("/v1/tasks", theirs).status]
        ends = [client.stream(mine["task_id"]).rest()[-1].data for client in (acme, zeta)]

    assert statuses == [202, 202]
    assert [end["tokens_out"] for end in ends] == [3, 5]


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    "task_id",
    [
        "00000000-0000-4000-8000-000000000000",
        "1",
        "x" * 36,
        "00000000-0000-4000-8000-00000000000g",
        "00000000000040008000000000000000",
        "00000000-0000-4000-8000-000000000000%0A",
        "%C3%A9",
    ],
    ids=["unknown", "short", "letters", "no hexadecimal", "no hyphens", "line feed", "not ASCII"],
)
@pytest.mark.parametrize(
    ("method", "pattern"),
    [
        ("GET", "/v1/tasks/{}/stream"),
        ("POST", "/v1/tasks/{}/cancel"),
        ("GET", "/v1/sessions/{}"),
        ("DELETE", "/v1/sessions/{}"),
    ],
)
def test_an_unknown_or_malformed_id_is_404(
    probe: HttpProbe, task_id: str, method: str, pattern: str
) -> None:
    answer = probe.request(method, pattern.format(task_id))

    assert_envelope(answer, 404, "INVALID_PARAMS")


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.req("ORCH-2103", partial="the report")
@pytest.mark.parametrize("pool_id", ["none", "%C3%97", "-", "a%20b", "x" * 64, "..", "%2e%2e"])
def test_an_unknown_or_malformed_pool_id_is_404(probe: HttpProbe, pool_id: str) -> None:
    answer = probe.get(f"/v1/pools/{pool_id}/health")

    assert assert_envelope(answer, 404, "INVALID_PARAMS").startswith("id: ")


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    ("path", "body", "named"),
    [
        ("/v1/pools/p0/drain", b'{"deadline_ms": "x"}', "deadline_ms"),
        ("/v1/pools/p0/drain", b"{}", "deadline_ms"),
        ("/v1/pools/p0/drain", b'{"deadline_ms": 1, "hard": true}', "hard"),
        ("/v1/pools/p0/reload", b'{"new_model_ref": ""}', "new_model_ref"),
        ("/v1/catalog/models/m/state", b'{"state": "Gone"}', "state"),
        ("/v1/artifacts", b'{"kind": "plan", "content": []}', "content"),
        ("/v1/pools/p0/drain", b"[]", "body"),
        ("/v1/pools/p0/drain", b"\xff", "body"),
        ("/v1/pools/p0/drain", b"{", "body"),
    ],
)
def test_a_bad_body_of_a_control_operation_is_400_and_names_the_field(
    service: ServiceProcess, path: str, body: bytes, named: str
) -> None:
    with service.probe(ALL_KEY) as client:
        answer = client.request("POST", path, body, {"Content-Type": "application/json"})

    assert named in assert_envelope(answer, 400, "INVALID_PARAMS")


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
def test_a_control_operation_takes_json_only_and_bounds_its_body(service: ServiceProcess) -> None:
    path = "/v1/pools/p0/drain"
    with service.probe(ALL_KEY) as client:
        text = client.request("POST", path, b"deadline_ms: 1", {"Content-Type": "text/plain"})
        large = b" " * (5 * 1024 * 1024)
        too_large = client.request("POST", path, large, {"Content-Type": "application/json"})
        still_there = client.get("/livez").status

    assert_envelope(text, 415, "INVALID_PARAMS")
    assert_envelope(too_large, 413, "INVALID_PARAMS")
    assert still_there == 200


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize("operation", [o for o in OPERATIONS if o.id in LATER], ids=lambda o: o.id)
def test_what_comes_with_a_later_version_is_501_with_the_envelope(
    service: ServiceProcess, operation: Operation
) -> None:
    bodies = {
        "register_model": {"id": "m", "digest": "sha256:" + "0" * 64},
        "set_model_state": {"state": "Active"},
        "create_artifact": {"kind": "plan", "content": {}},
    }
    with service.probe(ALL_KEY) as client:
        path, document = operation.unknown_path, bodies.get(operation.id)
        answer = client.post(path, document) if document else call(client, operation)

    assert_envelope(answer, 501, "INTERNAL")


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    "path",
    [
        "/",
        "/v1",
        "/v1/",
        "/v1/task",
        "/v1/tasks/",
        "/v1/tasks/a/b/stream",
        "/v2/tasks",
        "//v1/tasks",
    ],
)
@pytest.mark.unvalidated_responses("the paths are in no contract")
def test_an_unknown_path_is_404_with_the_envelope(probe: HttpProbe, path: str) -> None:
    answer = probe.get(path)

    assert_envelope(answer, 404, "INVALID_PARAMS")


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize("path", sorted({operation.path for operation in OPERATIONS}))
def test_a_wrong_method_is_405_and_allow_names_the_right_ones(probe: HttpProbe, path: str) -> None:
    of_path = [operation for operation in OPERATIONS if operation.path == path]
    allowed = {operation.method for operation in of_path}

    for method in {"GET", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"} - allowed:
        answer = probe.request(method, of_path[0].unknown_path)

        message = assert_envelope(answer, 405, "INVALID_PARAMS")
        assert set(answer.headers["allow"].split(", ")) == allowed
        assert method in message


@pytest.mark.req("ORCH-2009", "OC-CTRL-2052")
@BY_ID
def test_a_correlation_id_is_echoed_by_every_operation(
    service: ServiceProcess, operation: Operation
) -> None:
    with service.probe(ALL_KEY) as client:
        answer = call(client, operation, X_Correlation_Id="order-4711")

    assert answer.headers["x-correlation-id"] == "order-4711"


@pytest.mark.req("ORCH-2009", partial="all but one kind of answer or one log line")
@pytest.mark.parametrize("path", ["/livez", "/readyz", "/docs", "/openapi/data.yaml", "/nowhere"])
@pytest.mark.unvalidated_responses("one of the paths is in no contract")
def test_pages_carry_a_correlation_id_as_well(probe: HttpProbe, path: str) -> None:
    echoed = probe.get(path, X_Correlation_Id="page-1").headers["x-correlation-id"]
    first, second = (probe.get(path).headers["x-correlation-id"] for _ in range(2))

    assert echoed == "page-1"
    assert first != second


@pytest.mark.req("ORCH-2009", partial="all but one kind of answer or one log line")
@pytest.mark.parametrize("valid", ["a", "!", "~" * 128, "x-1/2:3;4,5"])
def test_a_correlation_id_of_up_to_128_visible_characters_is_kept(
    probe: HttpProbe, valid: str
) -> None:
    assert probe.get("/livez", X_Correlation_Id=valid).headers["x-correlation-id"] == valid


@pytest.mark.req("ORCH-2009")
@pytest.mark.parametrize("bad", ["x" * 129, "two words", "", "caf\xe9", "tab\there"])
def test_any_other_correlation_id_is_replaced_by_a_minted_one(probe: HttpProbe, bad: str) -> None:
    minted = probe.get("/livez", X_Correlation_Id=bad).headers["x-correlation-id"]

    assert minted != bad
    assert 1 <= len(minted) <= 128
    assert all("!" <= character <= "~" for character in minted)


@pytest.mark.req("ORCH-2009")
def test_a_stream_echoes_its_own_request_s_correlation_id(probe: HttpProbe) -> None:
    document = task(MODEL)
    admitted = probe.post("/v1/tasks", document, X_Correlation_Id="at-admission")

    stream = probe.stream(document["task_id"], X_Correlation_Id="at-stream")
    stream.rest()
    missing = probe.stream(str(uuid.uuid4()), X_Correlation_Id="at-error").answer()

    assert admitted.headers["x-correlation-id"] == "at-admission"
    assert stream.headers["x-correlation-id"] == "at-stream"
    assert missing.headers["x-correlation-id"] == "at-error"


@pytest.mark.unvalidated_responses("what is no HTTP names no operation")
@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    ("nonsense", "statuses"),
    [
        (b"NONSENSE / HTTP/1.1\r\n\r\n", {405}),
        (b"GET / HTTP/1.1\r\nContent-Length: x\r\n\r\n", {400}),
        (b"GET / HTTP/1.1\r\nno colon\r\n\r\n", {400}),
        (b"\x16\x03\x01\x02\x00", {400, 405}),
    ],
    ids=["unknown method", "bad length", "bad header", "a TLS hello"],
)
def test_what_is_not_http_is_answered_with_the_envelope(
    service: ServiceProcess, nonsense: bytes, statuses: set[int]
) -> None:
    with service.probe() as client:
        client.send_raw(nonsense)
        status, headers = client.read_head()
        body = client.take(int(headers["content-length"]))

    assert status in statuses
    assert headers["content-type"] == "application/json"
    assert headers["connection"] == "close"
    assert headers["x-correlation-id"]
    assert json.loads(body)["code"] == "INVALID_PARAMS"
