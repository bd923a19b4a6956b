"""Where feature files name requirement ids: tags like ``@ORCH-3075`` on a feature, a rule or a
scenario; and ``@own-service``, which `bdd_runner` reads.

Off every request's path; the third scan beside those of `orch_tools.traces`, read as Gherkin, so
that nothing is bound or run. Its place for a scenario, `PATH::NAME`, is also what the plugin writes
into the evidence (`harness_kit.req_plugin`).

Invariant: each tag but that one becomes a trace or a problem, never nothing. Requirements:
OC-CONFIG-6010.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gherkin.errors import ParserError
from gherkin.parser import Parser

from orch_tools.traces import ID, TESTS, Trace

FEATURES = TESTS / "bdd" / "features"
# The one tag that is no requirement: the scenario configures, kills or restarts the service.
OWN_SERVICE = "own-service"


def requirement_of(tag: str) -> str | None:
    """The requirement id that a tag (with or without its @) names; None for any other tag."""
    bare = tag.removeprefix("@")
    return bare if re.fullmatch(ID, bare) else None


def place_of(feature: str, scenario: str) -> str:
    """How evidence and compliance name a scenario: `feature` is a path from the root."""
    return f"{feature}::{scenario}"


def traces_of_features(root: Path) -> tuple[list[Trace], list[str]]:
    """Scenarios of the feature files with the ids in their own tags and those they inherit.

    A scenario outline is one test. Two scenarios of one name are a problem (the later one would
    replace the earlier one), and so is a tag that names no requirement or stands on an Examples
    table, where pytest-bdd makes it a marker of another kind.
    """
    traces: list[Trace] = []
    problems: list[str] = []
    for path in sorted((root / FEATURES).rglob("*.feature")):
        file = path.relative_to(root).as_posix()
        try:
            feature: Any = Parser().parse(path.read_text("utf-8")).get("feature")
        except ParserError as error:
            problems.append(f"{file}: {error}")
            continue
        names: Counter[str] = Counter()
        for scenario, tags in _scenarios(feature or {}, []):
            names[scenario["name"]] += 1
            place = place_of(file, scenario["name"])
            for tag in tags:
                if named := requirement_of(tag["name"]):
                    traces.append(Trace(named, "test", place))
                elif tag["name"] != f"@{OWN_SERVICE}":
                    problems.append(f"{_at(file, tag)}: {tag['name']} is not a requirement id")
            problems.extend(
                f"{_at(file, tag)}: a tag belongs on a feature, a rule or a scenario"
                for examples in scenario["examples"]
                for tag in examples["tags"]
            )
        problems.extend(
            f"{file}: more than one scenario is called {name!r}"
            for name, times in names.items()
            if times > 1
        )
    return traces, problems


def _scenarios(node: Any, outer: list[Any]) -> Iterator[tuple[Any, list[Any]]]:
    """Every scenario below a feature or a rule, with its tags, inherited ones first."""
    tags = outer + node.get("tags", [])
    for child in node.get("children", []):
        if "scenario" in child:
            yield child["scenario"], tags + child["scenario"]["tags"]
        elif "rule" in child:
            yield from _scenarios(child["rule"], tags)


def _at(file: str, tag: Any) -> str:
    return f"{file}:{tag['location']['line']}"
