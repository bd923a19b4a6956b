"""A collector of OpenTelemetry traces, as far as a test needs one: OTLP over HTTP, in memory.

It decodes what arrives with the protocol's own messages. Invariant: `spans` has everything that was
accepted, in order; the headers of each export are kept.
"""

from __future__ import annotations

import gzip
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any, Self

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import (
    ExportTraceServiceRequest,
    ExportTraceServiceResponse,
)


@dataclass(frozen=True, slots=True)
class CollectedSpan:
    """One span; ids in hex, "" for no parent; times in milliseconds."""

    name: str
    kind: int
    trace_id: str
    span_id: str
    parent_id: str
    begin_ms: float
    end_ms: float
    attributes: dict[str, Any]
    events: tuple[str, ...]
    error: str


class TraceCollector:
    """Listens on 127.0.0.1 while used as a context."""

    def __init__(self) -> None:
        self.spans: list[CollectedSpan] = []
        self.headers: list[dict[str, str]] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                if self.headers.get("Content-Encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.headers.append({k.lower(): v for k, v in self.headers.items()})
                collector.spans += _spans(ExportTraceServiceRequest.FromString(body))
                answer = ExportTraceServiceResponse().SerializeToString()
                self.send_response(200)
                self.send_header("Content-Type", "application/x-protobuf")
                self.send_header("Content-Length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

            def log_message(self, format: str, *args: Any) -> None:
                del format, args

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self._server.server_port}/v1/traces"

    def of_task(self, task_id: str) -> list[CollectedSpan]:
        """The spans of a task's trace, its own first."""
        own = [s for s in self.spans if s.attributes.get("llama_orch.task_id") == task_id]
        return own + [s for s in self.spans if own and s.parent_id == own[0].span_id]

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def _spans(request: ExportTraceServiceRequest) -> list[CollectedSpan]:
    return [
        CollectedSpan(
            name=span.name,
            kind=span.kind,
            trace_id=span.trace_id.hex(),
            span_id=span.span_id.hex(),
            parent_id=span.parent_span_id.hex(),
            begin_ms=span.start_time_unix_nano / 1e6,
            end_ms=span.end_time_unix_nano / 1e6,
            attributes={
                each.key: getattr(each.value, each.value.WhichOneof("value"))
                for each in span.attributes
            },
            events=tuple(event.name for event in span.events),
            error=span.status.message,
        )
        for resource in request.resource_spans
        for scope in resource.scope_spans
        for span in scope.spans
    ]
