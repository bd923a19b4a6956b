"""pytest plugin behind ``@pytest.mark.req("ORCH-3004")``: checks the ids and records what the tests
proved.

Off every request's path; loaded by the pytest configuration. A test that proves a requirement only
in part says so: ``@pytest.mark.req("ORCH-3004", partial="what is missing")``. A scenario has its
ids as tags, ``@ORCH-3004``, and is recorded under its feature file and name.

    pytest --evidence-out FILE                    write {requirement id: {test: passed | failed}}
    pytest --evidence-out FILE --evidence-merge   add to what FILE holds already (a failure stays a
    failure)

Invariant: nothing runs while a marker names an unknown or withdrawn id; a test counts as passed
only when set-up, body and tear-down of each of its parameters (or examples) passed, and a skipped
one proves nothing. An interrupted run writes nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from pytest_bdd.scenario import scenario_wrapper_template_registry

from orch_tools.evidence import Evidence, merge, read_evidence, write_evidence
from orch_tools.features import place_of, requirement_of
from orch_tools.requirements import Catalog, RequirementErrors, load_catalog

# Under these names an item's ids and its place in the evidence travel in its report, which also
# survives the way from a worker process.
_PROPERTY = "req"
_PLACE = "req-place"


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the two options of the evidence file."""
    group = parser.getgroup("requirements")
    group.addoption("--evidence-out", type=Path, metavar="FILE", help="write requirement evidence")
    group.addoption(
        "--evidence-merge", action="store_true", help="keep what the evidence file already holds"
    )


def pytest_configure(config: pytest.Config) -> None:
    """Start recording when an evidence file is asked for.

    Raises: pytest.UsageError for --evidence-merge without --evidence-out.
    """
    out: Path | None = config.getoption("--evidence-out")
    merging: bool = config.getoption("--evidence-merge")
    if out is not None:
        recorder = EvidenceRecorder(config.invocation_params.dir / out, merging)
        config.pluginmanager.register(recorder, "requirement-evidence")
    elif merging:
        raise pytest.UsageError("--evidence-merge needs --evidence-out FILE")


@pytest.hookimpl(tryfirst=True, optionalhook=True)
def pytest_bdd_apply_tag(tag: str, function: Callable[..., object]) -> bool | None:
    """A tag that is a requirement id becomes a req marker; others are left to pytest-bdd, which
    makes them markers, and an unknown marker is an error.
    """
    named = requirement_of(tag)
    if named is None:
        return None
    pytest.mark.req(named)(function)
    return True


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Check every req marker, before anything is deselected, and attach its ids to the item.

    Raises: pytest.UsageError, naming each test and id.
    """
    if not any(item.get_closest_marker("req") for item in items):
        return
    try:
        catalog = load_catalog(config.rootpath)
    except RequirementErrors as error:
        raise pytest.UsageError(str(error)) from error
    problems: set[str] = set()
    for item in items:
        place = _place_of(item, config.rootpath)
        item.user_properties.append((_PLACE, place))
        for marker in item.iter_markers("req"):
            problems.update(f"{place}: {p}" for p in _problems(marker, catalog))
            item.user_properties.extend((_PROPERTY, named) for named in marker.args)
    if problems:
        raise pytest.UsageError("\n".join(sorted(problems)))


class EvidenceRecorder:
    """Collects outcomes of one run and writes them when it ends."""

    def __init__(self, out: Path, merging: bool) -> None:
        self._out = out
        self._merging = merging
        self._ids: dict[str, set[str]] = {}
        self._failed: set[str] = set()
        self._skipped: set[str] = set()
        self._finished: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Note one phase (set-up, body, tear-down) of one test."""
        named = {str(value) for key, value in report.user_properties if key == _PROPERTY}
        if not named:
            return
        test = next(str(value) for key, value in report.user_properties if key == _PLACE)
        self._ids.setdefault(test, set()).update(named)
        if report.failed:
            self._failed.add(test)
        elif report.skipped:
            self._skipped.add(test)
        elif report.when == "teardown":
            self._finished.add(test)

    def pytest_sessionfinish(self, exitstatus: int | pytest.ExitCode) -> None:
        """Write the file, unless the run broke off before every collected test had its turn."""
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED):
            return
        fresh: Evidence = {}
        for test, outcome in self._outcomes():
            for requirement_id in self._ids[test]:
                fresh.setdefault(requirement_id, {})[test] = outcome
        if self._merging and self._out.exists():
            fresh = merge(read_evidence(self._out), fresh)
        write_evidence(self._out, fresh)

    def _outcomes(self) -> Iterator[tuple[str, str]]:
        for test in self._ids:
            if test in self._failed:
                yield test, "failed"
            elif test in self._finished and test not in self._skipped:
                yield test, "passed"


def _problems(marker: pytest.Mark, catalog: Catalog) -> Iterator[str]:
    if not marker.args or not all(isinstance(named, str) for named in marker.args):
        yield "a req marker takes requirement ids as texts, at least one"
        return
    if set(marker.kwargs) - {"partial"} or not marker.kwargs.get("partial", "-"):
        yield 'a req marker takes only partial="what is missing" beside ids'
    for named in marker.args:
        if why := catalog.problem(named):
            yield why


def _place_of(item: pytest.Item, root: Path) -> str:
    """A scenario's feature file and name; for any other test its id without the parameters."""
    function = getattr(item, "function", None)
    scenario = None if function is None else scenario_wrapper_template_registry.get(function)
    if scenario is None:
        return item.nodeid.partition("[")[0]
    feature = Path(scenario.feature.filename)
    if feature.is_relative_to(root):
        feature = feature.relative_to(root)
    return place_of(feature.as_posix(), scenario.name)
