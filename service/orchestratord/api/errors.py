"""Outcomes to HTTP: the one place that knows which refusal has which status (ORCH-2006)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, assert_never

import msgspec

from orchestrator_core.errors import Code, Reason, Refusal
from orchestratord.api.http_server import Headers

# What a 503 or 429 without a better figure says: one second.
DEFAULT_RETRY_AFTER_MS = 1000


class HttpError(Exception):
    """A request that ends in an error envelope; raised and caught within the api layer."""

    def __init__(
        self,
        status: int,
        code: Code,
        message: str,
        *,
        retriable: bool = False,
        headers: tuple[tuple[bytes, bytes], ...] = (),
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.message = message
        self.retriable = retriable
        self.headers = headers


@dataclass(frozen=True, slots=True)
class ErrorResponse:
    status: int
    headers: Headers
    body: bytes


def invalid(message: str, status: int = 400) -> HttpError:
    """INVALID_PARAMS; the message names the field."""
    return HttpError(status, Code.INVALID_PARAMS, message)


def status_of(refusal: Refusal) -> int:
    """The pinned status of every code (interfaces: HTTP)."""
    match refusal.code:
        case Code.INVALID_PARAMS:
            return 400
        case Code.ADMISSION_REJECT | Code.QUEUE_FULL_DROP_LRU | Code.DEADLINE_UNMET:
            return 429
        case Code.MODEL_DEPRECATED:
            return 409
        case Code.UNTRUSTED_ARTIFACT:
            return 422
        case Code.POOL_UNREADY | Code.POOL_UNAVAILABLE | Code.REPLICA_EXHAUSTED:
            return 503
        case Code.DECODE_TIMEOUT:
            return 504
        case Code.WORKER_RESET:
            return 502
        case Code.INTERNAL:
            return 500
        case _:
            assert_never(refusal.code)


def refusal_response(refusal: Refusal) -> ErrorResponse:
    """Status, backpressure headers and envelope of a refusal."""
    status = status_of(refusal)
    retry_after_ms = refusal.retry_after_ms
    if status in (429, 503) and retry_after_ms is None:
        retry_after_ms = DEFAULT_RETRY_AFTER_MS if refusal.retriable or status == 503 else 0
    envelope: dict[str, Any] = {
        "code": refusal.code.value,
        "message": refusal.message,
        "retriable": refusal.retriable,
    }
    if refusal.engine is not None:
        envelope["engine"] = refusal.engine
    if refusal.pool_id is not None:
        envelope["pool_id"] = refusal.pool_id
    if retry_after_ms is not None and refusal.retriable:
        envelope["retry_after_ms"] = retry_after_ms
    label = refusal.policy_label
    if label is None and refusal.reason is Reason.DEADLINE:
        label = Reason.DEADLINE.value
    if label is not None:
        envelope["policy_label"] = label
    headers: Headers = []
    if status in (429, 503):
        headers = backpressure_headers(retry_after_ms or 0)
    return ErrorResponse(status, headers, msgspec.json.encode(envelope))


def backpressure_headers(retry_after_ms: int) -> Headers:
    """Retry-After in whole seconds, rounded up, and X-Backoff-Ms (ORCH-2007)."""
    return [
        (b"retry-after", b"%d" % -(-retry_after_ms // 1000)),
        (b"x-backoff-ms", b"%d" % retry_after_ms),
    ]


def error_response(error: HttpError) -> ErrorResponse:
    envelope: dict[str, Any] = {
        "code": error.code.value,
        "message": error.message,
        "retriable": error.retriable,
    }
    if error.retriable:
        envelope["retry_after_ms"] = DEFAULT_RETRY_AFTER_MS
    headers: Headers = list(error.headers)
    if error.status in (429, 503):
        headers += backpressure_headers(DEFAULT_RETRY_AFTER_MS)
    return ErrorResponse(error.status, headers, msgspec.json.encode(envelope))
