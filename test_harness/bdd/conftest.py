"""The stage of the scenarios, and their order: features one after the other, because each has a
service of its own, and those that any service will do for side by side, because they share one;
within a feature the order stays random.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pytest_bdd.scenario import scenario_wrapper_template_registry

from bdd.journey import Journey
from bdd.live_service import LIVE, LiveStage
from bdd.stage import AnyStage, Stage
from orch_tools.features import OWN_SERVICE


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Bring the scenarios of a feature together, where the first of them stands."""
    features: dict[str, int] = {}
    items.sort(
        key=lambda item: (
            item.get_closest_marker(OWN_SERVICE) is not None,
            features.setdefault(_feature(item), len(features)),
        )
    )


def _feature(item: pytest.Item) -> str:
    function = getattr(item, "function", None)
    found = None if function is None else scenario_wrapper_template_registry.get(function)
    return "" if found is None else found.feature.filename


@pytest.fixture(scope="session")
def stage(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[AnyStage]:
    """One for all scenarios."""
    live = request.config.stash.get(LIVE, None)
    if live is not None:
        yield LiveStage(live)
        return
    built = Stage(tmp_path_factory.mktemp("bdd"))
    yield built
    built.close()


@pytest.fixture
def journey(stage: AnyStage) -> Iterator[Journey]:
    """One for each scenario."""
    begun = Journey(stage)
    yield begun
    begun.close()
