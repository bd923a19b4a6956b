"""Each code has its status, and the envelope says what is known."""

from __future__ import annotations

import json

import pytest

from orchestrator_core.errors import Code, Reason, Refusal
from orchestratord.api.errors import (
    HttpError,
    backpressure_headers,
    error_response,
    invalid,
    refusal_response,
    status_of,
)

# The table of the interface page, by hand.
STATUS = {
    Code.INVALID_PARAMS: 400,
    Code.ADMISSION_REJECT: 429,
    Code.QUEUE_FULL_DROP_LRU: 429,
    Code.DEADLINE_UNMET: 429,
    Code.MODEL_DEPRECATED: 409,
    Code.UNTRUSTED_ARTIFACT: 422,
    Code.POOL_UNREADY: 503,
    Code.POOL_UNAVAILABLE: 503,
    Code.REPLICA_EXHAUSTED: 503,
    Code.DECODE_TIMEOUT: 504,
    Code.WORKER_RESET: 502,
    Code.INTERNAL: 500,
}


@pytest.mark.req("ORCH-2006", "OC-CTRL-2030")
def test_every_code_has_its_status() -> None:
    assert {code: status_of(Refusal(code, Reason.INVALID, "m")) for code in Code} == STATUS


@pytest.mark.req("OC-CTRL-2011")
@pytest.mark.req("ORCH-2007", partial="all but one policy or header")
@pytest.mark.parametrize(
    ("retry_after_ms", "seconds"),
    [(0, b"0"), (1, b"1"), (999, b"1"), (1000, b"1"), (1001, b"2"), (59_001, b"60")],
)
def test_retry_after_is_rounded_up_to_whole_seconds(retry_after_ms: int, seconds: bytes) -> None:
    expected = [(b"retry-after", seconds), (b"x-backoff-ms", str(retry_after_ms).encode())]

    assert backpressure_headers(retry_after_ms) == expected


@pytest.mark.req("ORCH-2006", "OC-CTRL-2031")
@pytest.mark.req("ORCH-2007", partial="all but one policy or header")
def test_the_envelope_says_who_why_and_when_again() -> None:
    refusal = Refusal(
        Code.ADMISSION_REJECT,
        Reason.QUEUE_FULL,
        "full",
        retriable=True,
        retry_after_ms=1500,
        policy_label="reject",
        engine="llamacpp",
        pool_id="p",
    )

    response = refusal_response(refusal)

    assert response.status == 429
    assert dict(response.headers) == {b"retry-after": b"2", b"x-backoff-ms": b"1500"}
    assert json.loads(response.body) == {
        "code": "ADMISSION_REJECT",
        "message": "full",
        "retriable": True,
        "engine": "llamacpp",
        "pool_id": "p",
        "retry_after_ms": 1500,
        "policy_label": "reject",
    }


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
def test_what_is_not_known_is_not_in_the_envelope() -> None:
    response = refusal_response(Refusal(Code.INVALID_PARAMS, Reason.INVALID, "ctx: no"))

    assert response.headers == []
    assert json.loads(response.body) == {
        "code": "INVALID_PARAMS",
        "message": "ctx: no",
        "retriable": False,
    }


@pytest.mark.req("ORCH-2007", partial="all but one policy or header")
def test_an_unmet_deadline_is_labelled_as_such() -> None:
    refusal = Refusal(Code.DEADLINE_UNMET, Reason.DEADLINE, "late", retry_after_ms=10)

    response = refusal_response(refusal)

    body = json.loads(response.body)
    assert body["policy_label"] == "deadline"
    assert "retry_after_ms" not in body, "coming back later does not help"
    assert dict(response.headers)[b"retry-after"] == b"1"


@pytest.mark.req("ORCH-3018", partial="the header")
def test_a_503_without_a_better_figure_says_one_second() -> None:
    response = refusal_response(Refusal(Code.POOL_UNAVAILABLE, Reason.POOL_UNAVAILABLE, "gone"))

    assert dict(response.headers) == {b"retry-after": b"1", b"x-backoff-ms": b"1000"}


def test_a_final_429_asks_for_no_wait() -> None:
    response = refusal_response(Refusal(Code.ADMISSION_REJECT, Reason.BUDGET, "spent"))

    assert dict(response.headers) == {b"retry-after": b"0", b"x-backoff-ms": b"0"}
    assert "retry_after_ms" not in json.loads(response.body)


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
def test_errors_of_the_api_have_the_same_envelope() -> None:
    error = HttpError(
        503, Code.REPLICA_EXHAUSTED, "too many", retriable=True, headers=((b"allow", b"GET"),)
    )

    response = error_response(error)

    assert response.status == 503
    assert response.headers[0] == (b"allow", b"GET")
    assert dict(response.headers)[b"retry-after"] == b"1"
    assert json.loads(response.body) == {
        "code": "REPLICA_EXHAUSTED",
        "message": "too many",
        "retriable": True,
        "retry_after_ms": 1000,
    }


def test_invalid_is_400_unless_told_otherwise() -> None:
    assert (invalid("x").status, invalid("x").code) == (400, Code.INVALID_PARAMS)
    assert invalid("x", status=404).status == 404
