"""Steps about what people are told at once: admissions, refusals, sessions."""

from __future__ import annotations

from typing import Any

from pytest_bdd import parsers, then

from bdd.journey import KEYS, Journey
from bdd.steps.tables import Table, pairs, quoted


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
    headers = journey.asked[name].answer.headers
    for word, value in pairs(datatable).items():
        assert headers.get(word.lower()) == str(value), headers


@then(parsers.parse('session "{session}" of {who} shows'))
def session_shows(journey: Journey, session: str, who: str, datatable: Table) -> None:
    assert who in KEYS
    answer = journey.probe(who).get(f"/v1/sessions/{journey.session_id(session)}")
    assert answer.status == 200, answer
    expected, shown = pairs(datatable), answer.json()
    assert {word: shown.get(word) for word in expected} == expected, shown


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
