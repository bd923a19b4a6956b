"""A running service takes another configuration: all of it, or nothing, and back (ORCH-3031)."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import HttpProbe, numbered, task
from harness_kit.service_process import (
    CONTROL_KEY,
    DATA_KEY,
    MODEL,
    POOL,
    ServiceProcess,
    external_pool,
)
from harness_kit.waiting import wait_until


def rewrite(service: ServiceProcess, **pool: Any) -> None:
    """Change the file's first pool; nobody reads it before a reload."""
    service.config["pools"] = [service.config["pools"][0] | pool, *service.config["pools"][1:]]
    service.config_path.write_text(yaml.safe_dump(service.config), encoding="utf-8")


def reload(control: HttpProbe, **body: Any) -> tuple[int, dict[str, Any]]:
    answer = control.post("/v1/config/reload", body)
    return answer.status, answer.json()


@pytest.fixture
def engine() -> Iterator[GatedEngine]:
    with GatedEngine(slots=1) as running:
        yield running


@pytest.fixture
def service(engine: GatedEngine, tmp_path: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path, external_pool(engine.url)) as running:
        yield running


@pytest.fixture
def control(service: ServiceProcess) -> Iterator[HttpProbe]:
    with service.probe(CONTROL_KEY) as probe:
        yield probe


@pytest.fixture
def probe(service: ServiceProcess) -> Iterator[HttpProbe]:
    with service.probe(DATA_KEY) as probe:
        yield probe


@pytest.mark.req("ORCH-3031", "ORCH-3030")
def test_a_live_key_takes_hold_without_disturbing_what_runs(
    engine: GatedEngine, service: ServiceProcess, control: HttpProbe, probe: HttpProbe
) -> None:
    engine.hold(2)
    running, waiting, refused = (task(MODEL, max_tokens=6) for _ in range(3))
    for document in (running, waiting):
        assert probe.post("/v1/tasks", document).status == 202
    rewrite(service, queue={"capacity": 1, "full_policy": "reject"})

    dry = reload(control, dry_run=True)
    admitted_after_dry_run = probe.post("/v1/tasks", task(MODEL)).status
    status, change = reload(control)
    answer = probe.post("/v1/tasks", refused)
    engine.allow()
    events = probe.stream(running["task_id"]).rest()

    key = {"key": "pools[p0].queue.capacity", "before": 64, "after": 1, "effect": "live"}
    assert (dry[0], dry[1]["applied"], dry[1]["changes"]) == (200, False, [key])
    assert admitted_after_dry_run == 202
    assert (status, change["applied"], change["revision"]) == (200, True, 2)
    assert change["changes"] == [key]
    assert (answer.status, answer.json()["policy_label"]) == (429, "reject")
    assert [event.name for event in numbered(events)] == ["started", *["token"] * 6, "end"]
    assert service.metric("config_reloads_total", outcome="applied") == 1


@pytest.mark.req("ORCH-3031")
def test_a_revert_brings_the_former_configuration_back(
    service: ServiceProcess, control: HttpProbe
) -> None:
    rewrite(service, queue={"capacity": 1})
    reload(control)

    reverted = control.post("/v1/config/revert")
    state = control.get("/v1/config").json()

    assert (reverted.status, reverted.json()["applied"]) == (200, True)
    assert state["config"]["pools"][0]["queue"]["capacity"] == 64
    assert state["revision"] == 3


@pytest.mark.req("ORCH-3031")
def test_nothing_to_revert_is_409(control: HttpProbe) -> None:
    answer = control.post("/v1/config/revert")

    assert (answer.status, answer.json()["code"]) == (409, "INVALID_PARAMS")


@pytest.mark.req("ORCH-3031", "ORCH-3030")
def test_a_file_with_findings_is_refused_by_name_and_changes_nothing(
    service: ServiceProcess, control: HttpProbe
) -> None:
    rewrite(service, queue={"capacity": 0}, sampler_profile_version="nope")

    status, envelope = reload(control)
    state = control.get("/v1/config").json()

    assert status == 400
    assert "pools[0].queue.capacity" in envelope["message"]
    assert (state["revision"], state["config"]["pools"][0]["queue"]["capacity"]) == (1, 64)
    assert service.metric("config_reloads_total", outcome="rejected") == 1


@pytest.mark.req("ORCH-3031")
def test_a_key_that_needs_a_restart_is_refused_with_all_the_rest(
    service: ServiceProcess, control: HttpProbe
) -> None:
    service.config["journal"] = {"sync": "off"}
    rewrite(service, queue={"capacity": 1})

    status, envelope = reload(control)
    state = control.get("/v1/config").json()

    assert (status, "journal.sync" in envelope["message"]) == (409, True)
    assert state["config"]["pools"][0]["queue"]["capacity"] == 64


@pytest.mark.req("ORCH-3031", "OC-CTRL-2041")
def test_sighup_reloads_and_new_keys_open_the_door(service: ServiceProcess, tmp_path: Path) -> None:
    hashed = subprocess.run(
        [sys.executable, "-m", "orch_cli.main", "keys", "hash"],
        input=b"a-key-that-came-later",
        capture_output=True,
        check=True,
        timeout=60,
    )
    key_hmac = hashed.stdout.decode().strip()
    service.config["auth"]["keys"].append(
        {"id": "late", "tenant": "acme", "roles": ["data"], "key_hmac": key_hmac}
    )
    rewrite(service)
    with service.probe("a-key-that-came-later") as late:
        before = late.get("/v1/capabilities").status
        os.kill(service.pid, signal.SIGHUP)
        service.wait_log("config.applied")
        after = late.get("/v1/capabilities").status
    with service.probe(CONTROL_KEY) as control:
        shown = control.get("/v1/config").body.decode()

    assert (before, after) == (403, 200)
    assert key_hmac not in shown + service.log_text()


