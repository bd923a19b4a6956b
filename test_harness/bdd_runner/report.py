"""What came of a run of features: for people, line by line, and as one JSON document."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum


class Outcome(StrEnum):
    """What a scenario may come to."""

    PASSED = "passed"
    FAILED = "failed"
    NEEDS_OWN_SERVICE = "needs its own service"


@dataclass(frozen=True, slots=True)
class Played:
    """One scenario; `step` and `error` where it failed, `tags` without their @, sorted."""

    feature: str
    scenario: str
    tags: tuple[str, ...]
    outcome: Outcome
    duration_s: float = 0.0
    step: str = ""
    error: str = ""


def count(played: list[Played], outcome: Outcome) -> int:
    """How many came to that."""
    return sum(each.outcome is outcome for each in played)


def as_json(url: str, model: str, played: list[Played]) -> str:
    """The whole report, in the order in which the scenarios were played."""
    document = {
        "service": url,
        "model": model,
        "counts": {outcome.name.lower(): count(played, outcome) for outcome in Outcome},
        "scenarios": [asdict(each) for each in played],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def lines_of(played: list[Played]) -> Iterator[str]:
    """The report for people: what was played by feature, and the counts."""
    feature = ""
    for each in played:
        if each.outcome is Outcome.NEEDS_OWN_SERVICE:
            continue
        if each.feature != feature:
            feature = each.feature
            yield feature
        mark = "FAILED" if each.outcome is Outcome.FAILED else "passed"
        yield f"  {mark}  {each.scenario} ({each.duration_s:.1f} s)"
        yield from (f"          {line}" for line in (each.step, *each.error.splitlines()) if line)
    yield (
        f"{count(played, Outcome.PASSED)} passed, {count(played, Outcome.FAILED)} failed, "
        f"{count(played, Outcome.NEEDS_OWN_SERVICE)} need their own service"
    )
