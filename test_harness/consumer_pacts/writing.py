"""Writes `contracts/pacts/*.json`: the generated clients call pact's mock server, once for each
interaction, and what both sides agreed on is the pact.

Run as `make pacts`. Invariant: equal interactions give equal bytes, whoever writes and whenever;
versions of the tools that write are not in the files.
"""

from __future__ import annotations

import inspect
import json
import os
import sys
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
from pact import Pact

from consumer_pacts.access import refusals
from consumer_pacts.control_plane import CONTROL_PLANE
from consumer_pacts.data_plane import DATA_PLANE
from consumer_pacts.interaction import Interaction, Stream
from harness_kit.contract_files import CONTRACTS, operations
from orchcontrol_v1.client import OrchControlClient
from orchqueue_v1.client import OrchQueueClient
from orchqueue_v1.sse import StreamEvent
from orchqueue_v1.transport import OrchError, Response

# Else the library tells a host on the net that it is used.
os.environ["PACT_DO_NOT_TRACK"] = "true"

PACTS = CONTRACTS / "pacts"
PROVIDER = "llama-orch"
JSON = "application/json"
Client = OrchQueueClient | OrchControlClient
CONSUMERS: dict[str, tuple[type[Client], tuple[Interaction, ...]]] = {
    "orchqueue_v1": (OrchQueueClient, (*DATA_PLANE, *refusals("data"))),
    "orchcontrol_v1": (OrchControlClient, (*CONTROL_PLANE, *refusals("control"))),
}
_OPERATIONS = {operation.id: operation for operation in operations()}


class ConsumerDisagrees(Exception):
    """The generated client did not make of an answer what the pact says that it is."""


def write_pacts(directory: Path) -> list[Path]:
    """Write one file for each consumer. Raises `ConsumerDisagrees`, or pact's `MismatchesError`
    where the client sends something else than the interaction says."""
    paths = []
    for consumer, (client, interactions) in CONSUMERS.items():
        agreed = [_agreed(consumer, client, each) for each in _ordered(interactions)]
        document = agreed[0] | {"interactions": [each["interactions"][0] for each in agreed]}
        del document["metadata"]["pactRust"]
        path = directory / f"{consumer}-{PROVIDER}.json"
        text = json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False)
        path.write_text(text + "\n", encoding="utf-8")
        paths.append(path)
    return paths


def _ordered(interactions: Iterable[Interaction]) -> list[Interaction]:
    """By operation as in the contract, in the order in which they were written down."""
    place = list(_OPERATIONS)
    return sorted(interactions, key=lambda each: place.index(each.operation_id))


def _agreed(consumer: str, client_type: type[Client], of: Interaction) -> dict[str, Any]:
    """The pact of this one interaction, after the client has been through it."""
    pact = Pact(consumer, PROVIDER)
    _describe(pact, of)
    seen: list[Response] = []
    with pact.serve(addr="127.0.0.1") as server:
        client = client_type(str(server.url), of.key, timeout_s=10, observe=seen.append)
        made = _called(client, of)
    with tempfile.TemporaryDirectory() as directory:
        pact.write_file(directory)
        (path,) = Path(directory).iterdir()
        document: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    body = document["interactions"][0]["response"].get("body", {}).get("content")
    expected = _events(body) if isinstance(of.answer, Stream) else body
    if (made, seen[0].status) != (expected, of.status):
        raise ConsumerDisagrees(f"{of.receiving}: {made!r} of {seen[0].status}, not {expected!r}")
    return document


def _describe(pact: Pact, of: Interaction) -> None:
    operation = _OPERATIONS[of.operation_id]
    told = pact.upon_receiving(of.receiving)
    told.set_key(of.operation_id + ": " + of.receiving)
    told.given(of.given, **({"id": of.subject} if of.subject else {}))
    told.with_request(operation.method, operation.path.replace("{id}", of.path_id or ""))
    for name, value in of.query.items():
        told.with_query_parameter(name, value)
    sent = {
        "X-API-Key": of.key,
        "X-Correlation-Id": of.correlation_id,
        "Last-Event-ID": None if of.last_event_id is None else str(of.last_event_id),
    }
    told.with_headers({name: value for name, value in sent.items() if value is not None})
    if of.body is not None:
        told.with_body(_without_absent(of.body), JSON)
    told.will_respond_with(of.status)
    if of.correlation_id is not None:
        told.with_header("X-Correlation-Id", of.correlation_id)
    for name, matcher in of.headers.items():
        told.with_header(name, matcher)
    if isinstance(of.answer, Stream):
        told.with_body(of.answer.text, "text/event-stream")
        rule = {"match": "regex", "regex": of.answer.rule}
        told.with_matching_rules({"body": {"$": {"combine": "AND", "matchers": [rule]}}})
    elif of.answer is not None:
        told.with_body(of.answer, JSON)


def _called(client: Client, of: Interaction) -> Any:
    """What the client makes of the answer, as plain values; an error as its envelope."""
    method = getattr(client, of.operation_id)
    arguments: list[Any] = [] if of.path_id is None else [of.path_id]
    if of.body is not None:
        type_ = inspect.signature(method, eval_str=True).parameters["body"].annotation
        arguments.append(msgspec.convert(_without_absent(of.body), type_))
    if of.last_event_id is not None:
        arguments.append(of.last_event_id)
    try:
        made = method(*arguments, correlation_id=of.correlation_id, **of.query)
        if of.operation_id == "stream_task":
            return [_plain_event(event) for event in made]
        return msgspec.to_builtins(made)
    except OrchError as error:
        fields = ("code", "message", "engine", "pool_id", "retriable", "policy_label")
        made = {name: getattr(error, name) for name in (*fields, "retry_after_ms")}
        if not error.retriable:
            del made["retry_after_ms"]  # from the header; the body has none
        return _without_absent(made)


def _plain_event(event: StreamEvent) -> tuple[str, int | None, Any]:
    name = type(event).__name__.removesuffix("Event").lower()
    return name, event.id, msgspec.to_builtins(event.data)


def _events(text: str) -> list[tuple[str, int | None, Any]]:
    """The example's events, read without the client's parser."""
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        fields = dict(line.split(": ", 1) for line in block.split("\n"))
        number = int(fields["id"]) if "id" in fields else None
        events.append((fields["event"], number, json.loads(fields["data"])))
    return events


def _without_absent(fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


if __name__ == "__main__":
    PACTS.mkdir(exist_ok=True)
    for written in write_pacts(PACTS):
        sys.stdout.write(f"{written.relative_to(CONTRACTS.parent)}\n")
