"""What a changed configuration does to engines that we run ourselves, with a real model."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness_kit.http_probe import HttpProbe, task, text_of
from harness_kit.service_process import CONTROL_KEY, ServiceProcess, launched_pool
from harness_kit.waiting import wait_until
from pool_managerd.model_files import find_model

BUILTIN = "builtin:smollm2"
# Loading the model a second time while others use the cores.
SLOW_S = 60.0


@pytest.fixture
def service(tmp_path: Path) -> Iterator[ServiceProcess]:
    with ServiceProcess(tmp_path, launched_pool(1)) as running:
        yield running


def reload(service: ServiceProcess, **pool: Any) -> list[tuple[str, str]]:
    """Change the pool in the file and have it read; (key, effect) of what changed."""
    service.config["pools"] = [service.config["pools"][0] | pool]
    service.config_path.write_text(yaml.safe_dump(service.config), encoding="utf-8")
    with service.probe(CONTROL_KEY) as control:
        answer = control.post("/v1/config/reload", {})
    assert answer.status == 200, answer
    return [(change["key"], change["effect"]) for change in answer.json()["changes"]]


def health(service: ServiceProcess) -> dict[str, Any]:
    with service.probe(CONTROL_KEY) as control:
        document: dict[str, Any] = control.get("/v1/pools/p0/health").json()
    return document


def run(probe: HttpProbe, **fields: Any) -> str:
    document = task(BUILTIN, max_tokens=12, ctx=256, **fields)
    answer = probe.post("/v1/tasks", document)
    assert answer.status == 202, answer
    events = probe.stream(document["task_id"]).rest()
    assert events[-1].name == "end"
    return text_of(events)


@pytest.mark.req("ORCH-3031", "ORCH-2102")
def test_another_model_in_the_file_is_reloaded_beside_the_old_one(
    service: ServiceProcess, tmp_path: Path
) -> None:
    copy = tmp_path / "another.gguf"
    shutil.copy(find_model(BUILTIN).path, copy)
    old_engines = service.engine_pids()
    with service.probe() as probe:
        before = run(probe)

        changes = reload(service, model=f"file:{copy}")
        meanwhile = run(probe)  # by the name that the pool has had from the start
        wait_until(
            lambda: health(service).get("reload", {}).get("phase") == "done", SLOW_S, "it is done"
        )
        after = run(probe)

    assert changes == [("pools[p0].model", "replace")]
    assert before == meanwhile == after  # the same file under another name
    assert health(service)["model_ref"] == f"file:{copy}"
    assert not set(service.engine_pids().values()) & set(old_engines.values())


@pytest.mark.req("ORCH-3031", "OC-POOL-3020")
def test_engines_of_other_settings_replace_the_old_ones_which_end_what_they_run(
    service: ServiceProcess,
) -> None:
    (old_pid,) = service.engine_pids().values()
    with service.probe() as probe:
        document = task(BUILTIN, max_tokens=100, ctx=512)
        assert probe.post("/v1/tasks", document).status == 202
        stream = probe.stream(document["task_id"])
        stream.take(5)

        changes = reload(service, ctx=512, launch={"count": 2, "args": ["--parallel", "1"]})
        events = stream.rest()
        service.wait_metric("replica_ready", 2, SLOW_S)
        answer = run(probe)

    assert {effect for _, effect in changes} == {"replace"}
    assert events[-1].name == "end"
    assert answer
    assert service.metric("slots") == 2
    assert not os.path.exists(f"/proc/{old_pid}")
