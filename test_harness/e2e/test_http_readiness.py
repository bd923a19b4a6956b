"""The service before its engines, with them, and after the last one is gone."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest

from harness_kit.contract_files import CONTRACTS
from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import Answer, HttpProbe, task, text_of
from harness_kit.service_process import (
    CONTROL_KEY,
    DATA_KEY,
    MODEL,
    ServiceProcess,
    external_pool,
)
from harness_kit.waiting import wait_until

BACK_WITHIN_S = 1.5
# On a busy machine the two processes and this one take their turns.
SLACK_S = 1.0


@pytest.fixture
def service(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[ServiceProcess, GatedEngine]]:
    """A service whose engine still loads."""
    directory = tmp_path_factory.mktemp("readiness")
    with GatedEngine() as engine:
        engine.loading = True
        service = ServiceProcess(directory, external_pool(engine.url))
        try:
            yield service.start(until_ready=False), engine
        finally:
            service.kill()


def assert_unavailable(answer: Answer, code: str) -> None:
    envelope = answer.json()
    assert (answer.status, envelope["code"]) == (503, code)
    assert envelope["retriable"] is True
    assert envelope["pool_id"] == "p0"
    assert envelope["engine"] == "llamacpp"
    backoff_ms = int(answer.headers["x-backoff-ms"])
    assert backoff_ms == envelope["retry_after_ms"] >= 1
    assert int(answer.headers["retry-after"]) == -(-backoff_ms // 1000)


def health_of(probe: HttpProbe) -> dict[str, object]:
    document: dict[str, object] = probe.get("/v1/pools/p0/health").json()
    return document


@pytest.mark.req("ORCH-3002", "ORCH-3010", "ORCH-3018", "ORCH-2103", "OC-CTRL-2001")
def test_admission_follows_the_last_engine_from_loading_to_ready_to_gone_and_back(
    service: tuple[ServiceProcess, GatedEngine],
) -> None:
    running, engine = service
    with running.probe() as probe:
        # Still loading: it listens, and takes nothing.
        assert probe.get("/livez").status == 200
        assert probe.get("/readyz").status == 503
        assert health_of(probe)["state"] == "Preloading"
        assert_unavailable(probe.post("/v1/tasks", task(MODEL)), "POOL_UNREADY")

        # Loaded: Ready within a probe or two.
        engine.loading = False
        wait_until(lambda: probe.get("/readyz").status == 200, 5, "the pool is Ready")
        ready = health_of(probe)
        assert (ready["live"], ready["ready"], ready["draining"]) == (True, True, False)
        assert probe.post("/v1/tasks", task(MODEL)).status == 202

        # The last one crashes: noticed without a task, and refused with a hint.
        engine.crash()
        wait_until(lambda: probe.get("/readyz").status == 503, 5, "the loss is noticed")
        assert_unavailable(probe.post("/v1/tasks", task(MODEL)), "POOL_UNAVAILABLE")
        gone = health_of(probe)
        assert gone["ready"] is False
        assert gone["state"] == "Unready"
        assert isinstance(gone["last_error"], dict)
        assert set(gone["last_error"]) == {"code", "message", "at_ms"}

        # It comes back.
        engine.listen()
        back_at_s = time.monotonic()
        wait_until(lambda: probe.get("/readyz").status == 200, 5, "the pool is Ready again")
        assert time.monotonic() - back_at_s < BACK_WITHIN_S + SLACK_S
        assert probe.post("/v1/tasks", task(MODEL)).status == 202


@pytest.mark.req("ORCH-3010")
@pytest.mark.req("ORCH-3201", partial="all but one case of a failover")
def test_a_task_whose_only_engine_dies_waits_for_it_and_goes_on_byte_for_byte(
    service: tuple[ServiceProcess, GatedEngine],
) -> None:
    running, engine = service
    engine.loading = False
    running.wait_ready()
    undisturbed, document = task(MODEL, max_tokens=30), task(MODEL, max_tokens=30)
    with running.probe() as probe:
        probe.post("/v1/tasks", undisturbed)
        expected = text_of(probe.stream(undisturbed["task_id"]).rest())

        engine.hold(12)
        probe.post("/v1/tasks", document)
        stream = probe.stream(document["task_id"])
        events = stream.take(13)
        engine.crash()
        with running.probe() as other:
            wait_until(lambda: other.get("/readyz").status == 503, 5, "the loss is noticed")
        engine.allow()
        engine.listen()
        events += stream.rest()

    assert text_of(events) == expected
    assert [event.id for event in events if event.id] == [*range(1, 33)]
    assert [event.name for event in events if event.terminal] == ["end"]
    after = [event.data for event in events if event.name == "metrics"][-1]
    assert (after["failovers"], after["kv_migrated"], after["kv_warmth"]) == (1, False, False)
    assert running.metric("failovers_total", outcome="resumed") == 1


@pytest.mark.unvalidated_responses("a plane's path on the other plane's port is in no contract")
@pytest.mark.req("ORCH-3035", partial="all but that a port of its own is gated as well")
def test_the_control_plane_can_have_a_port_of_its_own(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    directory = tmp_path_factory.mktemp("ports")
    with GatedEngine() as engine:
        sections = {"control_port": 0, "metrics_public": True}
        with ServiceProcess(directory, external_pool(engine.url), server=sections) as running:
            port = running.control_port
            assert port not in (None, running.port)
            paths = {
                "data": "/v1/sessions/00000000-0000-4000-8000-000000000000",
                "control": "/v1/replicasets",
            }
            with running.probe() as data, HttpProbe(port or 0, CONTROL_KEY) as control:
                messages = {
                    ("data", "data"): data.get(paths["data"]).json()["message"],
                    ("data", "control"): data.get(paths["control"]).json()["message"],
                    ("control", "data"): control.get(paths["data"]).json()["message"],
                }
                statuses = (
                    control.get(paths["control"]).status,
                    control.get("/livez").status,
                )
            with running.probe(None) as anonymous:
                public = anonymous.get("/metrics").status

    assert messages["data", "data"] == "id: no such session"
    assert messages["data", "control"].startswith("path: ")
    assert messages["control", "data"].startswith("path: ")
    assert statuses == (200, 200)
    assert public == 200


@pytest.mark.req("ORCH-3044", partial="all but compatible growth and publication of a version")
@pytest.mark.req("ORCH-2009", partial="all but one kind of answer or one log line")
def test_contracts_and_documentation_are_served_without_a_key(
    service: tuple[ServiceProcess, GatedEngine],
) -> None:
    running, _ = service
    with running.probe(None) as probe:
        pages = {
            path: probe.get(path)
            for path in ("/openapi/data.yaml", "/openapi/control.yaml", "/docs")
        }
        bundle = probe.get("/docs/swagger-ui-bundle.js")
        escaped = probe.get("/docs/../app.py")
        head = probe.request("HEAD", "/livez")

    for plane in ("data", "control"):
        text = (CONTRACTS / "openapi" / f"{plane}.yaml").read_bytes()
        assert pages[f"/openapi/{plane}.yaml"].body == text
    assert pages["/docs"].headers["content-type"].startswith("text/html")
    assert b"http://" not in pages["/docs"].body
    assert bundle.status == 200
    assert escaped.status == 404
    assert (head.status, head.body) == (200, b"")
    assert DATA_KEY.encode() not in pages["/docs"].body
