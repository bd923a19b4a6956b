"""Looks for secrets in what the service wrote: every log, metrics text and error of a test run.

The processes of the harness hand over their logs when they end and what they answered as it comes;
a secret fails the test that caused it, and what was read is counted in the report
`secrets/scan.json`. Two kinds of findings: a known secret, which every key of the harness is from
its first use, and a text that looks like one whatever it is (a private key, credentials in an
address, the value of a field that is named for a secret). Invariant: a finding names where it is
and which secret it is by its first characters, never the whole. Requirements: OC-CTRL-2041,
ORCH-3035.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator

# What looks like a secret, each with its name. A value that says it is hidden is none.
_SHAPES = {
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "credentials in an address": re.compile(r"://[^/\s:@\"]+:[^/\s@\"]+@"),
    "a bearer token": re.compile(r"\bBearer\s+(?!\[redacted\])[\w.~+/=-]{8,}", re.IGNORECASE),
    "the value of a secret field": re.compile(
        r"\b(?:api[-_]?key|password|passwd|secret|authorization)\"?\s*[=:]\s*\"?"
        r"(?!\[redacted\]|null|None|Bearer|\")[\w.~+/=-]{6,}",
        re.IGNORECASE,
    ),
}
_SHOWN_CHARACTERS = 4

_known: set[str] = set()
_scanned: Counter[str] = Counter()


class SecretLeak(AssertionError):
    """The service wrote a secret."""


def learn(secrets: Iterable[str]) -> None:
    """From now on these are secrets. Raises: ValueError for one too short to be told from text."""
    for secret in secrets:
        if len(secret) < 8:
            raise ValueError("a secret of under 8 characters would be found everywhere")
        _known.add(secret)


def findings(text: str) -> Iterator[str]:
    """Each kind of secret in `text`, once, as what it is and how it begins."""
    for secret in sorted(_known):
        if secret in text:
            yield f"the secret {secret[:_SHOWN_CHARACTERS]}…"
    for name, shape in _SHAPES.items():
        if shape.search(text):
            yield name


def check(kind: str, text: str, where: str, sent: str = "") -> None:
    """Count one text of a kind ("log", "metrics", "error") and look for secrets in it.

    What a client itself had in `sent`, where names and not keys belong, may come back to it.

    Raises: SecretLeak, naming `where` and what was found.
    """
    _scanned[f"{kind} texts"] += 1
    _scanned[f"{kind} bytes"] += len(text)
    found = set(findings(text)) - (set(findings(sent)) if sent else set())
    if found:
        raise SecretLeak(f"{where} holds {', '.join(sorted(found))}")


def report() -> str:
    """What was read so far, as JSON."""
    return json.dumps({"known secrets": len(_known)} | _scanned, indent=1) + "\n"
