"""Steps of those who look after the service: what metrics and logs tell."""

from __future__ import annotations

import re
from typing import Any

from pytest_bdd import given, parsers, then

from bdd.journey import Journey
from bdd.stage import PATIENCE_S
from bdd.steps.tables import Table, pairs, rows
from harness_kit.service_process import SECRETS, metric_in
from harness_kit.waiting import wait_until


@given("the scraper has read the metrics")
def metrics_are_read(journey: Journey) -> None:
    journey.metrics_before = journey.metrics()


@then("since then have grown")
def metrics_have_grown(journey: Journey, datatable: Table) -> None:
    """By so much at least: others may use the service too. `name{label=value}` narrows it down."""
    assert journey.metrics_before, "nobody has read the metrics before"
    expected = pairs(datatable)

    def short() -> dict[str, float]:
        now = journey.metrics()
        grown = {
            word: _value(now, word) - _value(journey.metrics_before, word) for word in expected
        }
        return {word: grown[word] for word, least in expected.items() if grown[word] < least}

    wait_until(lambda: not short(), PATIENCE_S, f"{expected} are reached; too small are {short()}")


@given(parsers.parse('{who} calls this errand "{correlation_id}"'))
def errand_has_a_name(journey: Journey, who: str, correlation_id: str) -> None:
    """From now on every request says so."""
    journey.headers["X_Correlation_Id"] = correlation_id


@then(parsers.parse('the log tells of "{name}"'))
def log_tells_of(journey: Journey, name: str, datatable: Table) -> None:
    """A row is a line about the task: its event and what else it says."""
    for row in rows(datatable):
        fields: dict[str, Any] = row | {"job_id": journey.asked[name].task_id}
        journey.service.wait_log(fields.pop("event"), timeout_s=PATIENCE_S, **fields)


@then(parsers.parse('no key, and not the prompt "{prompt}", stands in log, metrics or answers'))
def nothing_is_given_away(journey: Journey, prompt: str) -> None:
    """Every answer of the scenario but streams, and every line so far."""
    shown = journey.service.log_text() + journey.metrics()
    shown += "".join(f"{answer.headers}{answer.body!r}" for answer in journey.told)
    assert shown.count("job_id") > 0, "the log tells of no task"
    assert [secret for secret in (*SECRETS, "no-such-key", prompt) if secret in shown] == []


def _value(text: str, word: str) -> float:
    name, _, labels = word.partition("{")
    return metric_in(text, name, **dict(re.findall(r"(\w+)=([^,}]+)", labels)))
