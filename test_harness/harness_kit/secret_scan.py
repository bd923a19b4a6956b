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
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator
from typing import Any
from urllib.parse import unquote

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
# Shorter ones would be found everywhere.
_SECRET_CHARACTERS_MIN = 8
_CREDENTIALS = re.compile(
    r"^(?:x-api-key|(?:proxy-)?authorization|cookie): *(?:Bearer +)?(.*?)\r?$", re.I | re.M
)
# What clients ask; a service never says it back.
_ASKED_FIELDS = frozenset({"prompt", "messages", "inputs"})
_PROMPTS_MAX = 256

_known: set[str] = set()
_prompts: deque[str] = deque(maxlen=_PROMPTS_MAX)
_scanned: Counter[str] = Counter()


class SecretLeak(AssertionError):
    """The service wrote a secret."""


def learn(secrets: Iterable[str]) -> None:
    """From now on these are secrets. Raises: ValueError for one too short to be told from text."""
    for secret in secrets:
        if len(secret) < _SECRET_CHARACTERS_MIN:
            raise ValueError("a secret of under 8 characters would be found everywhere")
        _known.add(secret)


def learn_prompts(request: bytes) -> None:
    """The next errors must not hold what this request asks; the last 256 prompts are known."""
    document = _parts(request)[1]
    if not isinstance(document, dict):
        return
    for name in _ASKED_FIELDS & document.keys():
        asked = document[name]
        for each in asked if isinstance(asked, list) else [asked]:
            text = each.get("content") if isinstance(each, dict) else each
            # One word alone may be the name of something else.
            if isinstance(text, str) and len(text) >= _SECRET_CHARACTERS_MIN and " " in text:
                _prompts.append(text)


def findings(text: str, more: Collection[str] = ()) -> Iterator[str]:
    """Each kind of secret in `text`, once, as what it is and how it begins; `more` are secrets
    beside those that are known."""
    for secret in sorted(_known.union(more)):
        if secret in text:
            yield f"the secret {secret[:_SHOWN_CHARACTERS]}…"
    for name, shape in _SHAPES.items():
        if shape.search(text):
            yield name


def check(kind: str, text: str, where: str, sent: str = "", more: Collection[str] = ()) -> None:
    """Count one text of a kind ("log", "metrics", "error") and look for secrets in it.

    What a client itself had in `sent`, where names and not keys belong, may come back to it. `more`
    are secrets here alone.

    Raises: SecretLeak, naming `where` and what was found.
    """
    _scanned[f"{kind} texts"] += 1
    _scanned[f"{kind} bytes"] += len(text)
    found = set(findings(text, more)) - (set(findings(sent, more)) if sent else set())
    if found:
        raise SecretLeak(f"{where} holds {', '.join(sorted(found))}")


def check_error(body: bytes, where: str, request: bytes = b"") -> None:
    """Look in an error for secrets, the credentials of its request and recent prompts; what the
    request has in its path or in another field the error may name.

    Raises: SecretLeak.
    """
    head, document = _parts(request)
    names = "" if document is None else " ".join(_texts(_named(document)))
    credentials = [c for c in _CREDENTIALS.findall(head) if len(c) >= _SECRET_CHARACTERS_MIN]
    sent = unquote(head.partition("\r\n")[0]) + " " + names
    text = " ".join([body.decode(errors="replace"), *_texts(_decoded(body))])
    check("error", text, where, sent, {*credentials, *_prompts})


def _parts(request: bytes) -> tuple[str, Any]:
    head, _, body = request.partition(b"\r\n\r\n")
    return head.decode("latin-1"), _decoded(body) if body else None


def _decoded(body: bytes) -> Any:
    """The JSON value, or the text where it is none."""
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        return body.decode(errors="replace")


def _named(document: Any) -> Any:
    """Without what it asks."""
    if not isinstance(document, dict):
        return document
    return {name: value for name, value in document.items() if name not in _ASKED_FIELDS}


def _texts(value: Any) -> Iterator[str]:
    """Every text in a JSON value, names of fields included."""
    match value:
        case str():
            yield value
        case dict():
            yield from value
            for each in value.values():
                yield from _texts(each)
        case list():
            for each in value:
                yield from _texts(each)


def report() -> str:
    """What was read so far, as JSON."""
    return json.dumps({"known secrets": len(_known)} | _scanned, indent=1) + "\n"
