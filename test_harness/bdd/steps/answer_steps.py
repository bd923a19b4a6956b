"""Steps about what people are told at once: admissions, refusals, sessions."""

from __future__ import annotations

from typing import Any

import yaml
from pytest_bdd import parsers, then, when

from bdd.journey import Journey
from bdd.steps.tables import Table, pairs, quoted, unlike
from harness_kit.http_probe import Answer


@then(parsers.re(r'(?P<names>".+") (?:is|are) admitted'))
def admitted(journey: Journey, names: str) -> None:
    """Status 202, and headers that say what the body says."""
    for name in quoted(names):
        answer = journey.asked[name].answer
        assert answer.status == 202, (name, answer)
        body = answer.json()
        assert answer.headers["x-queue-position"] == str(body["queue_position"])
        assert answer.headers["x-queue-eta-ms"] == str(body["predicted_start_ms"])


@then(parsers.re(r'(?P<names>".+") (?:is|are) refused with'))
def refused(journey: Journey, names: str, datatable: Table) -> None:
    """Status 429 with both headers; the table names what the envelope must say."""
    expected = pairs(datatable)
    for name in quoted(names):
        envelope = _refusal(journey, name)
        assert {word: envelope.get(word) for word in expected} == expected, name


@then(parsers.parse('"{name}" is told to come back in {low:d} to {high:d} ms'))
def told_to_come_back(journey: Journey, name: str, low: int, high: int) -> None:
    envelope = _refusal(journey, name)
    assert low <= envelope["retry_after_ms"] <= high, envelope


@then(parsers.parse('the message to "{name}" names the deadline that could be met'))
def message_names_a_deadline(journey: Journey, name: str) -> None:
    """What was asked for and what the queue costs beyond it."""
    asked, envelope = journey.asked[name], _refusal(journey, name)
    earliest_ms = asked.document["deadline_ms"] + envelope["retry_after_ms"]
    assert str(earliest_ms) in envelope["message"].split(), envelope


@then(parsers.parse('the answer to "{name}" carries'))
def answer_carries(journey: Journey, name: str, datatable: Table) -> None:
    _carries(journey.asked[name].answer, datatable)


@then(parsers.parse('session "{session}" of {who} shows'))
def session_shows(journey: Journey, session: str, who: str, datatable: Table) -> None:
    answer = journey.request(who, "GET", f"/v1/sessions/{journey.session_id(session)}")
    assert (answer.status, unlike(answer.json(), datatable)) == (200, {}), answer


@when(parsers.re(r"(?P<who>.+) (?P<does>asks for|deletes|posts to) (?P<path>/.+)"))
def asks(journey: Journey, who: str, does: str, path: str, docstring: str | None = None) -> None:
    """Any request; the text below a post is its body. Braces in a path stand for a task's id."""
    method = {"asks for": "GET", "deletes": "DELETE", "posts to": "POST"}[does]
    journey.request(who, method, path, None if docstring is None else yaml.safe_load(docstring))


@then(parsers.re(r"the answer is (?P<status>\d{3})(?: with)?"), converters={"status": int})
def the_answer_is(journey: Journey, status: int, datatable: Table | None = None) -> None:
    """To what was asked for last; the table leads into its body."""
    answer = _last(journey)
    assert answer.status == status, answer
    if datatable is not None:
        assert unlike(answer.json(), datatable) == {}, answer.body


@then("the answer carries")
def the_answer_carries(journey: Journey, datatable: Table) -> None:
    _carries(_last(journey), datatable)


@then(parsers.parse("its message names {words}"))
def its_message_names(journey: Journey, words: str) -> None:
    answer = _last(journey)
    assert words in answer.json()["message"], answer


def _last(journey: Journey) -> Answer:
    assert journey.last is not None, "nothing was asked for"
    return journey.last


def _carries(answer: Answer, datatable: Table) -> None:
    for word, value in datatable:
        shown = answer.headers.get(word.lower())
        assert shown, (word, answer)
        assert value in (shown, "something"), (word, answer)


def _refusal(journey: Journey, name: str) -> dict[str, Any]:
    """The envelope of a 429 whose headers agree with it, rounded as the contract says."""
    asked = journey.asked[name]
    answer = asked.answer
    assert answer.status == 429, (name, answer)
    envelope: dict[str, Any] = answer.json()
    backoff_ms = int(answer.headers["x-backoff-ms"])
    assert int(answer.headers["retry-after"]) == -(-backoff_ms // 1000)
    assert envelope["engine"] == "llamacpp"
    assert envelope["pool_id"] == asked.pool
    if envelope["retriable"]:
        assert envelope["retry_after_ms"] == backoff_ms >= 1
    return envelope
