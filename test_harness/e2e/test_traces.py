"""Traces over OTLP from the real service: from the caller's span to the engine's header."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import task
from harness_kit.service_process import MODEL, ServiceProcess, external_pool
from harness_kit.trace_collector import TraceCollector
from harness_kit.waiting import wait_until

TOKEN = "collector-token-5b0e6f1c"
CALLER = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
UNSAMPLED = "00-5cf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00"


@dataclass(frozen=True)
class Stage:
    service: ServiceProcess
    engines: tuple[GatedEngine, GatedEngine]
    collector: TraceCollector

    def finish(self, traceparent: str = "", **fields: object) -> str:
        """A task that has run to its end."""
        document = task(MODEL, **fields)
        headers = {"traceparent": traceparent} if traceparent else {}
        with self.service.probe() as probe:
            answer = probe.post(
                "/v1/tasks", document, X_Correlation_Id=f"c-{document['task_id']}", **headers
            )
            assert answer.status == 202, answer.body
            probe.stream(document["task_id"]).rest()
        return str(document["task_id"])

    def traced(self, task_id: str, count: int) -> None:
        """Wait until that many spans of a task have arrived."""
        wait_until(lambda: len(self.collector.of_task(task_id)) >= count, 10, "its spans arrive")


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    with (
        pytest.MonkeyPatch.context() as environment,
        TraceCollector() as collector,
        GatedEngine() as one,
        GatedEngine() as two,
    ):
        environment.setenv("LLAMA_ORCH_TEST_OTLP", f"authorization={TOKEN}")
        tracing = {"endpoint": collector.endpoint, "headers_env": "LLAMA_ORCH_TEST_OTLP"}
        pool = external_pool(one.url, two.url)
        directory = tmp_path_factory.mktemp("traces")
        with ServiceProcess(directory, pool, tracing=tracing) as service:
            yield Stage(service, (one, two), collector)


@pytest.mark.req("ORCH-2009", partial="traces")
def test_a_task_is_one_trace_from_admission_to_its_end(stage: Stage) -> None:
    task_id = stage.finish()

    stage.traced(task_id, 3)

    root, queue, decode = stage.collector.of_task(task_id)
    assert (root.name, queue.name, decode.name) == ("task", "queue", "decode")
    assert {queue.trace_id, decode.trace_id} == {root.trace_id}
    assert root.parent_id == ""
    assert root.begin_ms <= queue.begin_ms <= queue.end_ms == decode.begin_ms
    assert decode.end_ms == root.end_ms
    assert decode.events == ("first token",)
    said = root.attributes
    assert said["llama_orch.correlation_id"] == f"c-{task_id}"
    assert said["llama_orch.outcome"] == "completed"
    assert said["gen_ai.usage.output_tokens"] == 8
    assert decode.attributes["llama_orch.replica_id"] in ("r0", "r1")
    assert root.error == ""


def test_the_caller_s_trace_goes_on_down_to_the_engine(stage: Stage) -> None:
    task_id = stage.finish(CALLER)

    stage.traced(task_id, 3)

    root, _, decode = stage.collector.of_task(task_id)
    assert (root.trace_id, root.parent_id) == (CALLER.split("-")[1], CALLER.split("-")[2])
    correlation_id = f"c-{task_id}"
    (seen,) = [
        each
        for engine in stage.engines
        for each in engine.decodes
        if each.headers.get("x-correlation-id") == correlation_id
    ]
    assert seen.headers["traceparent"] == f"00-{root.trace_id}-{decode.span_id}-01"


def test_a_caller_that_is_not_sampled_gets_no_trace(stage: Stage) -> None:
    silent = stage.finish(UNSAMPLED)
    loud = stage.finish()

    stage.traced(loud, 3)  # spans leave in order: those of the first would be here

    assert stage.collector.of_task(silent) == []


def test_an_attempt_that_lost_its_worker_is_a_span_of_its_own(stage: Stage) -> None:
    for engine in stage.engines:
        engine.hold(3)
    document = task(MODEL)
    with stage.service.probe() as probe:
        assert probe.post("/v1/tasks", document).status == 202
        wait_until(lambda: any(e.busy for e in stage.engines), 10, "it runs")
        next(engine for engine in stage.engines if engine.busy).break_decodes()
        for engine in stage.engines:
            engine.allow()
        probe.stream(document["task_id"]).rest()

    stage.traced(document["task_id"], 4)

    root, *stages = stage.collector.of_task(document["task_id"])
    decodes = [each for each in stages if each.name == "decode"]
    assert len(decodes) == 2
    assert decodes[0].span_id != decodes[1].span_id
    assert decodes[0].end_ms <= decodes[1].begin_ms
    assert root.attributes["llama_orch.failovers"] == 1


def test_what_fails_says_so(stage: Stage) -> None:
    for engine in stage.engines:
        engine.hold(3)
    document = task(MODEL, determinism="best_effort")
    with stage.service.probe() as probe:
        assert probe.post("/v1/tasks", document).status == 202
        stream = probe.stream(document["task_id"])
        stream.until("token")
        next(engine for engine in stage.engines if engine.busy).break_decodes()
        stream.rest()
    for engine in stage.engines:
        engine.allow()

    stage.traced(document["task_id"], 1)

    assert stage.collector.of_task(document["task_id"])[0].error == "WORKER_RESET"


def test_neither_prompt_nor_the_collector_s_token_is_in_a_span_or_a_log(stage: Stage) -> None:
    task_id = stage.finish(prompt="a prompt of nobody's business")

    stage.traced(task_id, 3)

    everything = repr(stage.collector.spans) + stage.service.log_text()
    assert "nobody's business" not in everything
    assert TOKEN not in everything
    assert stage.collector.headers[-1]["authorization"] == TOKEN


def test_a_collector_that_is_away_costs_no_task(
    stage: Stage, tmp_path_factory: pytest.TempPathFactory
) -> None:
    pool = external_pool(stage.engines[0].url)
    tracing = {"endpoint": "http://127.0.0.1:9/v1/traces"}
    directory = tmp_path_factory.mktemp("away")
    with ServiceProcess(directory, pool, tracing=tracing) as service:
        away = Stage(service, stage.engines, stage.collector)

        away.finish()

        status = service.stop()
    assert status == 0
