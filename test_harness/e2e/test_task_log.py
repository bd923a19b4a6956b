"""One task through the JSON log: queued, started, moved by a failover, ended; every field is there.

The fields are copied from the text of ORCH-3027 and ORCH-3094; their values are what the client
sent, what the operator configured, what the scripted engines say and what the client's own clock
bounds.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import Event, HttpProbe, task
from harness_kit.model_files import gguf_bytes, llama_metadata
from harness_kit.service_process import MODEL, POOL, ServiceProcess, external_pool

CTX = 64  # KV for 64 tokens in an engine of one slot: of two sessions with 32 each
TRACE = "one-task-through-the-log"
PROMPT = "six words that nobody else has"
TOKENS, SHOWN = 12, 3  # of them its first replica decodes so many

# As ORCH-3027 lists them; the last two are of an engine, on the lines of its replica.
FIELDS = """job_id, session_id, client_id, engine, pool_id, replica_id, model_id, quant, ctx,
tensor_split, engine_version, sampler_profile_version, kv_warmth, queue_time_ms, decode_time_ms,
tokens_in, tokens_out, eviction_events, oom_events, driver_reset_events"""


@dataclass(frozen=True)
class Followed:
    """The task as its client knows it, and all lines that name it. Times by the client's clock."""

    document: dict[str, Any]
    promise: dict[str, Any]
    started: Event
    waited_ms_min: float
    decoded_ms_min: float
    took_ms: float
    lines: list[dict[str, Any]]
    service: ServiceProcess

    def line(self, event: str) -> dict[str, Any]:
        (found,) = (line for line in self.lines if line["event"] == event)
        return found


@pytest.fixture(scope="module")
def followed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Followed]:
    """On r1 three sessions push one out; a fourth keeps it busy and pushes out another, while the
    task waits for r0, which dies under it: it ends on r1."""
    directory = tmp_path_factory.mktemp("followed")
    model = directory / "two-layers.gguf"
    model.write_bytes(gguf_bytes(llama_metadata()))
    with engine_of(model) as first, engine_of(model) as second:
        first.loading = True
        pool = external_pool(first.url, second.url, ctx=CTX, devices=[0, 1], tensor_split=[3, 1])
        with ServiceProcess(directory, pool) as service, service.probe() as probe:
            for _ in range(3):
                probe.stream(submitted(probe)).rest()
            second.hold(1)
            neighbour = submitted(probe)
            second.wait_busy(1)
            first.hold(SHOWN)
            yield follow(service, probe, first, second, neighbour)


def engine_of(model: Path) -> GatedEngine:
    return GatedEngine(slots=1, ctx=CTX, model_path=str(model))


def submitted(probe: HttpProbe) -> str:
    """A task that leaves the KV of 32 tokens, in a session of its own."""
    document = task(MODEL, ctx=CTX, prompt="a b c d", max_tokens=28)
    return str(probe.submit(document).json()["task_id"])


def follow(
    service: ServiceProcess,
    probe: HttpProbe,
    first: GatedEngine,
    second: GatedEngine,
    neighbour: str,
) -> Followed:
    document = task(
        MODEL, ctx=CTX, prompt=PROMPT, max_tokens=TOKENS, priority="batch", deadline_ms=50_000
    )
    began_s = time.monotonic()
    promise = probe.post("/v1/tasks", document, X_Correlation_Id=TRACE).json()
    promised_s = time.monotonic()
    service.wait_log("task.admitted", correlation_id=TRACE)
    first.loading = False
    waited_s = time.monotonic() - promised_s
    with service.probe() as reader:
        stream = reader.stream(document["task_id"])
        started = stream.until("started")
        stream.take(SHOWN)
        decoding_s = time.monotonic()
        second.allow()
        probe.stream(neighbour).rest()
        decoded_s = time.monotonic() - decoding_s
        first.crash()
        assert stream.until("end").data["tokens_out"] == TOKENS
        took_s = time.monotonic() - began_s
    service.wait_log("task.ended", job_id=document["task_id"])
    lines = [line for line in service.log_lines() if line.get("correlation_id") == TRACE]
    times_ms = (waited_s * 1000, decoded_s * 1000, took_s * 1000)
    return Followed(document, promise, started, *times_ms, lines, service)


@pytest.mark.req("ORCH-3027", "ORCH-3094", "ORCH-2009", "OC-CORE-1040")
def test_the_end_of_a_task_carries_every_field_with_its_value(
    followed: Followed,
) -> None:
    expected = {
        "job_id": followed.document["task_id"],
        "session_id": followed.document["session_id"],
        "client_id": "client",
        "tenant_id": "acme",
        "correlation_id": TRACE,
        "engine": "llamacpp",
        "pool_id": POOL,
        "replica_id": "r1",
        "model_id": MODEL,
        "quant": "q4_1",
        "ctx": CTX,
        "tensor_split": [3, 1],
        "engine_version": "llama.cpp gated-1",
        "sampler_profile_version": "v1",
        "kv_warmth": False,
        "tokens_in": 6,
        "tokens_out": TOKENS,
        "eviction_events": 2,
        "oom_events": 0,
        "driver_reset_events": 0,
        "priority": "batch",
        "weight": 1,
        "deadline_ms": 50_000,
        "on_time_probability": 1.0,
        "preempted": False,
        "failovers": 1,
        "outcome": "completed",
    }
    states = followed.service.log_lines("replica.state")

    replica = [line for line in states if line["replica_id"] == "r1"][-1]
    shown = replica | followed.line("task.ended")

    assert {name.strip() for name in FIELDS.split(",")} <= shown.keys()
    assert {name: shown[name] for name in expected} == expected
    assert followed.waited_ms_min - 1 <= shown["queue_time_ms"] <= followed.took_ms + 1
    assert followed.decoded_ms_min - 1 <= shown["decode_time_ms"] <= followed.took_ms + 1


@pytest.mark.req("ORCH-3027", "ORCH-3094")
def test_every_line_of_a_task_names_it_and_where_it_is(followed: Followed) -> None:
    same = ["job_id", "session_id", "client_id", "tenant_id", "engine", "pool_id", "model_id"]
    same += ["quant", "ctx", "tensor_split", "sampler_profile_version", "priority", "deadline_ms"]
    ended = followed.line("task.ended")

    assert [line["event"] for line in followed.lines] == [
        "task.admitted",
        "task.dispatched",
        "task.worker_lost",
        "task.resumed",
        "task.failed_over",
        "task.ended",
    ]
    assert [line["replica_id"] for line in followed.lines] == ["", "r0", "r0", "r1", "r1", "r1"]
    for line in followed.lines:
        assert {name: line[name] for name in same} == {name: ended[name] for name in same}


@pytest.mark.req("ORCH-3029", "OC-CTRL-2050")
def test_the_admission_line_the_202_and_started_promise_the_same(followed: Followed) -> None:
    admitted = followed.line("task.admitted")

    assert 0 <= admitted["on_time_probability"] <= 1
    promise = {name: admitted[name] for name in ("queue_position", "predicted_start_ms")}
    assert promise == followed.started.data
    assert promise.items() <= followed.promise.items()
    assert promise["queue_position"] == 0
    assert promise["predicted_start_ms"] > 0
