"""Steps about why a task is where it is, as the service explains it."""

from __future__ import annotations

from typing import Any

from pytest_bdd import parsers, then, when

from bdd.journey import Journey
from bdd.steps.tables import Table, rows, unlike


def _explanation(journey: Journey, name: str) -> dict[str, Any]:
    asked = journey.asked[name]
    answer = journey.probe(asked.who).get(f"/v1/tasks/{asked.task_id}/explanation")
    assert answer.status == 200, answer
    told: dict[str, Any] = answer.json()
    return told


@when(parsers.parse('{tokens:d} tokens of "{name}" are read'))
def tokens_are_read(journey: Journey, tokens: int, name: str) -> None:
    read = journey.stream(name).take(tokens + 1)  # and `started`
    assert len(read) == tokens + 1, read


@when(parsers.parse('"{name}" runs on {replica}'))
def runs_on(journey: Journey, name: str, replica: str) -> None:
    journey.wait_ran(name, replica)


@then(
    parsers.parse('the explanation of "{name}" says {state}, with these decisions'),
    target_fixture="explanation",
)
def decisions_are(journey: Journey, name: str, state: str, datatable: Table) -> dict[str, Any]:
    told = _explanation(journey, name)
    assert told["state"] == state, told
    taken = [{word: one[word] for word in ("decision", "reason")} for one in told["decisions"]]
    assert taken == rows(datatable), told
    return told


@then(parsers.parse("in its decision {decision} stands"))
def values_are(explanation: dict[str, Any], decision: str, datatable: Table) -> None:
    (one,) = (taken for taken in explanation["decisions"] if taken["decision"] == decision)
    assert unlike(one["values"], datatable) == {}, one


@then(parsers.parse('the explanation of "{name}" shows'))
def explanation_shows(journey: Journey, name: str, datatable: Table) -> None:
    told = _explanation(journey, name)
    assert unlike(told, datatable) == {}, told


@then(
    parsers.parse('the explanation of "{name}" compares what it got with what its weights promise')
)
def shares_are_told(journey: Journey, name: str) -> None:
    share = _explanation(journey, name)["share"]
    assert 0.0 <= share["observed"] <= 1.0
    assert 0.0 < share["entitled"] <= 1.0


@then(parsers.parse('the summary of "{name}" says "{words}"'))
def summary_says(journey: Journey, name: str, words: str) -> None:
    assert words in _explanation(journey, name)["summary"]


@then(parsers.parse('{who} gets no explanation of "{name}"'))
def not_for_others(journey: Journey, who: str, name: str) -> None:
    path = f"/v1/tasks/{journey.asked[name].task_id}/explanation"
    assert journey.probe(who).get(path).status == 404
