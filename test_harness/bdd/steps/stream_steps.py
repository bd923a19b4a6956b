"""Steps about what people read: tokens, metrics events, and how streams end."""

from __future__ import annotations

from pytest_bdd import parsers, then, when

from bdd.journey import Asked, Journey
from bdd.steps.tables import Table, pairs, quoted, unlike
from harness_kit.gated_engine import words_by_seed
from harness_kit.http_probe import Event, numbered, text_of


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
    assert unlike(data, datatable) == {}, data


@then(parsers.parse('"{safe}" is more likely on time than "{tight}"'))
def more_likely_on_time(journey: Journey, safe: str, tight: str) -> None:
    """As their metrics events say; the safe one as good as certainly."""
    more, less = (
        journey.stream(name).until("metrics").data["on_time_probability"] for name in (safe, tight)
    )
    assert 0.0 < less < more <= 1.0
    assert more > 0.99


@when(parsers.parse('"{name}" is read up to token {tokens:d} and the connection breaks'))
def read_and_broken(journey: Journey, name: str, tokens: int) -> None:
    journey.read_up_to(name, tokens)


@when(parsers.parse('"{name}" is read on'))
def read_on(journey: Journey, name: str) -> None:
    """With the id of the last event that was read."""
    journey.read_on(name)


@then(parsers.parse('"{name}" reads the same again, from the start'))
def reads_the_same_again(journey: Journey, name: str) -> None:
    """Byte for byte, but for the events without an id."""
    first, asked = numbered(journey.read(name)), journey.asked[name]
    asked.events = []
    again = numbered(journey.read(name))
    assert [event.raw for event in again] == [event.raw for event in first]


@then(parsers.re(r'"(?P<name>[^"]+)" and "(?P<other>[^"]+)" read (?P<how>the same|differently)'))
def read_alike(journey: Journey, name: str, other: str, how: str) -> None:
    texts = [text_of(journey.read(each)) for each in (name, other)]
    assert all(texts), texts
    assert (texts[0] == texts[1]) == (how == "the same"), texts


def _ended_well(journey: Journey, name: str) -> None:
    events, asked = journey.read(name), journey.asked[name]
    most, last = asked.document["max_tokens"], events[-1]
    assert last.name == "end", (name, last)
    _is_whole(events, asked)
    if journey.decodes_by_seed(asked.pool):
        assert last.data["tokens_out"] == most
        assert text_of(events) == "".join(words_by_seed(name, asked.document["seed"], most)), name


def _is_whole(events: list[Event], asked: Asked) -> None:
    """`started`, then every token once and in order, then one end; ids say the place."""
    tokens = sum(event.name == "token" for event in events)
    shown = [(event.name, event.id, event.data.get("i")) for event in numbered(events)]
    middle = [("token", i + 2, i) for i in range(tokens)]
    assert shown == [("started", 1, None), *middle, ("end", tokens + 2, None)], shown
    first, last = numbered(events)[0], events[-1]
    promised = asked.answer.json()["queue_position"]
    assert first.data["queue_position"] == promised, (first, asked.answer)
    assert (last.data["tokens_out"], last.data.get("canceled", False)) == (tokens, False), last
    assert tokens <= asked.document["max_tokens"]
