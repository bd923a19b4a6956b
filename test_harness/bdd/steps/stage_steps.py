"""Steps about what stands on the stage: configuration, engines, crashes."""

from __future__ import annotations

import os
import signal
import sys
from dataclasses import replace

import yaml
from pytest_bdd import given, parsers, when

from bdd.journey import Journey
from bdd.stage import PATIENCE_S, PoolWanted
from harness_kit.waiting import wait_until


@given(
    parsers.re(
        r'pool "(?P<pool>[^"]+)" with (?P<engines>\d+) engines? of (?P<slots>\d+) slots?'
        r"(?: and)?"
    ),
    converters={"engines": int, "slots": int},
)
def pool_is_configured(
    journey: Journey, pool: str, engines: int, slots: int, docstring: str = "{}"
) -> None:
    """The text below the step is the pool's part of the configuration file."""
    journey.wanted.pools[pool] = PoolWanted(engines, slots, yaml.safe_load(docstring))


@given(parsers.parse('a token of context takes 256 bytes of KV in "{pool}"'))
def kv_bytes_are_known(journey: Journey, pool: str) -> None:
    """As its small model says: 2 layers, 2 heads for K and V, 16 wide, 2 bytes an element."""
    wanted = journey.wanted.pools[pool]
    journey.wanted.pools[pool] = replace(wanted, model_file=True)


@given(parsers.parse("the section {name} says"))
def section_is_configured(journey: Journey, name: str, docstring: str) -> None:
    """The text below the step is a section of the configuration file."""
    journey.wanted.sections[name] = yaml.safe_load(docstring)


@given(parsers.parse('a service whose model is called "{pool}"'))
def any_model(journey: Journey, pool: str) -> None:
    """Whatever a live service serves; a real llama.cpp where the scenarios start their own."""
    small = {"ctx": 1024, "timeouts": {"wall_ms": 120_000, "idle_ms": 60_000}}
    journey.wanted.pools[pool] = PoolWanted(0, 2, small, any_model=True)


@given(parsers.parse('pool "{pool}" whose engine cannot start'))
def engine_cannot_start(journey: Journey, pool: str) -> None:
    launch = {"count": 1, "command": [sys.executable, "-c", "raise SystemExit('no such device')"]}
    journey.wanted.pools[pool] = PoolWanted(0, 1, {"launch": launch}, broken=True)


@given(parsers.parse('all slots of "{pool}" are taken'))
def slots_are_taken(journey: Journey, pool: str) -> None:
    journey.take_slots(pool)


@given(parsers.parse('the engines of "{pool}" stop after {tokens:d} tokens of each task'))
@when(parsers.parse('the engines of "{pool}" stop after {tokens:d} tokens of each task'))
def engines_stop_after(journey: Journey, pool: str, tokens: int) -> None:
    for engine in journey.engines(pool).values():
        engine.hold(tokens)


@when(parsers.parse('the engines of "{pool}" go on'))
def engines_go_on(journey: Journey, pool: str) -> None:
    for engine in journey.engines(pool).values():
        engine.allow()


@when(parsers.parse('engine {replica} of "{pool}" dies'))
def engine_dies(journey: Journey, replica: str, pool: str) -> None:
    journey.kill_engine(pool, replica)


@when(parsers.parse('the process of the first engine of "{pool}" is killed'))
def engine_process_is_killed(journey: Journey, pool: str) -> None:
    """Of those that the service launched."""
    first = min(journey.service.engine_pids(pool).items())
    os.kill(first[1], signal.SIGKILL)


@when(parsers.re(r'the engine of "(?P<pool>[^"]+)" (?P<what>loads its model again|has loaded)'))
def engine_loads(journey: Journey, pool: str, what: str) -> None:
    journey.engine(pool).loading = what != "has loaded"


@when("the service is stopped and started again")
def service_restarts(journey: Journey) -> None:
    journey.stop_and_restart()


@when("the service is killed and started again")
def service_crashes(journey: Journey) -> None:
    journey.crash_and_restart()


@when(parsers.parse('{count:d} tasks have run in "{pool}" before its engines stop'))
def some_have_run(journey: Journey, count: int, pool: str) -> None:
    """The engine runs free until it has taken up so many; the one in its slot stops anywhere."""
    engine = journey.engine(pool)
    engine.allow()
    wait_until(lambda: len(journey.ran(pool)) >= count, PATIENCE_S, f"{count} tasks have run")
    engine.hold()
