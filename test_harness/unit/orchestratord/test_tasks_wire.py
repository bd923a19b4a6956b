"""From the wire's task to a draft."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness_kit.job_builders import job as make_job
from orchestrator_core.task import Determinism, Priority, Workload
from orchestratord.api.errors import HttpError
from orchestratord.api.keys import Principal
from orchestratord.api.tasks import (
    admission_body,
    decode_task,
    draft_of,
    known_id,
    last_event_id,
    queue_headers,
)
from orchestratord.services.drafts import Draft, Message, SamplingOverride
from orchestratord.services.jobs import Promise

ANNA = Principal("anna", "acme", frozenset({"data"}))
TASK_ID = "6F9619FF-8B86-D011-B42D-00CF4FC964FF"
BODY: dict[str, Any] = {
    "task_id": TASK_ID,
    "session_id": "00000000-0000-4000-8000-00000000000A",
    "workload": "completion",
    "model_ref": "repo:small",
    "engine": "llamacpp",
    "ctx": 512,
    "priority": "interactive",
    "max_tokens": 8,
    "deadline_ms": 1000,
    "prompt": "Hello",
}


def body(**changes: Any) -> bytes:
    """A good body with changes; None takes the field away."""
    merged = {**BODY, **changes}
    return json.dumps({k: v for k, v in merged.items() if v is not None}).encode()


def draft(**changes: Any) -> Draft:
    return draft_of(decode_task(body(**changes)), ANNA, "c-1")


def refusal(data: bytes) -> HttpError:
    with pytest.raises(HttpError) as raised:
        draft_of(decode_task(data), ANNA, "c-1")
    assert raised.value.status == 400
    return raised.value


@pytest.mark.req("ORCH-2001", partial="all but the fields")
def test_a_minimal_request_in_domain_words() -> None:
    one = draft()

    assert one.tenant == "acme"
    assert one.client_id == "anna"
    assert one.correlation_id == "c-1"
    assert one.workload is Workload.COMPLETION
    assert one.priority is Priority.INTERACTIVE
    assert one.determinism is Determinism.STRICT
    assert (one.model_ref, one.engine, one.ctx) == ("repo:small", "llamacpp", 512)
    assert (one.max_tokens, one.deadline_ms, one.prompt) == (8, 1000, "Hello")
    absent = (one.seed, one.expected_tokens, one.kv_hint, one.sampler_profile_version)
    assert absent == (None, None, None, None)
    assert one.sampling == SamplingOverride()


@pytest.mark.req("ORCH-2001", partial="all but the fields")
def test_every_optional_field_arrives() -> None:
    one = draft(
        determinism="best_effort",
        seed=0,
        sampler_profile_version="v2",
        expected_tokens=3,
        kv_hint="cold",
        sampling={
            "temperature": 0.5,
            "top_p": 0.9,
            "top_k": 40,
            "min_p": 0.1,
            "repeat_penalty": 1.1,
            "stop": ["\n", "x"],
        },
    )

    assert one.determinism is Determinism.BEST_EFFORT
    assert one.seed == 0
    assert (one.sampler_profile_version, one.expected_tokens, one.kv_hint) == ("v2", 3, "cold")
    assert one.sampling == SamplingOverride(0.5, 0.9, 40, 0.1, 1.1, ("\n", "x"))


def test_messages_take_the_place_of_a_prompt() -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hi"}]

    one = draft(prompt=None, messages=chat)

    assert one.prompt is None
    assert one.messages == (Message("system", "Be brief."), Message("user", "Hi"))


def test_a_rerank_takes_its_query_from_the_prompt_or_from_the_first_input() -> None:
    given_apart = draft(workload="rerank", prompt="q", inputs=["a", "b"])
    given_first = draft(workload="rerank", prompt=None, inputs=["q", "a", "b"])

    assert (given_apart.prompt, given_apart.inputs) == ("q", ("a", "b"))
    assert (given_first.prompt, given_first.inputs) == ("q", ("a", "b"))


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"prompt": None}, "prompt"),
        ({"messages": [{"role": "user", "content": "Hi"}]}, "prompt"),
        ({"inputs": ["a"]}, "inputs"),
        ({"workload": "embedding", "prompt": None}, "inputs"),
        ({"workload": "rerank", "prompt": None}, "inputs"),
        ({"workload": "rerank", "prompt": None, "inputs": ["only a query"]}, "inputs"),
        (
            {
                "workload": "embedding",
                "prompt": None,
                "inputs": ["a"],
                "messages": [{"role": "user", "content": "Hi"}],
            },
            "messages",
        ),
        ({"max_tokens": "8"}, "max_tokens"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"ctx": None}, "ctx"),
        ({"colour": "red"}, "colour"),
        ({"priority": "urgent"}, "priority"),
        ({"engine": "mock"}, "engine"),
        ({"task_id": "no-uuid"}, "task_id"),
        ({"model_ref": ""}, "model_ref"),
        ({"seed": -1}, "seed"),
        ({"seed": 2**63}, "seed"),
        ({"deadline_ms": 1.5}, "deadline_ms"),
        ({"sampling": {"temperature": 3}}, "sampling.temperature"),
        ({"sampling": {"heat": 1}}, "sampling.heat"),
        ({"sampling": {"stop": ["a", 5]}}, "sampling.stop[1]"),
        ({"prompt": None, "messages": [{"role": "user"}]}, "messages[0].content"),
    ],
)
def test_a_wrong_body_is_refused_by_the_name_of_the_field(
    changes: dict[str, Any], field: str
) -> None:
    message = str(refusal(body(**changes)))

    assert message.partition(": ")[0] == field


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"null", b"\xff\xfe", b'{"task_id":"\xff"}', body() + b"x"]
)
def test_what_is_no_json_object_is_refused_as_a_body(data: bytes) -> None:
    assert str(refusal(data)).startswith("body: ")


@given(st.binary(max_size=40))
def test_no_bytes_whatever_break_the_decoder(data: bytes) -> None:
    assert refusal(data).status == 400


@pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
def test_an_id_is_the_same_in_any_case_of_its_digits() -> None:
    upper, lower = draft(), draft(task_id=TASK_ID.lower())

    assert upper.key == lower.key == f"acme/{TASK_ID.lower()}"
    assert upper.session_key == "acme/00000000-0000-4000-8000-00000000000a"
    assert known_id(TASK_ID) == TASK_ID.lower()


@pytest.mark.req("ORCH-3024", partial="all but one case of a repeated id")
def test_the_digest_is_of_what_was_asked_not_of_how_it_was_written() -> None:
    plain = json.dumps(BODY).encode()
    spread = json.dumps(dict(reversed(BODY.items())), indent=2).encode()
    drafts = [draft_of(decode_task(data), ANNA, "c") for data in (plain, spread)]

    assert drafts[0].body_digest == drafts[1].body_digest
    assert draft(prompt="Hello!").body_digest != drafts[0].body_digest
    assert draft(seed=0).body_digest != drafts[0].body_digest, "absent is not zero"


@pytest.mark.parametrize(
    "text", [None, "", "x", TASK_ID[:-1], TASK_ID + "0", TASK_ID + "\n", TASK_ID.replace("-", "")]
)
def test_an_id_that_cannot_exist_is_not_found(text: str | None) -> None:
    with pytest.raises(HttpError) as raised:
        known_id(text)

    assert raised.value.status == 404


@pytest.mark.req(
    "ORCH-3202", partial="another node, which comes with the cluster, and what is replayed"
)
def test_last_event_id_is_a_whole_number() -> None:
    accepted = [last_event_id(text) for text in (None, b"0", b" 17 ", b"%d" % (2**63 - 1))]

    assert accepted == [0, 0, 17, 2**63 - 1]
    for text in (b"", b"-1", b"+1", b"1.5", b"x", b"1 2", b"%d" % 2**63, b"9" * 5000, b"\xb2"):
        with pytest.raises(HttpError, match="Last-Event-ID") as raised:
            last_event_id(text)
        assert raised.value.status == 400


@pytest.mark.req("ORCH-2001", partial="that every check comes before the queue")
@pytest.mark.req("ORCH-2007", partial="all but one policy or header")
def test_the_202_is_the_promise() -> None:
    one = make_job("acme/t1")
    one.promise = Promise(queue_position=3, predicted_start_ms=1200, backoff_ms=40)

    assert json.loads(admission_body(one)) == {
        "task_id": "t1",
        "queue_position": 3,
        "predicted_start_ms": 1200,
        "backoff_ms": 40,
    }
    assert dict(queue_headers(one)) == {b"x-queue-position": b"3", b"x-queue-eta-ms": b"1200"}
