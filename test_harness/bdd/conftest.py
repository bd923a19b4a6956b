"""The stage of the scenarios, and their order: features one after the other, because each has a
service of its own; within a feature the order stays random.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_bdd.scenario import scenario_wrapper_template_registry

from bdd.journey import Journey
from bdd.stage import Stage


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the scenarios of a feature together, where the first of them stands."""
    features: dict[str, int] = {}
    items.sort(key=lambda item: features.setdefault(_feature(item), len(features)))


def _feature(item: pytest.Item) -> str:
    function = getattr(item, "function", None)
    found = None if function is None else scenario_wrapper_template_registry.get(function)
    return "" if found is None else found.feature.filename


@pytest.fixture(scope="session")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One for all scenarios."""
    built = Stage(tmp_path_factory.mktemp("bdd"))
    yield built
    built.strike()


@pytest.fixture
def journey(stage: Stage) -> Iterator[Journey]:
    """One for each scenario."""
    begun = Journey(stage)
    yield begun
    begun.close()
