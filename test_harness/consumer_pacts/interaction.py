"""What a consumer asks for and what it can live with: one interaction of a pact, as data.

A pact is written from these by calling the generated client against pact's mock server, so the
requests in the file are what the client really sends. Invariant: an answer says as little as the
client needs (types, codes, headers, order of events) and everything that it relies on; fields may
be added to the service's answers without breaking a pact (ORCH-3044).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from pact import match
from pact.match import AbstractMatcher

from harness_kit.service_process import DATA_KEY

# The ids in the files are the same in each run, and differ from interaction to interaction.
_IDS = uuid.UUID("5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11")

WHOLE_SECONDS = match.regex("2", regex=r"^\d+$")
MILLISECONDS = match.regex("1500", regex=r"^\d+$")
BACKPRESSURE = {"Retry-After": WHOLE_SECONDS, "X-Backoff-Ms": MILLISECONDS}


def id_of(what: str) -> str:
    """The UUID that stands for `what` in the pacts."""
    return str(uuid.uuid5(_IDS, what))


@dataclass(frozen=True, slots=True)
class Interaction:
    """One request and its answer, in a state of the provider that a sentence names.

    `about` is the id that the state speaks of (a task, a session, a pool); `path_id` where absent.
    `answer` is a JSON body with matchers, a `Stream`, or None for an answer without a body.
    """

    operation_id: str
    receiving: str
    given: str
    status: int
    answer: Any = None
    headers: Mapping[str, str | AbstractMatcher[str]] = field(default_factory=dict)
    key: str | None = DATA_KEY
    path_id: str | None = None
    about: str | None = None
    body: Mapping[str, Any] | None = None
    last_event_id: int | None = None
    query: Mapping[str, str] = field(default_factory=dict)
    correlation_id: str | None = "of-the-client"

    @property
    def subject(self) -> str | None:
        """The id that the provider's state speaks of."""
        return self.about or self.path_id


def envelope(code: str, message: str, *, retriable: bool = False, **more: Any) -> dict[str, Any]:
    """An error body: the code and whether to try again count, the words of the message do not."""
    after = {"retry_after_ms": match.int(1500)} if retriable else {}
    return {"code": code, "message": match.like(message), "retriable": retriable} | after | more


@dataclass(frozen=True, slots=True)
class Exactly:
    """A value in an event that has to be this one; any other stands for its type."""

    value: str | int | bool


@dataclass(frozen=True, slots=True)
class Event:
    """One server-sent event: its name, the id of its place (metrics have none), its fields."""

    name: str
    id: int | None
    fields: Mapping[str, Any]

    @property
    def text(self) -> str:
        """An example of it."""
        values = {n: v.value if isinstance(v, Exactly) else v for n, v in self.fields.items()}
        number = "" if self.id is None else f"id: {self.id}\n"
        data = json.dumps(values, ensure_ascii=False, separators=(",", ":"))
        return f"event: {self.name}\n{number}data: {data}\n\n"

    @property
    def rule(self) -> str:
        """An Oniguruma expression for it: its fields in any order, others beside them."""
        fields = "".join(
            rf'(?=[^\n]*"{name}":{_rule_of(value)}[,}}])' for name, value in self.fields.items()
        )
        number = "" if self.id is None else rf"id: {self.id}\n"
        return rf"event: {self.name}\n{number}data: {fields}\{{[^\n]*\}}\n\n"


# What may stand between any two events: passing observations, and comments as signs of life.
_BETWEEN = r"(?:(?:event: metrics\ndata: \{[^\n]*\}|:[^\n]*)\n\n)*"


@dataclass(frozen=True, slots=True)
class Stream:
    """The whole body of a stream: exactly these events in this order, then its end."""

    events: tuple[Event, ...]

    @property
    def text(self) -> str:
        """An example of it."""
        return "".join(event.text for event in self.events)

    @property
    def rule(self) -> str:
        """An Oniguruma expression for the whole body."""
        return r"\A" + "".join(_BETWEEN + event.rule for event in self.events) + r"\z"


def _rule_of(value: Any) -> str:
    match value:
        case Exactly(value=fixed):
            return json.dumps(fixed)
        case bool():
            return "(?:true|false)"
        case int() | float():
            return r"\d+(?:\.\d+)?"
        case str():
            return r'"(?:[^"\\]|\\.)+"'
        case _:
            return r"[\[{][^\n]*[\]}]"
