"""What the last full test run proved: ``requirements/evidence.json``, read by COMPLIANCE.md and
compared in CI.

Off every request's path. Shape: {requirement id: {test node id without parameters: "passed" |
"failed"}}. The pytest plugin writes it (`harness_kit.req_plugin`); ``make evidence`` commits to a
fresh one.

Invariant: the content is a pure function of the outcomes: sorted, no times, no machine, so that two
runs of the same tree give the same bytes. Requirements: OC-CONFIG-6010.
"""

from __future__ import annotations

import json
from pathlib import Path

EVIDENCE_FILE = Path("requirements/evidence.json")

Evidence = dict[str, dict[str, str]]


class EvidenceError(Exception):
    """The evidence file is missing or is not of the described shape."""


def read_evidence(path: Path) -> Evidence:
    """Read an evidence file.

    Raises: EvidenceError, naming the file.
    """
    try:
        document: Evidence = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise EvidenceError(f"{path}: cannot be read as evidence: {error}") from error
    shaped = isinstance(document, dict) and all(
        isinstance(tests, dict) and all(each in ("passed", "failed") for each in tests.values())
        for tests in document.values()
    )
    if not shaped:
        raise EvidenceError(f"{path}: not of the form {{id: {{test: passed|failed}}}}")
    return document


def write_evidence(path: Path, evidence: Evidence) -> None:
    """Write an evidence file, sorted, one test a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(evidence, indent=1, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", "utf-8")


def merge(older: Evidence, newer: Evidence) -> Evidence:
    """Both runs together; where both ran a test, a failure of either is a failure."""
    merged: Evidence = {named: dict(tests) for named, tests in older.items()}
    for named, tests in newer.items():
        into = merged.setdefault(named, {})
        for test, outcome in tests.items():
            into[test] = "failed" if into.get(test) == "failed" else outcome
    return merged


def differences(committed: Evidence, fresh: Evidence) -> list[str]:
    """What a fresh run shows otherwise than the committed file, one sorted line each."""
    lines: list[str] = []
    for named in sorted(committed.keys() | fresh.keys()):
        before, now = committed.get(named, {}), fresh.get(named, {})
        for test in sorted(before.keys() | now.keys()):
            was, is_now = before.get(test, "not recorded"), now.get(test, "not run")
            if was != is_now:
                lines.append(f"{named}: {test}: committed {was}, this run {is_now}")
    return lines
