"""Lets pytest-bdd play the scenarios against a live service, and keeps what came of each.

The scenarios, their steps and the rule that an undefined step fails are those of
`bdd.test_features`; only the stage is another one. Invariant: a scenario that owns its service is
never played here, a selected one of the others always is.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pytest_bdd.parser import ScenarioTemplate, Step
from pytest_bdd.scenario import scenario_wrapper_template_registry

from bdd.live_service import LIVE, LiveService
from bdd.selection import FEATURES, VARIABLE
from bdd_runner.report import Outcome, Played
from orch_tools.features import OWN_SERVICE

ROOT = Path(__file__).resolve().parents[2]
SCENARIOS = ROOT / "test_harness" / "bdd" / "test_features.py"
OPTIONS = (
    # In the order of the files, without what pytest prints and keeps for itself.
    *("-p", "no:randomly", "-p", "no:cacheprovider", "-p", "no:terminal", "--capture=sys"),
    *("-p", "no:schemathesis"),  # a second of imports that no scenario uses
    # pytest-bdd is imported here already; its own assertions need no rewriting.
    *("-W", "ignore::pytest.PytestAssertRewriteWarning"),
)


class CannotPlay(Exception):
    """Nothing was played: the message says why."""


def play(service: LiveService, features: Path, tags: frozenset[str]) -> list[Played]:
    """Play the scenarios of `features` that carry one of `tags`; no tag stands for all.

    Raises:
        CannotPlay: the features cannot be read, or no scenario is left to be played.
    """
    player = _Player(service, tags)
    os.environ[VARIABLE] = str(features)
    arguments = [str(SCENARIOS), "-c", str(ROOT / "pyproject.toml"), *OPTIONS]
    status = pytest.main(arguments, plugins=[player])
    if player.problems or status not in (
        pytest.ExitCode.OK,
        pytest.ExitCode.TESTS_FAILED,
        pytest.ExitCode.NO_TESTS_COLLECTED,
    ):
        raise CannotPlay("\n".join(player.problems) or f"pytest ended with {status!r}")
    if not player.played:
        raise CannotPlay(f"no scenario carries {' or '.join(sorted(tags))}")
    if all(each.outcome is Outcome.NEEDS_OWN_SERVICE for each in player.played):
        raise CannotPlay(
            f"all {len(player.played)} scenarios need their own service; `make bdd` plays them"
        )
    return player.played


class _Player:
    """A pytest plugin for one run."""

    def __init__(self, service: LiveService, tags: frozenset[str]) -> None:
        self.played: list[Played] = []
        self.problems: list[str] = []
        self._service = service
        self._tags = tags
        self._failed: dict[str, tuple[str, str]] = {}
        self._step = ""
        self._durations: dict[str, float] = {}

    def pytest_configure(self, config: pytest.Config) -> None:
        """Set the stage."""
        config.stash[LIVE] = self._service

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """A feature that cannot be read."""
        if report.failed:
            self.problems.append(report.longreprtext.strip().splitlines()[-1])

    @pytest.hookimpl(trylast=True)
    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Keep the selected scenarios, but for those that need their own service."""
        kept: list[pytest.Item] = []
        for item in items:
            found = _scenario(item)
            if found is None or not (not self._tags or self._tags & set(_tags(item))):
                continue
            if item.get_closest_marker(OWN_SERVICE) is None:
                kept.append(item)
            else:
                self.played.append(_played(item, found, Outcome.NEEDS_OWN_SERVICE))
        items[:] = kept

    def pytest_bdd_before_scenario(self) -> None:
        """Nothing has been said yet."""
        self._step = ""

    def pytest_bdd_step_error(self, step: Step) -> None:
        """Note the step that failed."""
        self._step = f"{step.keyword} {step.name}"

    def pytest_bdd_step_func_lookup_error(self, step: Step) -> None:
        """Note the step that nobody has defined."""
        self._step = f"{step.keyword} {step.name}"

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> Any:
        """Note why a phase failed, and how long all of them took."""
        report: pytest.TestReport = yield
        name = item.nodeid
        self._durations[name] = self._durations.get(name, 0.0) + report.duration
        if report.failed and name not in self._failed:
            error = call.excinfo
            said = report.longreprtext if error is None else error.exconly()
            self._failed[name] = (self._step, said)
        if report.when == "teardown":
            found = _scenario(item)
            assert found is not None
            step, said = self._failed.get(name, ("", ""))
            outcome = Outcome.FAILED if name in self._failed else Outcome.PASSED
            duration_s = round(self._durations[name], 3)
            self.played.append(_played(item, found, outcome, duration_s, step, said))
        return report


def _played(item: pytest.Item, found: ScenarioTemplate, *rest: Any) -> Played:
    feature = Path(found.feature.filename)
    if feature.is_relative_to(FEATURES):
        feature = feature.relative_to(FEATURES)
    return Played(feature.as_posix(), found.name, _tags(item), *rest)


def _scenario(item: pytest.Item) -> ScenarioTemplate | None:
    function: Callable[..., object] | None = getattr(item, "function", None)
    return None if function is None else scenario_wrapper_template_registry.get(function)


def _tags(item: pytest.Item) -> tuple[str, ...]:
    named = {each for marker in item.iter_markers("req") for each in marker.args}
    return tuple(sorted(named | {OWN_SERVICE for _ in item.iter_markers(OWN_SERVICE)}))
