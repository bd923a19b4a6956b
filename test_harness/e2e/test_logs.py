"""What the service writes to standard error: JSON, what was refused, and no secret."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import task
from harness_kit.service_process import (
    DATA_KEY,
    MODEL,
    SECRETS,
    ServiceProcess,
    external_pool,
)

PROMPT = "a secret of the client's own"


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    with GatedEngine() as engine:
        pool = external_pool(engine.url)
        with ServiceProcess(tmp_path_factory.mktemp("logs"), pool) as running:
            yield running


def finish(service: ServiceProcess, **fields: Any) -> dict[str, Any]:
    """A task that has ended and been logged."""
    document = task(MODEL, prompt=PROMPT, **fields)
    with service.probe() as probe:
        answer = probe.post("/v1/tasks", document, X_Correlation_Id="trace-1")
        assert answer.status == 202
        probe.stream(document["task_id"]).rest()
    service.wait_log("task.ended", job_id=document["task_id"])
    return document


@pytest.mark.req("ORCH-3027", partial="its fields")
def test_every_line_is_one_json_object_with_event_level_and_time(service: ServiceProcess) -> None:
    finish(service)

    lines = [json.loads(line) for line in service.log_text().splitlines()]

    assert len(lines) > 3
    for line in lines:
        assert isinstance(line["event"], str)
        assert line["level"] in ("debug", "info", "warning", "error")
        assert isinstance(line["at_ms"], int)


@pytest.mark.req("ORCH-2009", partial="all but one kind of answer or one log line")
@pytest.mark.req("ORCH-3027", partial="all but a refusal's own fields")
def test_a_refusal_is_logged_with_its_reason_and_correlation_id(service: ServiceProcess) -> None:
    document = task(MODEL, ctx=9000)
    with service.probe() as probe:
        assert probe.post("/v1/tasks", document, X_Correlation_Id="trace-2").status == 400

    (line,) = service.wait_log("task.rejected", job_id=document["task_id"])

    assert line["correlation_id"] == "trace-2"
    assert line["code"] == "INVALID_PARAMS"
    assert line["tenant_id"] == "acme"


@pytest.mark.req("OC-CTRL-2041")
@pytest.mark.req("ORCH-3035", partial="all but that keys stay out of the logs")
@pytest.mark.unvalidated_responses("one of the paths is in no contract")
def test_no_key_and_no_prompt_ever_appears(service: ServiceProcess) -> None:
    finish(service)
    answers = []
    with service.probe(None) as probe:
        for headers in (
            {"X_API_Key": DATA_KEY, "X_Correlation_Id": DATA_KEY},
            {"Authorization": f"Bearer {DATA_KEY}"},
            {"X_API_Key": DATA_KEY + "-wrong"},
        ):
            answers.append(probe.get(f"/v1/tasks/{DATA_KEY}/stream", **headers))
            answers.append(probe.get(f"/{DATA_KEY}", **headers))
            answers.append(probe.post("/v1/tasks", task(DATA_KEY), **headers))
    finish(service)

    everywhere = service.log_text() + service.metrics()
    for secret in (*SECRETS, PROMPT):
        assert secret not in everywhere
    for answer in answers:
        for secret in set(SECRETS) - {DATA_KEY}:
            assert secret not in answer.body.decode()
    assert all(answer.status in (202, 403, 404, 503) for answer in answers)
