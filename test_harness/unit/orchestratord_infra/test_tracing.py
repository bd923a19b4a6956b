"""Which tasks are traced, and the spans that their decisions make."""

from __future__ import annotations

import pytest
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from harness_kit.job_builders import job
from orchestratord.configuration.otlp_headers import otlp_headers
from orchestratord.infra.tracing import Parent, TaskTraces, parent_of

TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


def test_a_caller_s_span_is_read_with_what_it_decided() -> None:
    sampled, silent = parent_of(f"00-{TRACE}-{SPAN}-01"), parent_of(f"00-{TRACE}-{SPAN}-02")

    assert sampled == Parent(int(TRACE, 16), int(SPAN, 16), sampled=True)
    assert silent == Parent(int(TRACE, 16), int(SPAN, 16), sampled=False)


@pytest.mark.parametrize(
    "header",
    [
        "",
        "trace",
        f"00-{TRACE}-{SPAN}",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{TRACE.upper()}-{SPAN}-01",
    ],
)
def test_what_is_no_traceparent_begins_a_trace_of_its_own(header: str) -> None:
    assert parent_of(header) is None


@pytest.mark.parametrize(("ratio", "traced"), [(0.0, 0), (1.0, 200)])
def test_none_and_all_are_sampled_exactly(ratio: float, traced: int) -> None:
    assert _traced(ratio) == traced


def test_a_share_is_sampled_and_always_the_same_tasks() -> None:
    first, again = _traced(0.3), _traced(0.3)

    assert first == again
    assert 30 <= first <= 90  # 60 expected of 200; 4.6 standard deviations


def test_an_engine_s_header_names_the_attempt() -> None:
    traces = TaskTraces(InMemorySpanExporter(), 1.0, "0")
    task = job()

    task.attempts = 1
    one, again = traces.traceparent(task), traces.traceparent(task)
    task.attempts = 2
    two = traces.traceparent(task)
    traces.close()

    assert one == again
    assert one[:36] == two[:36]  # one trace
    assert one != two


def _traced(ratio: float) -> int:
    traces = TaskTraces(InMemorySpanExporter(), ratio, "0")
    count = sum(bool(traces.traceparent(job(f"acme/t{number}"))) for number in range(200))
    traces.close()
    return count


def test_a_collector_s_headers_are_pairs() -> None:
    assert otlp_headers("authorization=Bearer a=b, x-team=search,") == {
        "authorization": "Bearer a=b",
        "x-team": "search",
    }


@pytest.mark.parametrize("text", ["", "hunter2", "=value", "name="])
def test_other_texts_are_refused_without_being_quoted(text: str) -> None:
    with pytest.raises(ValueError, match="must hold name=value") as error:
        otlp_headers(text)

    assert "hunter2" not in str(error.value)
