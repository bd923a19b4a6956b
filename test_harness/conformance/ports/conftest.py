"""Every implementation of a port goes through the same suite; a port without one is an error."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from harness_kit.port_stores import BUSES, COORDINATORS, JOURNAL_STORES, JournalStore
from orchestratord.ports.bus import Bus
from orchestratord.ports.coordinator import Coordinator

for _name, _registry in (
    ("journal", JOURNAL_STORES),
    ("coordinator", COORDINATORS),
    ("bus", BUSES),
):
    if not _registry:
        # Parametrising over nothing would skip the suite, and skipping would look like passing.
        raise pytest.UsageError(f"no implementation of the {_name} port is registered")


@pytest.fixture(params=sorted(JOURNAL_STORES))
def journal_store(request: pytest.FixtureRequest, tmp_path: Path) -> JournalStore:
    return JOURNAL_STORES[request.param](tmp_path)


@pytest.fixture(params=sorted(COORDINATORS))
def new_coordinator(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Coordinator]:
    """Opens one more participant of the same deployment."""
    return partial(COORDINATORS[request.param], tmp_path)


@pytest.fixture(params=sorted(BUSES))
def new_bus(request: pytest.FixtureRequest) -> Callable[[], Bus]:
    return BUSES[request.param]
