"""The requirements as data: bullets of ``contracts/spec/*.md`` in, ``requirements/*.yaml`` out.

Off every request's path. One bullet is one requirement: ``- [ID] (MUST|SHOULD|MAY) text``, or, once
it is given up, ``- [ID] (WITHDRAWN YYYY-MM-DD, see SUCCESSOR) text``. The generated files join each
bullet with what names it: contract elements, tests, product modules (`orch_tools.traces`) and
scenarios (`orch_tools.features`).

Invariant: an id means one thing for ever. A duplicate, an unknown id or the use of a withdrawn one
is an error that names the file and the id; the same tree always gives the same bytes. Requirements:
OC-CONFIG-6010.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

from orch_tools.features import traces_of_features
from orch_tools.open_list import OPEN_FILE, OpenListError, read_open, write_open
from orch_tools.traces import ID, Trace, traces_of_code, traces_of_contracts, traces_of_tests

SPEC_FOLDER = Path("contracts/spec")
OUT_FOLDER = Path("requirements")

_BULLET = re.compile(rf"- \[(?P<id>{ID})\] \((?P<level>[^)]*)\) (?P<text>\S.*)")
_WITHDRAWN = re.compile(rf"WITHDRAWN (?P<date>\d{{4}}-\d{{2}}-\d{{2}}), see (?P<successor>{ID})")
_HEADING = re.compile(r"#{1,6} (?P<title>.+?)\s*")


def slug(heading: str) -> str:
    """A heading's link target, as GitHub makes it."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


