"""The wire types: as strict as the contract for requests, open for what a later version adds."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from orch_tools.codegen_types import base_classes, python_patterns, without_cross_field_rules
from orchcontrol_v1.types import CatalogModel, DrainRequest
from orchqueue_v1.types import (
    AdmissionResponse,
    ErrorEnvelope,
    StreamEnd,
    StreamMetrics,
    TaskRequest,
)

TASK: dict[str, Any] = {
    "task_id": "5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11",
    "session_id": "0b7e64a8-6a54-4d2a-9c62-3f1f7f6f2c10",
    "workload": "completion",
    "model_ref": "m",
    "engine": "llamacpp",
    "ctx": 1,
    "priority": "batch",
    "max_tokens": 1,
    "deadline_ms": 1,
}


def decode(**changes: Any) -> TaskRequest:
    return msgspec.json.decode(msgspec.json.encode(TASK | changes), type=TaskRequest)


def test_a_minimal_task_is_strict_by_default_and_its_absent_fields_are_unset() -> None:
    task = decode()

    assert task.determinism == "strict"
    assert (task.seed, task.prompt, task.sampling) == (msgspec.UNSET,) * 3


@pytest.mark.parametrize("name", sorted(TASK))
def test_every_required_field_is_required(name: str) -> None:
    body = msgspec.json.encode({key: value for key, value in TASK.items() if key != name})

    with pytest.raises(msgspec.ValidationError, match=name):
        msgspec.json.decode(body, type=TaskRequest)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", 0),
        ("seed", 2**63 - 1),
        ("deadline_ms", 604_800_000),
        ("ctx", 2**31 - 1),
        ("expected_tokens", 0),
        ("task_id", "5F0C8A52-8D0B-4F4E-9A59-0D5F2F0A7C11"),
        ("sampling", {"temperature": 1, "stop": ["\n"]}),
        ("messages", [{"role": "user", "content": ""}]),
    ],
)
def test_values_at_their_bounds_are_accepted(name: str, value: Any) -> None:
    task = decode(**{name: value})

    assert msgspec.to_builtins(task)[name] == value


@pytest.mark.req("ORCH-2006", partial="all but one kind of error")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("seed", -1),
        ("seed", 2**63),
        ("seed", None),
        ("deadline_ms", 0),
        ("deadline_ms", 604_800_001),
        ("ctx", 0),
        ("ctx", 1.0),
        ("ctx", "1"),
        ("max_tokens", True),
        ("max_tokens", 2**31),
        ("model_ref", ""),
        ("engine", "openai"),
        ("priority", "urgent"),
        ("workload", "chat"),
        ("kv_hint", "warm"),
        ("determinism", "loose"),
        ("task_id", "5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c1"),
        ("task_id", "5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c1\n"),
        ("prompt", ""),
        ("inputs", []),
        ("messages", []),
        ("messages", [{"role": "robot", "content": "x"}]),
        ("messages", [{"role": "user", "content": "x", "name": "y"}]),
        ("sampling", {"temperature": 2.1}),
        ("sampling", {"top_p": -0.1}),
        ("sampling", {"heat": 1}),
        ("sampling", {"stop": ["x"] * 17}),
        ("unknown_field", 1),
    ],
)
def test_values_outside_the_contract_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(msgspec.ValidationError, match=name):
        decode(**{name: value})


@pytest.mark.req("ORCH-3044", partial="all but compatible growth and publication of a version")
def test_answers_and_events_may_grow_and_readers_ignore_the_new_fields() -> None:
    envelope = b'{"code": "INTERNAL", "message": "m", "added_later": 1}'
    metrics = b'{"queue_depth": 3, "added_later": {"a": 1}}'

    assert msgspec.json.decode(envelope, type=ErrorEnvelope).message == "m"
    assert msgspec.json.decode(metrics, type=StreamMetrics).queue_depth == 3


def test_absent_optional_fields_are_not_sent() -> None:
    answer = AdmissionResponse(
        task_id=TASK["task_id"], queue_position=0, predicted_start_ms=1, backoff_ms=0
    )

    assert set(msgspec.to_builtins(answer)) == {
        *("task_id", "queue_position", "predicted_start_ms", "backoff_ms")
    }
    assert msgspec.json.encode(StreamEnd(tokens_out=2, decode_ms=3)) == (
        b'{"tokens_out":2,"decode_ms":3}'
    )


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        (DrainRequest, {"deadline_ms": 0}),
        (DrainRequest, {"deadline_ms": 1, "force": True}),
        (CatalogModel, {"id": "m", "digest": "latest"}),
        (CatalogModel, {"id": "-m", "digest": "sha256:" + "0" * 64}),
    ],
)
def test_control_requests_are_as_strict(kind: type[msgspec.Struct], body: dict[str, Any]) -> None:
    with pytest.raises(msgspec.ValidationError):
        msgspec.json.decode(msgspec.json.encode(body), type=kind)


def test_only_object_schemas_that_forbid_other_fields_get_the_strict_base() -> None:
    schemas = {
        "Closed": {"type": "object", "additionalProperties": False, "properties": {}},
        "Grows": {"type": "object", "properties": {}},
        "Text": {"type": "string"},
    }

    found = base_classes({"components": {"schemas": schemas}}, "pkg")

    assert found == {"Closed": "pkg.strict.Strict", "Grows": "pkg.strict.Open"}


def test_rules_across_fields_leave_the_types_but_not_the_contract() -> None:
    contract = {"components": {"schemas": {"T": {"properties": {"a": {}}, "oneOf": [{}]}}}}

    reduced = without_cross_field_rules(contract)

    assert reduced["components"]["schemas"]["T"] == {"properties": {"a": {}}}
    assert "oneOf" in contract["components"]["schemas"]["T"]


def test_a_pattern_ends_at_the_end_of_the_text_and_not_before_a_line_break() -> None:
    assert python_patterns("Meta(pattern='^[a-z]+$')") == r"Meta(pattern=r'^[a-z]+\Z')"
