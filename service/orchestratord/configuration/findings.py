"""Where the checks after the schema write down what they found.

Problems stop the start; warnings are advice. Invariant: a finding has its line and never a secret,
because `shown` and `key_of` are the only way in (ORCH-3030, OC-CLI-8003).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .document import Document
from .problems import Path, Problem, key_of, shown

# What stands where a finding is about something that is not there.
ABSENT = object()


@dataclass(slots=True)
class Findings:
    """The problems and warnings of one document, in the order in which they were found."""

    document: Document
    problems: list[Problem] = field(default_factory=list)
    warnings: list[Problem] = field(default_factory=list)

    def reject(self, path: Path, value: Any, rule: str) -> None:
        """Nothing may start with this."""
        self.problems.append(self._finding(path, value, rule))

    def warn(self, path: Path, value: Any, rule: str) -> None:
        """The service starts, and its author should know."""
        self.warnings.append(self._finding(path, value, rule))

    def _finding(self, path: Path, value: Any, rule: str) -> Problem:
        text = "" if value is ABSENT else shown(path, value)
        return Problem(key_of(path), text, rule, self.document.line_of(path))


def section(data: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Return a section; one that is absent or null is empty: the schema's defaults hold."""
    value = data.get(name)
    return value if isinstance(value, dict) else {}
