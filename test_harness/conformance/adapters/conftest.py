"""Engines for the adapter suites: one of each kind per session, and fresh ones to break."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
import uvloop

from harness_kit.engine_targets import TARGETS, EngineTarget, RunningEngine
from harness_kit.fake_engine import FakeEngine

Run = Callable[[Awaitable[None]], None]


@pytest.fixture
def run() -> Iterator[Run]:
    """Runs one coroutine on the loop the product uses; fails on what the loop complains about."""
    complaints: list[dict[str, Any]] = []
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.get_loop().set_exception_handler(lambda _, context: complaints.append(context))

        def run_it(work: Awaitable[None]) -> None:
            async def whole() -> None:
                await work

            runner.run(whole())

        yield run_it
    assert complaints == []


@pytest.fixture(scope="session", params=list(TARGETS))
def target(request: pytest.FixtureRequest) -> EngineTarget:
    return TARGETS[request.param]


@pytest.fixture(scope="session")
def engine(target: EngineTarget) -> Iterator[RunningEngine]:
    """Shared by the tests of one target; every test leaves its slots free."""
    with target.running() as running:
        yield running


@pytest.fixture
def fake() -> Iterator[FakeEngine]:
    with FakeEngine() as engine:
        yield engine