class RequirementErrors(Exception):
    """The specification, or what refers to it, is inconsistent; one line per problem."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(sorted(set(problems)))
        super().__init__("\n".join(self.problems))


@dataclass(frozen=True, slots=True)
class Requirement:
    """One bullet of the specification; `level` is MUST, SHOULD, MAY or WITHDRAWN."""

    id: str
    level: str
    text: str
    spec: str  # path from the root, with slashes
    section: str
    withdrawn_on: str | None = None
    successor: str | None = None

    @property
    def anchor(self) -> str:
        """The place in the specification as a link target: path, number sign, heading slug as
        GitHub makes it.
        """
        return f"{self.spec}#{slug(self.section)}"


@dataclass(frozen=True, slots=True)
class Catalog:
    """All requirements by id, in the order of the specification."""

    by_id: Mapping[str, Requirement]

    def problem(self, requirement_id: str) -> str | None:
        """Why this id may not be used, or None when it may."""
        requirement = self.by_id.get(requirement_id)
        if requirement is None:
            return f"unknown requirement id {requirement_id}"
        if requirement.level == "WITHDRAWN":
            return (
                f"requirement {requirement_id} was withdrawn on {requirement.withdrawn_on}, "
                f"use {requirement.successor}"
            )
        return None


def parse_spec(text: str, spec: str) -> list[Requirement]:
    """Read one specification file; indented lines continue a bullet.

    Raises: RequirementErrors, with `spec`, line and reason, for a bullet that starts like a
    requirement and is not one.
    """
    found: list[Requirement] = []
    problems: list[str] = []
    section = ""
    for block, line in _blocks(text):
        if heading := _HEADING.fullmatch(block):
            section = heading["title"]
        elif block.startswith("- ["):
            bullet = _BULLET.fullmatch(block)
            withdrawn = _WITHDRAWN.fullmatch(bullet["level"]) if bullet else None
            if bullet and withdrawn:
                found.append(
                    Requirement(
                        id=bullet["id"],
                        level="WITHDRAWN",
                        text=bullet["text"],
                        spec=spec,
                        section=section,
                        withdrawn_on=withdrawn["date"],
                        successor=withdrawn["successor"],
                    )
                )
            elif bullet and bullet["level"] in {"MUST", "SHOULD", "MAY"}:
                found.append(
                    Requirement(bullet["id"], bullet["level"], bullet["text"], spec, section)
                )
            else:
                problems.append(
                    f"{spec}:{line}: not of the form '- [ID] (MUST|SHOULD|MAY) text' or "
                    f"'- [ID] (WITHDRAWN YYYY-MM-DD, see ID) text': {block[:60]}"
                )
    if problems:
        raise RequirementErrors(problems)
    return found


def load_catalog(root: Path) -> Catalog:
    """Read every specification file below `root`.

    Raises: RequirementErrors for malformed bullets, ids given twice, and successors that do not
    exist or are withdrawn.
    """
    by_id: dict[str, Requirement] = {}
    problems: list[str] = []
    for path in sorted((root / SPEC_FOLDER).glob("*.md")):
        try:
            parsed = parse_spec(path.read_text("utf-8"), path.relative_to(root).as_posix())
        except RequirementErrors as error:
            problems.extend(error.problems)
            continue
        for requirement in parsed:
            first = by_id.setdefault(requirement.id, requirement)
            if first is not requirement:
                problems.append(
                    f"{requirement.spec}: {requirement.id} is given twice, first in {first.spec}"
                )
    catalog = Catalog(by_id)
    problems.extend(
        f"{requirement.spec}: successor of {requirement.id}: {why}"
        for requirement in by_id.values()
        if requirement.successor and (why := catalog.problem(requirement.successor))
    )
    if problems:
        raise RequirementErrors(problems)
    return catalog


def checked_traces(root: Path, catalog: Catalog) -> list[Trace]:
    """Everything below `root` that names a requirement, in a stable order.

    Raises: RequirementErrors when something names an unknown or withdrawn id, or names it where the
    scan cannot read it.
    """
    traces: list[Trace] = []
    problems: list[str] = []
    for scan in (traces_of_contracts, traces_of_tests, traces_of_features, traces_of_code):
        found, unreadable = scan(root)
        traces.extend(found)
        problems.extend(unreadable)
    problems.extend(
        f"{trace.place}: {why}"
        for trace in traces
        if (why := catalog.problem(trace.requirement_id))
    )
    if problems:
        raise RequirementErrors(problems)
    return sorted(set(traces))


def generate(root: Path) -> dict[str, str | bytes]:
    """One YAML file per specification file: path from the root → content.

    Raises: RequirementErrors.
    """
    catalog = load_catalog(root)
    named: dict[str, dict[str, list[Trace]]] = {}
    for trace in checked_traces(root, catalog):
        named.setdefault(trace.requirement_id, {}).setdefault(trace.kind, []).append(trace)
    entries: dict[Path, list[dict[str, object]]] = {}
    for requirement in catalog.by_id.values():
        out = OUT_FOLDER / f"{Path(requirement.spec).stem}.yaml"
        entries.setdefault(out, []).append(_entry(requirement, named.get(requirement.id, {})))
    return {
        path.as_posix(): "# Generated by `python -m orch_tools regen` from "
        f"{SPEC_FOLDER.as_posix()}/{path.stem}.md and what names its ids; do not edit.\n"
        + yaml.safe_dump(listed, sort_keys=False, allow_unicode=True, width=120)
        for path, listed in entries.items()
    }


def lint(root: Path) -> list[str]:
    """Every problem of the requirements below `root`, one line each; an empty list is a clean tree.

    Beyond what `generate` refuses: a MUST without a complete test that `requirements/open.yaml`
    does not explain, and an explanation that is out of date.
    """
    try:
        catalog = load_catalog(root)
        complete = _completely_tested(checked_traces(root, catalog))
        explained = read_open(root)
    except (RequirementErrors, OpenListError) as error:
        return str(error).splitlines()
    listed = set(explained.listed)
    problems = [
        f"{requirement.spec}: {requirement.id} is a MUST without a complete test; "
        f"write one, or say why in {OPEN_FILE.as_posix()}"
        for requirement in catalog.by_id.values()
        if requirement.level == "MUST" and requirement.id not in complete | listed
    ]
    problems += [f"{OPEN_FILE.as_posix()}: {each}" for each in explained.problems(complete)]
    problems += [
        f"{OPEN_FILE.as_posix()}: {why}" for each in listed if (why := catalog.problem(each))
    ]
    return sorted(problems)


def settle(root: Path, reason: str, waits_for: str) -> None:
    """Bring `requirements/open.yaml` up to date, for a person to review as a diff.

    What is proved now or no longer exists goes out; a MUST that is neither proved nor listed goes
    in under `reason`, open until the capability `waits_for` lands.

    Raises: RequirementErrors, OpenListError.
    """
    catalog = load_catalog(root)
    complete = _completely_tested(checked_traces(root, catalog))
    needed = {
        each.id
        for each in catalog.by_id.values()
        if each.level == "MUST" and each.id not in complete
    }
    write_open(root, read_open(root).settled(needed, reason, waits_for))


def _completely_tested(traces: Iterable[Trace]) -> set[str]:
    return {trace.requirement_id for trace in traces if trace.kind == "test" and not trace.partial}


def _entry(requirement: Requirement, named: Mapping[str, list[Trace]]) -> dict[str, object]:
    tests = named.get("test", [])
    complete = {t.place for t in tests if not t.partial}
    entry: dict[str, object] = {
        "id": requirement.id,
        "level": requirement.level,
        "text": requirement.text,
        "section": requirement.section,
        "spec": requirement.anchor,
    }
    if requirement.withdrawn_on:
        entry |= {"withdrawn_on": requirement.withdrawn_on, "successor": requirement.successor}
    entry |= {
        "contract": [t.place for t in named.get("contract", [])],
        "tests": sorted(complete),
        "code": [t.place for t in named.get("code", [])],
    }
    if partial := {t.place: t.partial for t in tests if t.place not in complete}:
        entry["partial_tests"] = partial
    return entry


def _blocks(text: str) -> Iterable[tuple[str, int]]:
    """Lines with their number; a bullet's indented continuation lines are joined to it."""
    block, start = "", 0
    for number, line in enumerate(text.splitlines(), 1):
        if block.startswith("- ") and line.startswith("  ") and line.strip():
            block += " " + line.strip()
            continue
        if block:
            yield block, start
        block, start = line.rstrip(), number
    if block:
        yield block, start
