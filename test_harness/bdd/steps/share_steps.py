"""Steps about who ran when, where, and with what share; the engines' record is the witness."""

from __future__ import annotations

from itertools import groupby

from pytest_bdd import parsers, then

from bdd.journey import Journey
from bdd.steps.tables import quoted


@then(parsers.re(r'"(?P<pool>[^"]+)" ran (?P<names>".+") in this order'))
def ran_in_order(journey: Journey, pool: str, names: str) -> None:
    journey.read_all()
    assert journey.ran(pool) == quoted(names)


@then(parsers.re(r'since then "(?P<pool>[^"]+)" ran (?P<names>".+") in this order'))
def ran_in_order_since(journey: Journey, pool: str, names: str) -> None:
    """Since the service was killed."""
    journey.read_all()
    assert journey.ran(pool, since_crash=True) == quoted(names)


@then(
    parsers.parse(
        'in "{pool}" the tokens of "{more}" and "{less}" were {ratio:d} to 1 while both waited'
    )
)
def shares_were(journey: Journey, pool: str, more: str, less: str, ratio: int) -> None:
    """Within 10 %, over at least 1000 tokens, so that one task more or less does not decide."""
    journey.read_all()
    tokens = {more: 0, less: 0}
    for name in journey.contested(pool, (more, less)):
        tokens[name.rpartition(" ")[0]] += journey.asked[name].document["max_tokens"]
    assert sum(tokens.values()) >= 1000, tokens
    assert abs(tokens[more] / tokens[less] / ratio - 1) <= 0.1, tokens


@then(parsers.parse('in "{pool}" at most {most:d} tasks ran in a row while "{group}" waited'))
def never_starved(journey: Journey, pool: str, most: int, group: str) -> None:
    """Not counting the group's own."""
    journey.read_all()
    mine = set(journey.names(group))
    run = journey.contested(pool, (group,))
    runs = [len(list(names)) for own, names in groupby(run, mine.__contains__) if not own]
    assert max(runs, default=0) <= most, runs


@then(
    parsers.parse(
        "the metrics show that of {priority} work {more} got {ratio:d} times what {less} got"
    )
)
def metrics_show_shares(journey: Journey, priority: str, more: str, less: str, ratio: int) -> None:
    """What was started lately, of all that was: within 10 %."""
    much, little = (
        journey.service.metric("admission_share", tenant=tenant, priority=priority)
        for tenant in (more, less)
    )
    assert 0 < much + little <= 1
    assert abs(much / little / ratio - 1) <= 0.1, (much, little)


@then(parsers.re(r'(?P<names>".+") ran on (?P<replica>\w+)'))
def ran_on(journey: Journey, names: str, replica: str) -> None:
    for name in quoted(names):
        journey.wait_ran(name, replica)


@then(parsers.parse('{count:d} tasks run in "{pool}", and "{name}" does not'))
def so_many_run(journey: Journey, count: int, pool: str, name: str) -> None:
    journey.engine(pool).wait_busy(count)
    assert name not in journey.ran(pool)