@pytest.mark.req("ORCH-3031")
def test_a_pool_comes_serves_and_goes_and_nobody_loses_a_task(
    engine: GatedEngine, service: ServiceProcess, control: HttpProbe, probe: HttpProbe
) -> None:
    other_model = "file:/models/other.gguf"
    with GatedEngine(slots=1) as other:
        pools = list(service.config["pools"])
        service.config["pools"] = [
            *pools,
            external_pool(other.url, pool_id="p1", model=other_model),
        ]
        rewrite(service)
        added = reload(control)[1]["changes"]
        service.wait_metric("replica_ready", 1, pool_id="p1")
        other.hold(1)
        document = task(other_model, max_tokens=3)
        admitted = probe.post("/v1/tasks", document).status
        other.wait_busy(1)

        service.config["pools"] = pools
        rewrite(service)
        removed = reload(control)[1]["changes"]
        refused = probe.post("/v1/tasks", task(other_model)).status
        other.allow()
        events = probe.stream(document["task_id"]).rest()
        wait_until(lambda: control.get("/v1/pools/p1/health").status == 404, 10, "p1 is gone")

    assert [(c["key"], c["effect"]) for c in added] == [("pools[p1]", "add")]
    assert [(c["key"], c["effect"]) for c in removed] == [("pools[p1]", "remove")]
    assert (admitted, refused) == (202, 503)
    assert events[-1].name == "end"


@pytest.mark.req("ORCH-3031")
def test_an_engine_elsewhere_is_exchanged_while_its_task_ends_and_others_wait(
    engine: GatedEngine, service: ServiceProcess, control: HttpProbe, probe: HttpProbe
) -> None:
    with GatedEngine(slots=1) as successor:
        engine.hold(1)
        running, waiting = task(MODEL, max_tokens=3, seed=1), task(MODEL, max_tokens=3, seed=2)
        for document in (running, waiting):
            assert probe.post("/v1/tasks", document).status == 202
        engine.wait_busy(1)
        rewrite(service, replicas=[{"id": "r0", "url": successor.url}])

        changes = reload(control)[1]["changes"]
        busy, envelope = reload(control)
        rewrite(service, ctx=4096)
        conflict, why = reload(control)
        drained = control.post("/v1/pools/p0/drain", {"deadline_ms": 1000}).status
        engine.allow()
        first = probe.stream(running["task_id"]).rest()
        second = probe.stream(waiting["task_id"]).rest()

    assert [(c["key"], c["effect"]) for c in changes] == [("pools[p0].replicas[r0].url", "replace")]
    assert (busy, envelope["changes"]) == (200, [])
    assert (conflict, "still under way" in why["message"]) == (409, True)
    assert drained == 409
    assert [events[-1].name for events in (first, second)] == ["end", "end"]
    assert [len(e.decodes) for e in (engine, successor)] == [1, 1]


@pytest.mark.req("ORCH-3031")
def test_new_engines_elsewhere_serve_before_the_old_ones_go(
    engine: GatedEngine, service: ServiceProcess, control: HttpProbe, probe: HttpProbe
) -> None:
    with GatedEngine(slots=1) as successor:
        engine.hold(1)
        running, next_one = task(MODEL, max_tokens=3, seed=1), task(MODEL, max_tokens=3, seed=2)
        assert probe.post("/v1/tasks", running).status == 202
        engine.wait_busy(1)
        rewrite(service, replicas=[{"id": "r1", "url": successor.url}])

        reload(control)
        service.wait_metric("replica_ready", 1, replica_id="r1")
        assert probe.post("/v1/tasks", next_one).status == 202
        quick = probe.stream(next_one["task_id"]).rest()  # while the old one still decodes
        engine.allow()
        slow = probe.stream(running["task_id"]).rest()

    assert [events[-1].name for events in (quick, slow)] == ["end", "end"]
    assert [len(e.decodes) for e in (engine, successor)] == [1, 1]


@pytest.mark.req("ORCH-3031")
def test_the_command_shows_what_changes_and_what_it_takes(
    service: ServiceProcess,
) -> None:
    rewrite(service, queue={"capacity": 7})
    environment = os.environ | {
        "LLAMA_ORCH_URL": f"http://127.0.0.1:{service.port}",
        "LLAMA_ORCH_API_KEY": CONTROL_KEY,
    }

    def run(*words: str) -> subprocess.CompletedProcess[bytes]:
        command = [sys.executable, "-m", "orch_cli.main", "config", *words]
        return subprocess.run(
            command, env=environment, capture_output=True, timeout=60, check=False
        )

    dry, applied = run("reload", "--dry-run"), run("reload", "--json")
    shown = yaml.safe_load(run("show").stdout)
    reverted = run("revert")

    assert dry.returncode == applied.returncode == reverted.returncode == 0
    assert b"not applied (dry run)" in dry.stdout
    assert json.loads(applied.stdout)["changes"][0]["key"] == "pools[p0].queue.capacity"
    assert shown["pools"][0]["id"] == POOL
    assert shown["pools"][0]["queue"]["capacity"] == 7
    assert b"in force at once" in reverted.stdout
