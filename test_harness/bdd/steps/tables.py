"""Reading the tables and lists that steps carry.

Off every request's path. Invariant: a cell that looks like a number, a truth value or an object in
braces is one, an empty cell is absent, `something` is anything but nothing, and everything else is
text.
"""

from __future__ import annotations

import re
from typing import Any

import yaml

Table = list[list[str]]


def rows(table: Table) -> list[dict[str, Any]]:
    """One mapping a line, by the words of the first line."""
    head, *lines = table
    return [
        {word: _value(cell) for word, cell in zip(head, line, strict=True) if cell}
        for line in lines
    ]


def pairs(table: Table) -> dict[str, Any]:
    """A table of two columns, without a head line."""
    return {word: _value(cell) for word, cell in table}


def unlike(shown: Any, table: Table) -> dict[str, Any]:
    """What a document shows otherwise than a table of `pairs` says; a word such as `engines.0.ctx`
    leads into it.
    """
    found = {word: part(shown, word) for word in pairs(table)}
    return {
        word: found[word]
        for word, value in pairs(table).items()
        if (found[word] in (None, "", []) if value == "something" else found[word] != value)
    }


def part(document: Any, word: str) -> Any:
    """The value at `word`, such as `engines.0.ctx`; None where there is nothing."""
    for step in word.split("."):
        if isinstance(document, list):
            document = document[int(step)] if int(step) < len(document) else None
        else:
            document = document.get(step) if isinstance(document, dict) else None
    return document


def quoted(text: str) -> list[str]:
    """The quoted names in a list such as `"a", "b" and "c"`."""
    found = re.findall(r'"([^"]+)"', text)
    assert found, f"no quoted name in {text}"
    return found


def _value(cell: str) -> Any:
    if cell in ("true", "false"):
        return cell == "true"
    if cell.startswith("{"):
        return yaml.safe_load(cell)
    return int(cell) if re.fullmatch(r"-?\d+", cell) else cell
