"""Command lines and addresses as they may be shown: without what is, or may hold, a secret.

Off every task's path: what `llama-orch pools plan` prints and `GET /v1/config` answers goes through
here; it lies this low because pool manager and orchestrator both show command lines. The invariant:
what follows an option or variable that is named for a key, token, secret or password is not shown,
nor are the user part, query and fragment of an address. Requirements: OC-CTRL-2041.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

# What stands where a secret was.
REDACTED = "[redacted]"

_NAME = r"\S*?(?:api[-_]?key|token|secret|password)"
# The next word is its value.
_OPTION = re.compile(rf"-{_NAME}\Z", re.IGNORECASE)
# Its value is in the same word.
_ASSIGNED = re.compile(rf"{_NAME}=", re.IGNORECASE)
# Within a word that is itself a command line, such as that of `sh -c`.
_EMBEDDED = re.compile(
    rf"((?<!\S)(?:-{_NAME}[\s=]\s*|{_NAME}=))(?:\"[^\"]*\"|'[^']*'|\S+)", re.IGNORECASE
)
_USER_PART = re.compile(r"(?<=://)[^/\s]*@")
_QUERY = re.compile(r"(://[^\s?#]*)[?#]\S*")


def shown_text(text: str) -> str:
    """The text, its addresses without user part, query and fragment."""
    return _QUERY.sub(r"\1", _USER_PART.sub("", text)) if "://" in text else text


def shown_words(words: Iterable[str]) -> Iterator[str]:
    """The words of a command line, each at its place."""
    hide = False
    for word in map(shown_text, words):
        if hide:
            hide = False
            yield REDACTED
            continue
        hide = _OPTION.match(word) is not None
        if (assigned := _ASSIGNED.match(word)) is not None:
            yield assigned[0] + REDACTED
        else:
            yield _EMBEDDED.sub(rf"\1{REDACTED}", word)
