"""Steps about what people do with tasks: submit, come back, read, cancel."""

from __future__ import annotations

from pytest_bdd import given, parsers, when

from bdd.journey import Journey
from bdd.steps.tables import Table, rows


@given(parsers.parse('{who} submits to "{pool}"'))
@when(parsers.parse('{who} submits to "{pool}"'))
def submit_each(journey: Journey, who: str, pool: str, datatable: Table) -> None:
    """A line is a task: its name, its session's name where given, and fields of the request."""
    for row in rows(datatable):
        if "session" in row:
            row["session_id"] = journey.session_id(row.pop("session"))
        journey.submit(who, pool, row.pop("task"), **row)


@given(
    parsers.parse(
        '{who} submits {count:d} {priority} tasks "{group}" of {tokens:d} tokens to "{pool}"'
    )
)
@when(
    parsers.parse(
        '{who} submits {count:d} {priority} tasks "{group}" of {tokens:d} tokens to "{pool}"'
    )
)
def submit_many(
    journey: Journey, who: str, count: int, priority: str, group: str, tokens: int, pool: str
) -> None:
    """Tasks `group 1`, `group 2` and so on; every one of them is admitted."""
    for number in range(1, count + 1):
        name = f"{group} {number}"
        asked = journey.submit(who, pool, name, priority=priority, max_tokens=tokens)
        assert asked.answer.status == 202, asked.answer


@when(parsers.parse('{who} says to "{pool}", as "{name}"'))
def says(journey: Journey, who: str, pool: str, name: str, datatable: Table) -> None:
    """A conversation, which the engine's own template makes a prompt of."""
    journey.submit(who, pool, name, prompt=None, messages=rows(datatable))


@when(parsers.parse('{who} sends the record of "{name}" again, as "{replay}"'))
def record_sent_again(journey: Journey, who: str, name: str, replay: str) -> None:
    """The request that its determinism record keeps."""
    answer = journey.request(who, "GET", f"/v1/tasks/{{{name}}}/determinism")
    assert answer.status == 200, answer
    fields = {
        word: value
        for word, value in answer.json()["request"].items()
        if word not in ("task_id", "session_id", "model_ref")
    }
    journey.submit(who, journey.asked[name].pool, replay, **fields)


@when(parsers.parse('"{name}" is sent again, with {field} {value:d}'))
def sent_again_otherwise(journey: Journey, name: str, field: str, value: int) -> None:
    """Under the same id."""
    asked = journey.asked[name]
    journey.request(asked.who, "POST", "/v1/tasks", asked.document | {field: value})


@given("all tasks have ended")
def all_have_ended(journey: Journey) -> None:
    journey.read_all()


@when(parsers.parse('"{name}" is sent again'))
def sent_again(journey: Journey, name: str) -> None:
    journey.ask_again(name)


@when(parsers.parse('"{name}" is sent again until it is admitted'))
def sent_until_admitted(journey: Journey, name: str) -> None:
    """Never refused once it comes back as late as it was told to."""
    journey.ask_until_admitted(name)


@when(parsers.parse('"{name}" is read up to token {tokens:d} and cancelled'))
def read_and_cancelled(journey: Journey, name: str, tokens: int) -> None:
    asked = journey.asked[name]
    stream = journey.stream(name)
    read = stream.take(tokens + 1)  # and `started`
    assert len(read) == tokens + 1, read
    assert journey.probe(asked.who).post(f"/v1/tasks/{asked.task_id}/cancel").status == 204
    asked.events = read + stream.rest()
