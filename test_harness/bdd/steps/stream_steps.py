"""Steps about what people read: tokens, metrics events, and how streams end."""

from __future__ import annotations

from pytest_bdd import parsers, then

from bdd.journey import Journey
from bdd.steps.tables import Table, pairs, quoted
from harness_kit.gated_engine import words_by_seed
from harness_kit.http_probe import text_of


@then(parsers.re(r'(?P<names>".+") ends? well'))
def ends_well(journey: Journey, names: str) -> None:
    """Every token that was asked for, in order, and then `end`."""
    for name in quoted(names):
        _ended_well(journey, name)


@then(parsers.parse('all of "{group}" end well'))
def all_end_well(journey: Journey, group: str) -> None:
    for name in journey.names(group):
        _ended_well(journey, name)


@then(parsers.re(r'the streams? of (?P<names>".+") ends? with'))
def ends_with(journey: Journey, names: str, datatable: Table) -> None:
    """One terminal event, the last one, and what it says."""
    expected = pairs(datatable)
    for name in quoted(names):
        *before, last = journey.read(name)
        assert not any(event.terminal for event in before)
        shown = {"event": last.name, **last.data}
        assert {word: shown.get(word) for word in expected} == expected, (name, shown)


@then(parsers.parse('the first metrics event of "{name}" shows'))
def metrics_show(journey: Journey, name: str, datatable: Table) -> None:
    data = journey.stream(name).until("metrics").data
    expected = pairs(datatable)
    assert {word: data.get(word) for word in expected} == expected, data


@then(parsers.parse('"{safe}" is more likely on time than "{tight}"'))
def more_likely_on_time(journey: Journey, safe: str, tight: str) -> None:
    """As their metrics events say; the safe one as good as certainly."""
    more, less = (
        journey.stream(name).until("metrics").data["on_time_probability"] for name in (safe, tight)
    )
    assert 0.0 < less < more <= 1.0
    assert more > 0.99


def _ended_well(journey: Journey, name: str) -> None:
    events, document = journey.read(name), journey.asked[name].document
    tokens, last = document["max_tokens"], events[-1]
    assert last.name == "end", (name, last)
    assert last.data["tokens_out"] == tokens
    assert text_of(events) == "".join(words_by_seed(name, document["seed"], tokens)), name
