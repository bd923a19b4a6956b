"""Clients that go away in the middle leave nothing behind: no slot, no task, no file, no memory."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import HttpProbe, numbered, task
from harness_kit.service_process import MODEL, ServiceProcess, external_pool
from harness_kit.waiting import wait_until

CLIENTS = 200
AT_ONCE = 20
SLOTS = 32
# Finished logs are kept on purpose: about 2 KiB a task beside its text. The rest is slack of the
# allocator, which shows within the first round, so the second round is what is measured.
GROWTH_BYTES = 12 * 1024 * 1024


@pytest.fixture(scope="module")
def engine() -> Iterator[GatedEngine]:
    with GatedEngine(slots=SLOTS) as running:
        yield running


def pool(engine: GatedEngine) -> dict[str, object]:
    return external_pool(engine.url, queue={"capacity": 1000, "full_policy": "reject"})


def open_files(service: ServiceProcess) -> int:
    return len(os.listdir(f"/proc/{service.pid}/fd"))


def resident_bytes(service: ServiceProcess) -> int:
    fields = Path(f"/proc/{service.pid}/statm").read_text(encoding="ascii").split()
    return int(fields[1]) * os.sysconf("SC_PAGE_SIZE")


def vanish(service: ServiceProcess, number: int) -> str:
    """Submit a task, read three events and go, politely or not; returns the task's id."""
    document = task(MODEL, max_tokens=30, prompt=f"vanishing {number}")
    with service.probe() as probe:
        assert probe.post("/v1/tasks", document).status == 202
        assert len(probe.stream(document["task_id"]).take(3)) == 3
        if number % 2:
            probe.vanish()
    return str(document["task_id"])


def crowd(service: ServiceProcess, engine: GatedEngine) -> list[str]:
    """Many clients at once vanish; returns the ids of their tasks once all readers are gone."""
    ids: list[str] = []

    def some(first: int) -> None:
        ids.extend(vanish(service, first + n) for n in range(CLIENTS // AT_ONCE))

    threads = [
        threading.Thread(target=some, args=(at * CLIENTS // AT_ONCE,)) for at in range(AT_ONCE)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    service.wait_metric("stream_readers", 0)
    return ids


def idle_files(service: ServiceProcess) -> int:
    """Open files once every client's connection is gone."""
    counts: list[int] = []

    def settled() -> bool:
        counts.append(open_files(service))
        return len(counts) > 5 and len(set(counts[-5:])) == 1

    wait_until(settled, 10, "the number of open files settles")
    return counts[-1]


@pytest.mark.req("ORCH-3017", partial="a cancel by the caller")
@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
@pytest.mark.req("ORCH-3051", partial="priority inversion under load, failover")
def test_two_hundred_clients_that_vanish_leave_no_trace(
    engine: GatedEngine, tmp_path: Path
) -> None:
    engine.allow()
    with ServiceProcess(tmp_path, pool(engine)) as service:
        files = idle_files(service)
        crowd(service, engine)
        engine.wait_busy(0)
        resident = resident_bytes(service)
        ids = crowd(service, engine)
        engine.wait_busy(0)
        files_after, resident_after = idle_files(service), resident_bytes(service)
        with service.probe() as probe:
            ends = [numbered(probe.stream(task_id).rest())[-1] for task_id in ids]
            next_one = task(MODEL)
            assert probe.post("/v1/tasks", next_one).status == 202
            assert probe.stream(next_one["task_id"]).rest()[-1].name == "end"
        busy = service.metric("slots_busy")
        running = service.metric("tasks_running")
        waiting = service.metric("queue_depth")

    assert len(ids) == CLIENTS
    # A task whose reader went is decoded to its end, and can be read.
    assert {(end.name, end.id) for end in ends} == {("end", 32)}
    assert (busy, running, waiting) == (0, 0, 0)
    assert files_after - files <= SLOTS  # connections to the engine, kept for the next tasks
    assert resident_after - resident < GROWTH_BYTES


@pytest.mark.req("ORCH-3017", partial="a cancel by the caller")
@pytest.mark.req("ORCH-3202", partial="another node, which comes with the cluster, and more")
def test_on_disconnect_cancel_ends_the_task_of_the_last_reader_that_goes(
    engine: GatedEngine, tmp_path: Path
) -> None:
    engine.hold(4)
    streams = {"on_disconnect": "cancel"}
    with ServiceProcess(tmp_path, pool(engine), streams=streams) as service:
        document = task(MODEL, max_tokens=30)
        with service.probe() as first, service.probe() as second:
            assert first.post("/v1/tasks", document).status == 202
            for reader in (first, second):
                reader.stream(document["task_id"]).take(3)
            first.vanish()
            service.wait_metric("stream_readers", 1)
            still_runs = engine.busy
            second.vanish()
        engine.wait_busy(0)
        with service.probe() as probe:
            events = numbered(probe.stream(document["task_id"]).rest())
    engine.allow()

    assert still_runs == 1
    assert events[-1].name == "end"
    assert events[-1].data["canceled"] is True
    assert events[-1].data["tokens_out"] == 4


@pytest.mark.req("ORCH-2001", partial="the fields of the 202, and that every check comes first")
@pytest.mark.req("ORCH-3203", partial="all but one case of a crash")
def test_a_client_that_goes_before_its_202_leaves_a_task_that_runs_or_none(
    engine: GatedEngine, tmp_path: Path
) -> None:
    engine.allow()
    with ServiceProcess(tmp_path, pool(engine)) as service:
        documents = [task(MODEL) for _ in range(20)]
        for document in documents:
            with service.probe() as probe:
                _send_and_go(probe, document)
        with service.probe() as probe:
            again = [probe.post("/v1/tasks", document).status for document in documents]
            ends = [probe.stream(d["task_id"]).rest()[-1].name for d in documents]
        failures = [line for line in service.log_lines() if line["level"] == "error"]

    assert set(again) == {202}
    assert set(ends) == {"end"}
    assert failures == []


def _send_and_go(probe: HttpProbe, document: dict[str, object]) -> None:
    body = json.dumps(document).encode()
    probe.send("POST", "/v1/tasks", body, {"Content-Type": "application/json"})
    probe.vanish()
