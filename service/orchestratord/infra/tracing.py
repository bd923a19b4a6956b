"""One OpenTelemetry trace per admitted task: what was decided about it, as spans, once it has
ended.

Off the token path: a task's spans are made from its decisions (`services.decisions`), whose times
are known, when it ends; until then a trace costs the task one header towards its engine. The
packages of the extra `tracing` are imported here and nowhere else, and only where a collector is
configured. Invariants: trace and span ids follow from the task's key (or from the `traceparent`
that came with it) and the number of the attempt, so that the engine's spans hang below ours without
any state; a collector that is away costs spans, never a task; no prompt and no token is in a span.
Sources: W3C Trace Context, OpenTelemetry semantic conventions for generative AI. Requirements:
ORCH-2009.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Mapping
from typing import NamedTuple

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SpanExporter
from opentelemetry.sdk.trace.id_generator import IdGenerator
from opentelemetry.sdk.trace.sampling import ALWAYS_ON
from opentelemetry.trace import NonRecordingSpan, SpanContext, SpanKind, Status, StatusCode
from opentelemetry.trace.span import TraceFlags

from orchestrator_core.errors import Code
from orchestratord.services.decisions import Decision, Dispatched
from orchestratord.services.jobs import Job

# Spans that wait for the collector; beyond it the newest are dropped.
MAX_WAITING_SPANS = 4096
EXPORT_DELAY_MS = 1000
# How long an export, and with it the end of the service, may take.
EXPORT_TIMEOUT_S = 3.0

_TRACEPARENT = re.compile(
    r"[0-9a-f]{2}-(?!0{32})([0-9a-f]{32})-(?!0{16})([0-9a-f]{16})-([0-9a-f]{2})"
)
_NS_PER_MS = 1_000_000
_SAMPLED = TraceFlags(TraceFlags.SAMPLED)
_Attributes = dict[str, str | int | float | bool]


class Parent(NamedTuple):
    """The caller's span, from `traceparent`."""

    trace_id: int
    span_id: int
    sampled: bool


class _FixedIds(IdGenerator):
    """Gives the ids that it was told; spans are made one at a time."""

    def __init__(self) -> None:
        self.trace_id = self.span_id = 0

    def generate_trace_id(self) -> int:
        return self.trace_id

    def generate_span_id(self) -> int:
        return self.span_id


class TaskTraces:
    """Makes the traces of ended tasks and hands them to an exporter's own thread."""

    def __init__(self, exporter: SpanExporter, sample_ratio: float, service_version: str) -> None:
        """`sample_ratio`, 0..1, of the tasks whose caller has not decided it."""
        self._bound = round(sample_ratio * 2**64)
        self._ids = _FixedIds()
        self._provider = TracerProvider(
            sampler=ALWAYS_ON,  # decided before a span is made
            resource=Resource.create(
                {"service.name": "llama-orch", "service.version": service_version}
            ),
            id_generator=self._ids,
            span_limits=SpanLimits(max_attribute_length=256),
            shutdown_on_exit=False,
        )
        self._provider.add_span_processor(
            BatchSpanProcessor(
                exporter,
                max_queue_size=MAX_WAITING_SPANS,
                schedule_delay_millis=EXPORT_DELAY_MS,
            )
        )
        self._tracer = self._provider.get_tracer("llama-orch", service_version)

    def traceparent(self, job: Job) -> str:
        """What the engine gets with the attempt that begins now; "" where it is not traced."""
        trace_id = self._trace_id(job)
        if trace_id is None:
            return ""
        return f"00-{trace_id:032x}-{_span_id(job, job.attempts):016x}-01"

    def ended(self, job: Job, outcome: str, code: Code | None) -> None:
        """The task has ended: its spans go to the exporter."""
        trace_id = self._trace_id(job)
        if trace_id is None or not job.decisions:
            return
        ended_ms = job.decisions[-1].at_ms
        parent = parent_of(job.traceparent)
        root = self._span(
            "task", trace_id, parent.span_id if parent else 0, _span_id(job, 0),
            (job.task.arrived_ms, ended_ms), _task_attributes(job, outcome), SpanKind.SERVER, code,
        )  # fmt: skip
        for number, stage in enumerate(_stages(job), 1):
            attributes = _decision_attributes(stage.decision)
            span_id = _span_id(job, stage.attempt) if stage.attempt else _span_id(job, -number)
            kind = SpanKind.CLIENT if stage.attempt else SpanKind.INTERNAL
            last = stage.end_ms == ended_ms
            self._span(
                stage.name, trace_id, root, span_id, (stage.begin_ms, stage.end_ms), attributes,
                kind, code if last else None, job.first_token_ms if stage.attempt else 0,
            )  # fmt: skip

    def close(self) -> None:
        """Send what is left, within `EXPORT_TIMEOUT_S` where the collector does not answer."""
        self._provider.shutdown()

    def _trace_id(self, job: Job) -> int | None:
        """The trace of a task; None where it is not sampled (W3C: the last 8 bytes decide)."""
        if (parent := parent_of(job.traceparent)) is not None:
            return parent.trace_id if parent.sampled else None
        trace_id = int.from_bytes(hashlib.sha256(job.task.key.encode()).digest()[:16]) or 1
        return trace_id if trace_id & (2**64 - 1) < self._bound else None

    def _span(
        self,
        name: str,
        trace_id: int,
        parent_id: int,
        span_id: int,
        at_ms: tuple[int, int],
        attributes: _Attributes,
        kind: SpanKind,
        code: Code | None,
        first_token_ms: int = 0,
    ) -> int:
        self._ids.trace_id, self._ids.span_id = trace_id, span_id
        context = trace.set_span_in_context(
            NonRecordingSpan(SpanContext(trace_id, parent_id, True, _SAMPLED))
        )
        begin_ms, end_ms = at_ms
        span = self._tracer.start_span(
            name,
            context if parent_id else Context(),
            kind,
            attributes,
            start_time=begin_ms * _NS_PER_MS,
        )
        if begin_ms <= first_token_ms <= end_ms:
            span.add_event("first token", timestamp=first_token_ms * _NS_PER_MS)
        if code is not None:
            span.set_status(Status(StatusCode.ERROR, code.value))
            span.set_attribute("error.type", code.value)
        span.end(end_ms * _NS_PER_MS)
        return span_id


