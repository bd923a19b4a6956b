"""How long finished logs can be read, and what their end means for the task's id."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import HttpProbe, task, text_of
from harness_kit.service_process import MODEL, ServiceProcess, external_pool
from harness_kit.waiting import wait_until

# A task is counted with 2 KiB beside its text (services.jobs), so some thirty short ones fit.
RETAIN_BYTES = 65_536


def finish(probe: HttpProbe, **fields: Any) -> dict[str, Any]:
    document = task(MODEL, **fields)
    assert probe.post("/v1/tasks", document).status == 202
    assert probe.stream(document["task_id"]).rest()[-1].name == "end"
    return document


def status_of(probe: HttpProbe, document: dict[str, Any]) -> int:
    stream = probe.stream(document["task_id"])
    if stream.status == 200:
        stream.rest()
    else:
        stream.answer()
    return stream.status


@pytest.mark.req("ORCH-3202", partial="all but how long a stream can be read")
@pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
@pytest.mark.req("ORCH-3203", partial="all but one case of a crash")
def test_after_its_retention_a_log_is_gone_for_good_and_its_id_is_free(tmp_path: Path) -> None:
    with GatedEngine() as engine:
        pool, streams = external_pool(engine.url), {"retain_s": 1}
        with ServiceProcess(tmp_path, pool, streams=streams) as service:
            with service.probe() as probe:
                document = finish(probe)
                at_once = status_of(probe, document)
                wait_until(lambda: status_of(probe, document) == 404, 5, "the log is forgotten")
                service.wait_metric("log_bytes_retained", 0)
            service.kill()
            service.restart()
            with service.probe() as probe:
                after_the_crash = status_of(probe, document)
                again = finish(probe, task_id=document["task_id"], max_tokens=3)
                events = probe.stream(again["task_id"]).rest()

    assert at_once == 200
    assert after_the_crash == 404
    assert events[-1].data["tokens_out"] == 3


@pytest.mark.req("ORCH-3202", partial="all but how long a stream can be read")
def test_the_oldest_logs_go_when_their_bytes_are_used_up(tmp_path: Path) -> None:
    with GatedEngine() as engine:
        pool, streams = external_pool(engine.url), {"retain_bytes": RETAIN_BYTES}
        with ServiceProcess(tmp_path, pool, streams=streams) as service, service.probe() as probe:
            documents = [finish(probe) for _ in range(60)]
            wait_until(
                lambda: service.metric("log_bytes_retained") <= RETAIN_BYTES, 5, "some are gone"
            )
            statuses = [status_of(probe, document) for document in documents]

    gone = statuses.count(404)
    assert 20 <= gone <= 40
    assert statuses == [404] * gone + [200] * (60 - gone)


@pytest.mark.req("ORCH-3031", partial="this version says that it cannot reload")
def test_sighup_does_not_end_the_service_or_its_streams(tmp_path: Path) -> None:
    with GatedEngine() as engine, ServiceProcess(tmp_path, external_pool(engine.url)) as service:
        engine.hold(3)
        document = task(MODEL)
        with service.probe() as probe:
            assert probe.post("/v1/tasks", document).status == 202
            stream = probe.stream(document["task_id"])
            events = stream.take(4)
            os.kill(service.pid, signal.SIGHUP)
            service.wait_log("config.unchanged")
            engine.allow()
            events += stream.rest()

    assert events[-1].name == "end"
    assert len(text_of(events)) > 0
