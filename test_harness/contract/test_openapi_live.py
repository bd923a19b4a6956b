"""Answers of the running service against both contracts: status, headers, body, every event.

Here the documented answers are brought about; `harness_kit.validated_responses` holds each, and
every event, against the hand-written YAML and fails the test that received a wrong one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from harness_kit.contract_files import UNKNOWN_IDS, Operation, contract, operations
from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import HttpProbe, task
from harness_kit.service_process import ALL_KEY, MODEL, POOL, ServiceProcess, external_pool

JSON = {"Content-Type": "application/json"}
UNKNOWN = UNKNOWN_IDS["tasks"]
_DATA = contract("data")


@pytest.fixture(scope="module")
def engine() -> Iterator[GatedEngine]:
    with GatedEngine(slots=2, embeddings=True) as running:
        yield running


@pytest.fixture(scope="module")
def service(
    engine: GatedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    pool = external_pool(
        engine.url,
        queue={"capacity": 1, "full_policy": "reject"},
        admission={"priorities": [{"name": "interactive", "queue_capacity": 1, "weight": 8}]},
    )
    sessions = {"budgets": {"tokens": 4000, "time_ms": 600_000, "cost": 1000.0}}
    directory = tmp_path_factory.mktemp("openapi")
    with ServiceProcess(directory, pool, sessions=sessions) as running:
        yield running


@pytest.fixture
def probe(service: ServiceProcess) -> Iterator[HttpProbe]:
    with service.probe(ALL_KEY) as client:
        yield client


@pytest.fixture(autouse=True)
def _idle_afterwards(engine: GatedEngine) -> Iterator[None]:
    yield
    engine.allow()
    engine.wait_busy(0)


def submitted(probe: HttpProbe, **fields: Any) -> str:
    document = task(MODEL, **fields)
    probe.submit(document)
    return str(document["task_id"])


@pytest.mark.req("ORCH-2001", "ORCH-2002", "OC-CTRL-2020", "OC-CTRL-2022", "ORCH-3099")
@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"determinism": "best_effort", "priority": "batch"},
        {"prompt": None, "messages": [{"role": "user", "content": "hi"}]},
        {"prompt": None, "workload": "embedding", "inputs": ["a", "b"]},
        {"prompt": None, "workload": "rerank", "inputs": ["query", "a", "b"]},
    ],
    ids=["completion", "best effort", "chat", "embedding", "rerank"],
)
def test_a_task_from_admission_to_its_last_event(probe: HttpProbe, fields: dict[str, Any]) -> None:
    task_id = submitted(probe, **fields)

    stream = probe.stream(task_id)
    events = stream.rest()

    assert events[-1].name == "end"
    for name in ("tokens-remaining", "time-remaining-ms", "cost-remaining"):
        assert f"x-budget-{name}" in stream.headers


@pytest.mark.req("ORCH-2003", "ORCH-3100", "OC-CTRL-2023")
def test_a_running_task_its_metrics_its_cancel_and_its_end(
    probe: HttpProbe, service: ServiceProcess, engine: GatedEngine
) -> None:
    engine.hold(2)
    task_id = submitted(probe)
    with service.probe(ALL_KEY) as reader:
        stream = reader.stream(task_id)
        first = stream.take(4, numbered=False)
        cancelled = probe.post(f"/v1/tasks/{task_id}/cancel")
        rest = stream.rest()

    assert "metrics" in {event.name for event in first}
    assert cancelled.status == 204
    assert rest[-1].data["canceled"] is True


@pytest.mark.req("OC-CTRL-2030", "OC-CTRL-2031")
@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
def test_a_stream_that_ends_with_an_error(
    probe: HttpProbe, service: ServiceProcess, engine: GatedEngine
) -> None:
    engine.hold(2)
    task_id = submitted(probe, determinism="best_effort")
    stream = probe.stream(task_id)
    stream.take(3)
    engine.break_decodes()
    events = stream.rest()
    service.wait_ready()

    assert events[-1].name == "error"
    assert events[-1].data["pool_id"] == POOL


@pytest.mark.req("ORCH-3091", partial="the shape of its answers")
def test_explanations_of_running_waiting_ended_and_refused_tasks(
    probe: HttpProbe, engine: GatedEngine
) -> None:
    engine.hold(2)
    tasks = [submitted(probe) for _ in range(2)]
    engine.wait_busy(2)
    tasks.append(submitted(probe))
    refused = task(MODEL)
    assert probe.post("/v1/tasks", refused).status == 429
    tasks.append(str(refused["task_id"]))
    paths = [f"/v1/tasks/{task_id}/explanation" for task_id in tasks]

    before = [probe.get(path).json()["state"] for path in paths]
    engine.allow()
    probe.stream(tasks[2]).rest()
    after = probe.get(paths[2]).json()
    unknown = probe.get(paths[0].replace(tasks[0][:8], "00000000"))

    assert before == ["running", "running", "waiting", "refused"]
    assert after["state"] == "ended"
    assert unknown.status == 404


@pytest.mark.req("ORCH-2004", "ORCH-2005")
def test_a_session_and_its_end(probe: HttpProbe) -> None:
    document = task(MODEL)
    path = f"/v1/sessions/{document['session_id']}"
    probe.post("/v1/tasks", document)

    shown = probe.get(path)
    deleted = probe.request("DELETE", path)
    gone = probe.get(path)
    gone_again = probe.request("DELETE", path)

    statuses = [answer.status for answer in (shown, deleted, gone, gone_again)]
    assert statuses == [200, 204, 404, 404]


@pytest.mark.req("ORCH-2006", "ORCH-2007", "OC-CTRL-2030")
@pytest.mark.req(
    "ORCH-3093", partial="MODEL_DEPRECATED and UNTRUSTED_ARTIFACT are types that nothing raises yet"
)
def test_every_refusal_of_admission(
    probe: HttpProbe, service: ServiceProcess, engine: GatedEngine
) -> None:
    used = task(MODEL)
    probe.post("/v1/tasks", used)
    probe.stream(used["task_id"]).rest()
    engine.hold()
    for _ in range(2):
        submitted(probe)
    engine.wait_busy(2)
    submitted(probe)
    refusals = [
        (409, used | {"seed": 1}),
        (429, task(MODEL)),
        (429, task(MODEL, max_tokens=5000, ctx=8192)),
        (400, task(MODEL, ctx=9000)),
        (400, task(MODEL, max_tokens=0)),
        (400, [1]),
        (503, task("file:/none")),
        (503, task(MODEL, engine="vllm")),
    ]

    for status, document in refusals:
        answer = probe.post("/v1/tasks", document)
        assert answer.status == status, answer
    with service.probe(None) as anonymous, service.probe("wrong-key") as stranger:
        assert anonymous.post("/v1/tasks", task(MODEL)).status == 401
        assert stranger.post("/v1/tasks", task(MODEL)).status == 403


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    ("status", "body", "media_type"),
    [
        (400, b"{", "application/json"),
        (413, b" " * (5 * 1024 * 1024), "application/json"),
        (415, b"{}", "text/plain"),
    ],
)
def test_bodies_that_are_no_task(
    probe: HttpProbe, status: int, body: bytes, media_type: str
) -> None:
    answer = probe.request("POST", "/v1/tasks", body, {"Content-Type": media_type})

    assert answer.status == status
    assert probe.get("/livez").status == 200


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.req(
    "ORCH-3202", partial="another node, which comes with the cluster, and what is replayed"
)
def test_unknown_tasks_and_a_malformed_last_event_id(probe: HttpProbe) -> None:
    task_id = submitted(probe)

    bad = probe.stream(task_id, "x").answer()
    unknown = probe.stream(UNKNOWN).answer()
    cancelled = probe.post(f"/v1/tasks/{UNKNOWN}/cancel")

    assert (bad.status, unknown.status, cancelled.status) == (400, 404, 404)


@pytest.mark.req("ORCH-3095", "ORCH-3096", "OC-CTRL-2001", "OC-CTRL-2060", "OC-CTRL-2061")
@pytest.mark.req("ORCH-2103", partial="the cause of the last error")
@pytest.mark.req("ORCH-2104", partial="what an SLO snapshot holds")
@pytest.mark.req("OC-CTRL-2004", partial="what the SLO snapshot holds")
def test_pool_health_replica_sets_and_capabilities(probe: HttpProbe) -> None:
    health = probe.get(f"/v1/pools/{POOL}/health").json()
    (replica_set,) = probe.get("/v1/replicasets").json()
    capabilities = probe.get("/v1/capabilities").json()
    unknown = probe.get("/v1/pools/none/health")

    assert {name: health[name] for name in ("live", "ready", "draining", "state")} == {
        "live": True,
        "ready": True,
        "draining": False,
        "state": "Ready",
    }
    assert health["metrics"]["slots_total"] == 2
    (replica,) = health["replicas"]
    assert (replica["id"], replica["state"], replica["restarts"]) == ("r0", "Ready", 0)
    assert replica["engine_version"] == "llama.cpp gated-1"
    assert (replica_set["engine"], replica_set["slots_total"]) == ("llamacpp", 2)
    assert replica_set["engine_version"] == "llama.cpp gated-1"
    assert [(r["id"], r["pool_id"], r["state"]) for r in replica_set["replicas"]] == [
        ("r0", POOL, "Ready")
    ]
    assert capabilities["api_version"] == contract("control")["info"]["version"]
    (offer,) = capabilities["engines"]
    assert (offer["engine"], offer["ctx_max"]) == ("llamacpp", 8192)
    assert offer["supported_workloads"] == ["completion", "embedding", "rerank"]
    assert "chat_template" in offer["features"]
    assert capabilities["cpu_carve_out"] is True
    assert unknown.status == 404


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040")
@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize("operation", [*operations()], ids=lambda operation: operation.id)
def test_every_operation_s_401_403_and_405_are_documented(
    service: ServiceProcess, operation: Operation
) -> None:
    path = operation.unknown_path
    callers: dict[int, Callable[[], HttpProbe]] = {
        401: lambda: service.probe(None),
        403: lambda: service.probe("wrong-key"),
    }

    for status, caller in callers.items():
        with caller() as client:
            body = b"{}" if operation.has_body else None
            answer = client.request(operation.method, path, body, JSON)
        assert answer.status == status
    with service.probe(ALL_KEY) as client:
        answer = client.request("PATCH", path)
    assert answer.status == 405


@pytest.mark.req("ORCH-2001", partial="that every check comes before the queue")
def test_the_examples_of_the_contract_are_admitted(probe: HttpProbe) -> None:
    body = _DATA["paths"]["/v1/tasks"]["post"]["requestBody"]["content"]["application/json"]
    for name, example in body["examples"].items():
        document = json.loads(json.dumps(example["value"])) | {"model_ref": MODEL}

        answer = probe.post("/v1/tasks", document)

        assert answer.status == 202, name
        assert re.fullmatch(r"[!-~]{1,128}", answer.headers["x-correlation-id"])
        events = probe.stream(document["task_id"]).rest()
        assert events[-1].name == "end", name
