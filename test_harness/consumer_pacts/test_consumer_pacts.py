"""The committed pacts are what the generated clients agree to today, and they leave nothing out."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from consumer_pacts.writing import CONSUMERS, PACTS, PROVIDER, write_pacts
from harness_kit.contract_files import PLANES, Operation, operations, schema

CONSUMER_OF = dict(zip(PLANES, CONSUMERS, strict=True))
# Codes of the contract that no client can be shown today; each leaves with its reason.
NOT_TO_BE_HAD = {
    "MODEL_DEPRECATED": "nothing raises it before models have a life cycle",
    "UNTRUSTED_ARTIFACT": "nothing raises it before there is a catalog",
    "REPLICA_EXHAUSTED": "needs 16384 open streams (`services.streams.MAX_READERS`)",
}


def committed(consumer: str) -> list[dict[str, Any]]:
    """The interactions of the consumer's committed pact."""
    path = PACTS / f"{consumer}-{PROVIDER}.json"
    interactions: list[dict[str, Any]] = json.loads(path.read_text("utf-8"))["interactions"]
    return interactions


def statuses(plane: str, path: str, method: str) -> set[int]:
    """Statuses of the plane's interactions with this operation, found by method and path."""
    of_path = re.compile(re.sub(r"\{[^}]+\}", "[^/]+", path))
    return {
        each["response"]["status"]
        for each in committed(CONSUMER_OF[plane])
        if each["request"]["method"] == method and of_path.fullmatch(each["request"]["path"])
    }


@pytest.mark.req("ORCH-3044", partial="all but compatible growth and publication of a version")
def test_the_generated_clients_write_the_committed_pacts_byte_for_byte(tmp_path: Path) -> None:
    written = write_pacts(tmp_path)

    assert sorted(path.name for path in PACTS.iterdir()) == sorted(path.name for path in written)
    for path in written:
        same = path.read_bytes() == (PACTS / path.name).read_bytes()
        assert same, f"{path.name} is not what the clients do now: `make pacts`, and read the diff"


def test_pacts_are_version_4_and_name_nothing_that_changes_by_chance() -> None:
    for path in PACTS.iterdir():
        text = path.read_text(encoding="utf-8")
        document = json.loads(text)
        descriptions = [each["description"] for each in document["interactions"]]

        assert document["metadata"] == {"pactSpecification": {"version": "4.0"}}
        assert len(set(descriptions)) == len(descriptions)
        assert text == json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


@pytest.mark.req("OC-CTRL-2040", partial="that the service keeps it: provider_verify")
@pytest.mark.parametrize("operation", tuple(operations()), ids=lambda operation: operation.id)
def test_every_operation_is_in_a_pact_served_and_refused(operation: Operation) -> None:
    found = statuses(operation.plane, operation.path, operation.method)

    assert {401, 403} <= found
    assert found & {200, 202, 204, 501}, f"{operation.id}: no interaction that it serves"


@pytest.mark.req("ORCH-2006", partial="that the service keeps it: provider_verify")
def test_every_error_code_that_can_be_had_is_in_a_pact() -> None:
    text = "".join(json.dumps(committed(consumer)) for consumer in CONSUMERS)
    codes = set(schema("data", "ErrorCode")["enum"])

    missing = {code for code in codes if code not in text}
    assert missing == NOT_TO_BE_HAD.keys()


@pytest.mark.req("OC-CTRL-2011", partial="that the service keeps it: provider_verify")
def test_every_429_says_when_to_come_back_and_policies_stand_in_full() -> None:
    refused = [e["response"] for e in committed("orchqueue_v1") if e["response"]["status"] == 429]
    labels = {each["body"]["content"].get("policy_label") for each in refused}

    assert all({"Retry-After", "X-Backoff-Ms"} <= each["headers"].keys() for each in refused)
    assert {"reject", "drop-lru", "shed-low-priority", "rate-limit", "quota", "budget"} <= labels
