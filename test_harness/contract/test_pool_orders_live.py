"""Orders to pools over HTTP: what they are answered and what they lead to.

Every answer is held against the contract by `harness_kit.validated_responses`.

The engines are processes that speak llama.cpp's protocol, so that reloads really start some.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import Answer, HttpProbe
from harness_kit.service_process import ALL_KEY, MODEL, ServiceProcess, external_pool
from harness_kit.waiting import wait_until

WAIT_S = 60.0
ENGINE = [sys.executable, "-m", "harness_kit.fake_engine", "--port", "{port}", "--ctx", "8192"]
LAUNCHED = {
    "id": "launched",
    "engine": "llamacpp",
    "model": MODEL,
    "ctx": 8192,
    "sampler_profile_version": "v1",
    "launch": {"count": 2, "command": ENGINE},
}


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    directory = tmp_path_factory.mktemp("orders")
    with (
        GatedEngine() as engine,
        ServiceProcess(directory, external_pool(engine.url), LAUNCHED) as running,
    ):
        running.wait_metric("replica_ready", 3, WAIT_S)
        yield running


@pytest.fixture
def probe(service: ServiceProcess) -> Iterator[HttpProbe]:
    with service.probe(ALL_KEY) as client:
        yield client


def order(probe: HttpProbe, pool: str, name: str, body: Any = None) -> Answer:
    return probe.post(f"/v1/pools/{pool}/{name}", body)


def health(probe: HttpProbe, pool: str) -> dict[str, Any]:
    return dict(probe.get(f"/v1/pools/{pool}/health").json())


def replica(document: dict[str, Any], name: str) -> dict[str, Any]:
    (found,) = (each for each in document["replicas"] if each["id"] == name)
    return dict(found)


@pytest.mark.req("ORCH-2101", "OC-CTRL-2002")
@pytest.mark.parametrize(("pool", "name"), [("p0", "r0"), ("launched", "launched-0")])
def test_a_replica_is_cordoned_drained_and_resumed(probe: HttpProbe, pool: str, name: str) -> None:
    wait_until(lambda: replica(health(probe, pool), name)["state"] == "Ready", WAIT_S, "Ready")
    cordoned = order(probe, pool, "cordon", {"replica_id": name})
    drained = order(probe, pool, "drain", {"deadline_ms": 60_000, "replica_id": name})
    again = order(probe, pool, "drain", {"deadline_ms": 60_000, "replica_id": name})
    wait_until(lambda: replica(health(probe, pool), name)["state"] == "Stopped", WAIT_S, "drained")
    resumed = order(probe, pool, "resume", {"replica_id": name})
    wait_until(lambda: replica(health(probe, pool), name)["state"] == "Ready", WAIT_S, "Ready")
    twice = order(probe, pool, "resume", {})

    answers = (cordoned, drained, again, resumed, twice)
    assert [answer.status for answer in answers] == [202] * 5
    assert replica(cordoned.json(), name)["cordoned"] is True
    assert replica(cordoned.json(), name)["state"] == "Ready"
    assert replica(drained.json(), name)["state"] == "Draining"
    assert replica(twice.json(), name)["cordoned"] is False


@pytest.mark.req("ORCH-2101", "OC-CTRL-2002")
def test_a_pool_drains_and_resumes(service: ServiceProcess, probe: HttpProbe) -> None:
    drained = order(probe, "launched", "drain", {"deadline_ms": 60_000}).json()
    wait_until(lambda: not service.engine_pids(), WAIT_S, "the engines have stopped")
    stopped = health(probe, "launched")
    order(probe, "launched", "resume", {})
    wait_until(lambda: health(probe, "launched")["ready"], WAIT_S, "it is Ready again")

    assert (drained["draining"], drained["ready"], drained["state"]) == (True, False, "Draining")
    assert (stopped["draining"], stopped["ready"]) == (True, False)
    assert {each["state"] for each in stopped["replicas"]} == {"Stopped"}
    assert health(probe, "launched")["draining"] is False


@pytest.mark.req("ORCH-2102", "ORCH-3033", "OC-CTRL-2003")
def test_a_canary_is_seen_rolled_back_and_not_there_any_more(
    service: ServiceProcess, probe: HttpProbe
) -> None:
    service.wait_metric("replica_ready", 2, WAIT_S, pool_id="launched")
    before = health(probe, "launched")["model_ref"]
    body = {"new_model_ref": "file:/models/other.gguf", "canary_percent": 25}
    begun = order(probe, "launched", "reload", body).json()
    busy = order(probe, "launched", "reload", body)
    wait_until(
        lambda: health(probe, "launched")["reload"]["phase"] == "canary", WAIT_S, "the canary"
    )
    stable, canary = health(probe, "launched"), health(probe, "launched.canary")
    lost_order = order(probe, "launched.canary", "rollback")
    rolled_back = order(probe, "launched", "rollback")
    wait_until(
        lambda: health(probe, "launched")["reload"]["phase"] == "rolled_back", WAIT_S, "the end"
    )
    again = order(probe, "launched", "rollback")
    promoted = order(probe, "launched", "promote")

    assert begun["reload"]["phase"] == "preloading"
    assert (busy.status, lost_order.status, promoted.status) == (409, 409, 409)
    assert (rolled_back.status, again.status) == (202, 202)
    assert stable["reload"]["canary_percent"] == 25
    assert (stable["model_ref"], canary["model_ref"]) == (before, body["new_model_ref"])
    assert len(stable["replicas"]) == len(canary["replicas"]) == 2
    assert canary["ready"] is True
    assert health(probe, "launched")["model_ref"] == before
    assert probe.get("/v1/pools/launched.canary/health").status == 404


@pytest.mark.req("ORCH-2102", "OC-CTRL-2003")
def test_a_pool_of_engines_that_somebody_else_runs_says_what_to_do(probe: HttpProbe) -> None:
    refused = order(probe, "p0", "reload", {"new_model_ref": "m"})
    nothing = order(probe, "p0", "rollback")

    assert (refused.status, nothing.status) == (409, 409)
    assert "drain and resume its replicas one by one" in refused.json()["message"]


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    ("pool", "name", "body", "status", "named"),
    [
        ("none", "drain", {"deadline_ms": 1}, 404, "id: "),
        ("p0", "drain", {"deadline_ms": 1, "replica_id": "r9"}, 404, "replica_id: "),
        ("p0", "cordon", {"replica_id": "r9"}, 404, "replica_id: "),
        ("none", "resume", {}, 404, "id: "),
        ("none", "reload", {"new_model_ref": "m"}, 404, "id: "),
        ("none", "promote", None, 404, "id: "),
        ("none", "rollback", None, 404, "id: "),
        ("p0", "drain", {"deadline_ms": 0}, 400, "deadline_ms"),
        ("p0", "reload", {"new_model_ref": "m", "canary_percent": 100}, 400, "canary_percent"),
    ],
)
def test_what_cannot_be_ordered_names_the_field(
    probe: HttpProbe, pool: str, name: str, body: Any, status: int, named: str
) -> None:
    answer = order(probe, pool, name, body)

    assert answer.status == status
    assert named in answer.json()["message"]
