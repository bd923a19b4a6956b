"""Steps about an operator's orders to pools, and what the pools show then."""

from __future__ import annotations

import sys
from typing import Any

from pytest_bdd import given, parsers, then, when

from bdd.journey import Journey
from bdd.stage import PATIENCE_S, PoolWanted
from bdd.steps.tables import Table, pairs, quoted, unlike
from harness_kit.http_probe import Answer
from harness_kit.waiting import wait_until

# A process that speaks llama.cpp's protocol; 20 ms a token.
ENGINE = [sys.executable, "-m", "harness_kit.fake_engine", "--port", "{port}", "--ctx", "8192"]


@given(parsers.parse('pool "{pool}" that launches {count:d} engines'))
def pool_that_launches(journey: Journey, pool: str, count: int) -> None:
    launch = {"count": count, "command": ENGINE, "args": ["--token-interval-ms", "20"]}
    journey.wanted.pools[pool] = PoolWanted(0, 2, {"launch": launch})


@given(
    parsers.re(r"the operator (?P<order>[a-z-]+) (?:(?P<replica>\S+) of )?" r'"(?P<pool>[^"]+)"')
)
@when(parsers.re(r"the operator (?P<order>[a-z-]+) (?:(?P<replica>\S+) of )?" r'"(?P<pool>[^"]+)"'))
def operator_orders(
    journey: Journey, order: str, replica: str | None, pool: str, datatable: Table | None = None
) -> None:
    """`drains`, `cordons`, `resumes`, `reloads`, `promotes`, `rolls-back`; a table is the body."""
    answer = _order(journey, order, replica, pool, pairs(datatable) if datatable else {})
    assert answer.status == 202, answer


@then(
    parsers.re(
        r'the operator may not (?P<order>\w+) "(?P<pool>[^"]+)"(?: to "(?P<model>[^"]+)")?, '
        r'for "(?P<reason>[^"]+)"'
    )
)
def operator_may_not(
    journey: Journey, order: str, pool: str, model: str | None, reason: str
) -> None:
    body = {} if model is None else {"new_model_ref": model}
    answer = _order(journey, order, None, pool, body)
    assert (answer.status, reason in answer.json()["message"]) == (409, True), answer


@then(parsers.parse('"{pool}" comes to show'))
@when(parsers.parse('"{pool}" comes to show'))
def pool_comes_to_show(journey: Journey, pool: str, datatable: Table) -> None:
    """Its health; `reload.phase` and `replicas.0.state` look into it, `count` is its replicas'."""

    def unseen() -> dict[str, Any]:
        health = _health(journey, pool)
        return unlike(health | {"count": len(health["replicas"])}, datatable)

    wait_until(lambda: not unseen(), PATIENCE_S, f"{pool} shows {pairs(datatable)}; {unseen()}")


@then(parsers.parse('replica {replica} of "{pool}" comes to be {state}'))
def replica_comes_to_be(journey: Journey, replica: str, pool: str, state: str) -> None:
    def stands() -> bool:
        found = {each["id"]: each["state"] for each in _health(journey, pool)["replicas"]}
        return bool(found[replica] == state)

    wait_until(stands, PATIENCE_S, f"{replica} is {state}")


@then(parsers.re(r'(?P<names>".+") (?:has|have) run to (?:its|their) ends?'))
def have_run_to_their_ends(journey: Journey, names: str) -> None:
    """Every token that was asked for, whoever decoded it."""
    for name in quoted(names):
        last = journey.read(name)[-1]
        wanted = journey.asked[name].document["max_tokens"]
        assert (last.name, last.data.get("tokens_out")) == ("end", wanted), (name, last)


@then(parsers.re(r'(?P<names>".+") (?:is|are) turned away with'))
def turned_away(journey: Journey, names: str, datatable: Table) -> None:
    """Status 503 with Retry-After; the table names what the envelope must say."""
    expected = pairs(datatable)
    for name in quoted(names):
        answer = journey.asked[name].answer
        assert answer.status == 503, (name, answer)
        assert int(answer.headers["retry-after"]) >= 1
        envelope = answer.json()
        assert {word: envelope.get(word) for word in expected} == expected, name


@then(parsers.parse('all of "{group}" have run'))
def all_have_run(journey: Journey, group: str) -> None:
    for name in journey.names(group):
        have_run_to_their_ends(journey, f'"{name}"')


@then(parsers.parse('all of "{group}" have run, some of them in "{pool}" and some in "{other}"'))
def have_run_in_both(journey: Journey, group: str, pool: str, other: str) -> None:
    names = journey.names(group)
    for name in names:
        assert journey.read(name)[-1].name == "end", name
    counts = [
        journey.service.metric("tasks_finished_total", pool_id=each, outcome="completed")
        for each in (pool, other)
    ]
    assert all(counts), counts
    assert sum(counts) >= len(names)


def _order(
    journey: Journey, order: str, replica: str | None, pool: str, body: dict[str, Any]
) -> Answer:
    name = {"rolls-back": "rollback"}.get(order, order.removesuffix("s"))
    if replica is not None:
        body["replica_id"] = replica
    bodiless = name in ("promote", "rollback")
    path = f"/v1/pools/{pool}/{name}"
    return journey.request("the operator", "POST", path, None if bodiless else body)


def _health(journey: Journey, pool: str) -> dict[str, Any]:
    return dict(journey.request("the operator", "GET", f"/v1/pools/{pool}/health").json())
