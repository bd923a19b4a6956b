"""Wire to domain for tasks: a decoded `TaskRequest` becomes a `Draft`, a promise becomes a 202.

Requirements: ORCH-2001, ORCH-2003, ORCH-3024, ORCH-3029.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import parse_qs

import msgspec
from msgspec import UnsetType

from orchestrator_core.task import Determinism, Priority, Workload
from orchestratord.api.errors import invalid
from orchestratord.api.http_server import Headers
from orchestratord.api.keys import Principal
from orchestratord.services.drafts import NO_OVERRIDE, Draft, Message, SamplingOverride
from orchestratord.services.jobs import Job
from orchqueue_v1.types import SamplingParams, TaskRequest

_decoder = msgspec.json.Decoder(TaskRequest)
_encoder = msgspec.json.Encoder()
_AT = re.compile(r"^(?P<what>.*?)(?: - at `\$\.?(?P<where>[^`]*)`)?$", re.DOTALL)
_FIELD = re.compile(r"(?:unknown|required) field `(?P<field>[^`]+)`")
_UUID = re.compile(r"^[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
# The contract's words are ours; calling an enumeration costs ten times a look-up.
_WORKLOADS = {workload.value: workload for workload in Workload}
_PRIORITIES = {priority.value: priority for priority in Priority}
_DETERMINISMS = {determinism.value: determinism for determinism in Determinism}
T = TypeVar("T")


def decode_task(body: bytes) -> TaskRequest:
    """The request in a body. Raises `HttpError` 400 that names the field."""
    try:
        return _decoder.decode(body)
    except msgspec.ValidationError as error:
        raise invalid(field_message(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"body: not valid JSON in UTF-8: {error}") from None


def field_message(error: msgspec.ValidationError) -> str:
    """msgspec's message with the field in front: `max_tokens: expected int, got str`."""
    found = _AT.match(str(error))
    assert found is not None
    what, where = found["what"], found["where"] or ""
    named = _FIELD.search(what)
    if named is not None:
        where = f"{where}.{named['field']}" if where else named["field"]
    what = what[:1].lower() + what[1:]
    return f"{where or 'body'}: {what}"


def known_id(text: str | None) -> str:
    """A path's id in its canonical form. Raises `HttpError` 404 where it cannot exist."""
    if text is None or _UUID.match(text) is None:
        raise invalid("id: no such id", status=404)
    return text.lower()


def asked_tenant(query: bytes) -> str | None:
    """The tenant that a query names, None where it names none; others of its fields are ignored."""
    fields = parse_qs(query.decode("latin-1"), keep_blank_values=True)
    return fields["tenant"][0] if "tenant" in fields else None


def _set(value: T | UnsetType) -> T | None:
    return None if isinstance(value, UnsetType) else value


def draft_of(
    request: TaskRequest, principal: Principal, correlation_id: str, traceparent: str = ""
) -> Draft:
    """What is asked, in domain words. Raises `HttpError` 400 where fields do not fit together."""
    request.task_id = request.task_id.lower()  # case means nothing, also for "the same body"
    request.session_id = request.session_id.lower()
    prompt, messages, inputs = _set(request.prompt), _set(request.messages), _set(request.inputs)
    if request.workload == "completion":
        if (prompt is None) == (messages is None):
            raise invalid("prompt: a completion needs either prompt or messages")
        if inputs is not None:
            raise invalid("inputs: a completion takes prompt or messages, not inputs")
    else:
        if inputs is None:
            raise invalid(f"inputs: an {request.workload} needs inputs".replace("an r", "a r"))
        if messages is not None:
            raise invalid(f"messages: no use for a workload of {request.workload}")
        if request.workload == "rerank" and prompt is None:
            if len(inputs) < 2:
                raise invalid("inputs: a rerank needs a query (prompt, or the first of inputs)")
            prompt, inputs = inputs[0], inputs[1:]
    return Draft(
        tenant=principal.tenant,
        client_id=principal.id,
        correlation_id=correlation_id,
        traceparent=traceparent,
        body_digest=hashlib.blake2b(_encoder.encode(request), digest_size=16).digest(),
        task_id=request.task_id,
        session_id=request.session_id,
        workload=_WORKLOADS[request.workload],
        model_ref=request.model_ref,
        engine=request.engine,
        ctx=request.ctx,
        priority=_PRIORITIES[request.priority],
        max_tokens=request.max_tokens,
        deadline_ms=request.deadline_ms,
        determinism=_DETERMINISMS[_set(request.determinism) or "strict"],
        seed=_set(request.seed),
        sampler_profile_version=_set(request.sampler_profile_version),
        prompt=prompt,
        messages=tuple(Message(m.role, m.content) for m in messages or ()),
        inputs=tuple(inputs or ()),
        expected_tokens=_set(request.expected_tokens),
        kv_hint=_set(request.kv_hint),
        sampling=_sampling(_set(request.sampling)),
    )


def _sampling(params: SamplingParams | None) -> SamplingOverride:
    if params is None:
        return NO_OVERRIDE
    stop = _set(params.stop)
    return SamplingOverride(
        temperature=_set(params.temperature),
        top_p=_set(params.top_p),
        top_k=_set(params.top_k),
        min_p=_set(params.min_p),
        repeat_penalty=_set(params.repeat_penalty),
        stop=None if stop is None else tuple(stop),
    )


def admission_body(job: Job) -> bytes:
    """The body of the 202."""
    promise = job.promise
    return b'{"task_id":"%b","queue_position":%d,"predicted_start_ms":%d,"backoff_ms":%d}' % (
        job.task_id.encode(),
        promise.queue_position,
        promise.predicted_start_ms,
        promise.backoff_ms,
    )


def queue_headers(job: Job) -> Headers:
    """The optional hints X-Queue-Position and X-Queue-ETA-Ms."""
    return [
        (b"x-queue-position", b"%d" % job.promise.queue_position),
        (b"x-queue-eta-ms", b"%d" % job.promise.predicted_start_ms),
    ]


_BUDGET_HEADERS = {
    "tokens_budget_remaining": (b"x-budget-tokens-remaining", b"%d"),
    "time_budget_remaining_ms": (b"x-budget-time-remaining-ms", b"%d"),
    "cost_budget_remaining": (b"x-budget-cost-remaining", b"%.6g"),
}


def budget_headers(budgets: Mapping[str, int | float]) -> Headers:
    """X-Budget-*: what is left where a budget is set."""
    return [
        (name, shape % budgets[field])
        for field, (name, shape) in _BUDGET_HEADERS.items()
        if field in budgets
    ]


def last_event_id(text: bytes | None) -> int:
    """The value of Last-Event-ID, 0 when absent. Raises `HttpError` 400."""
    if text is None:
        return 0
    text = text.strip()
    if not text.isdigit() or len(text) > 19 or (value := int(text)) > 2**63 - 1:
        raise invalid("Last-Event-ID: expected a whole number of at least 0")
    return value
