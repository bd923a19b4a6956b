"""Explanations over HTTP and on the command line, of a real service process: whose they are, and
that they hold what happened.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import HttpProbe, task
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


@pytest.fixture(scope="module")
def engine() -> Iterator[GatedEngine]:
    with GatedEngine(slots=1) as running:
        yield running


@pytest.fixture(scope="module")
def service(
    engine: GatedEngine, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServiceProcess]:
    pool = external_pool(engine.url, queue={"capacity": 1, "full_policy": "reject"})
    with ServiceProcess(tmp_path_factory.mktemp("explain"), pool) as running:
        yield running


@pytest.fixture(autouse=True)
def _idle_afterwards(engine: GatedEngine) -> Iterator[None]:
    yield
    engine.allow()
    engine.wait_busy(0)


def submitted(probe: HttpProbe, status: int = 202, **fields: Any) -> str:
    document = task(MODEL, **fields)
    answer = probe.post("/v1/tasks", document)
    assert answer.status == status, answer
    return str(document["task_id"])


def explained(probe: HttpProbe, task_id: str) -> dict[str, Any]:
    answer = probe.get(f"/v1/tasks/{task_id}/explanation")
    assert answer.status == 200, answer
    told: dict[str, Any] = answer.json()
    return told


def story(told: dict[str, Any]) -> list[str]:
    return [f"{taken['decision']} {taken['reason']}" for taken in told["decisions"]]


def command_line(
    service: ServiceProcess, key: str, *words: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orch_cli.main", "explain", *words],
        env=os.environ
        | {"LLAMA_ORCH_URL": f"http://127.0.0.1:{service.port}", "LLAMA_ORCH_API_KEY": key},
        capture_output=True,
        text=True,
        timeout=30.0,
    )


@pytest.mark.req("ORCH-3035", "OC-CTRL-2040", partial="one operation")
@pytest.mark.parametrize(
    ("key", "query", "status"),
    [
        (DATA_KEY, "", 200),
        (DATA_KEY, "?tenant=acme", 200),
        (DATA_KEY, "?verbose=1&nonsense", 200),
        (OTHER_TENANT_KEY, "", 404),
        (OTHER_TENANT_KEY, "?tenant=acme", 404),
        (CONTROL_KEY, "?tenant=acme", 200),
        (CONTROL_KEY, "?x=1&tenant=%61cme", 200),
        (CONTROL_KEY, "?tenant=zeta", 404),
        (CONTROL_KEY, "?tenant=", 404),
        (CONTROL_KEY, "", 404),
        (METRICS_KEY, "?tenant=acme", 403),
        (None, "", 401),
    ],
)
def test_a_task_is_explained_to_its_tenant_and_to_operators(
    service: ServiceProcess, key: str | None, query: str, status: int
) -> None:
    with service.probe() as probe:
        task_id = submitted(probe)
        probe.stream(task_id).rest()
    with service.probe(key) as asker:
        answer = asker.get(f"/v1/tasks/{task_id}/explanation{query}")

    assert answer.status == status
    if status == 200:
        assert answer.json()["tenant"] == "acme"


@pytest.mark.req("ORCH-3091", "ORCH-3094")
def test_placed_delayed_and_refused_tasks_and_the_lines_in_the_log(
    service: ServiceProcess, engine: GatedEngine
) -> None:
    engine.hold(1)
    with service.probe() as probe:
        first = submitted(probe)
        engine.wait_busy(1)
        second = submitted(probe)
        third = submitted(probe, status=429)
        running, waiting, refused = (explained(probe, one) for one in (first, second, third))
        engine.allow()
        probe.stream(second).rest()
        ended = explained(probe, second)

    assert (running["state"], story(running)) == (
        "running",
        ["admitted free-slot", "dispatched free-slot"],
    )
    assert (waiting["state"], waiting["queue_position"]) == ("waiting", 0)
    assert waiting["share"]["entitled"] == 1.0
    assert (refused["state"], story(refused)) == ("refused", ["refused queue-full"])
    assert refused["decisions"][0]["values"]["waiting"] == 1
    assert story(ended) == ["admitted queued", "dispatched fair-turn", "ended completed"]
    lines = [
        service.wait_log(f"task.{event}", job_id=second)[0]
        for event in ("admitted", "dispatched", "ended")
    ]
    for line, taken in zip(lines, ended["decisions"], strict=True):
        assert taken["values"].items() <= line.items()
        assert line["reason"] == taken["reason"]


@pytest.mark.req("ORCH-3091", partial="a restart")
def test_after_a_crash_the_promise_is_known_and_how_it_goes_on(
    engine: GatedEngine, tmp_path: Path
) -> None:
    with ServiceProcess(tmp_path, external_pool(engine.url)) as service:
        with service.probe() as probe:
            engine.hold(1)
            task_id = submitted(probe)
            probe.stream(task_id).take(2)
        service.kill()
        engine.allow()
        service.restart()
        with service.probe() as probe:
            probe.stream(task_id).rest()
            told = explained(probe, task_id)

    assert story(told) == ["admitted recovered", "resumed recovered", "ended completed"]
    assert "The service restarted since it was admitted" in told["summary"]


@pytest.mark.req("ORCH-3091", "OC-CLI-8001", partial="one command")
def test_the_command_line_tells_an_operator(service: ServiceProcess) -> None:
    with service.probe() as probe:
        task_id = submitted(probe)
        probe.stream(task_id).rest()

    told = command_line(service, CONTROL_KEY, task_id, "--tenant", "acme")
    as_json = command_line(service, ALL_KEY, task_id, "--json")
    stranger = command_line(service, OTHER_TENANT_KEY, task_id)

    assert told.returncode == 0, told.stderr
    assert told.stdout.startswith("Completed with 8 tokens, ")
    columns = [line.split("\t")[1:3] for line in told.stdout.splitlines()[-3:]]
    assert columns == [
        ["admitted", "free-slot"],
        ["dispatched", "free-slot"],
        ["ended", "completed"],
    ]
    assert json.loads(as_json.stdout)["state"] == "ended"
    assert (stranger.returncode, stranger.stdout) == (4, "")
    assert "no such task" in stranger.stderr