class _Stage(NamedTuple):
    name: str
    begin_ms: int
    end_ms: int
    decision: Decision
    attempt: int  # 0: it waits


def _stages(job: Job) -> Iterator[_Stage]:
    """From each decision to the next: it waits, or an attempt runs."""
    for decision, following in zip(job.decisions, job.decisions[1:], strict=False):
        attempt = decision.attempt if isinstance(decision, Dispatched) else 0
        name = "decode" if attempt else "queue"
        yield _Stage(name, decision.at_ms, following.at_ms, decision, attempt)


def _task_attributes(job: Job, outcome: str) -> _Attributes:
    task = job.task
    return {
        "llama_orch.correlation_id": job.correlation_id,
        "llama_orch.task_id": job.task_id,
        "llama_orch.session_id": job.session_id,
        "llama_orch.tenant_id": task.tenant,
        "llama_orch.priority": task.priority.value,
        "llama_orch.pool_id": job.pool_id,
        "llama_orch.outcome": outcome,
        "llama_orch.failovers": job.failovers,
        "gen_ai.request.model": task.model_ref,
        "gen_ai.request.max_tokens": task.max_tokens,
        "gen_ai.usage.input_tokens": job.tokens_in,
        "gen_ai.usage.output_tokens": job.log.tokens,
    }


def _decision_attributes(decision: Decision) -> _Attributes:
    values = decision.values() | {"kind": decision.kind, "reason": decision.reason}
    return {
        f"llama_orch.{name}": value
        for name, value in values.items()
        if isinstance(value, str | int | float)
    }


def parent_of(traceparent: str) -> Parent | None:
    """The caller's span; None for no or a malformed header, which begins a trace of its own."""
    found = _TRACEPARENT.match(traceparent)
    if found is None or traceparent.startswith("ff"):
        return None
    return Parent(int(found[1], 16), int(found[2], 16), bool(int(found[3], 16) & 1))


def _span_id(job: Job, number: int) -> int:
    digest = hashlib.sha256(f"{job.task.key} {number}".encode()).digest()
    return int.from_bytes(digest[:8]) or 1


def otlp_exporter(endpoint: str, headers: Mapping[str, str]) -> SpanExporter:
    """Sends spans over HTTP; `headers` may hold a token."""
    return OTLPSpanExporter(endpoint=endpoint, headers=dict(headers), timeout=EXPORT_TIMEOUT_S)
