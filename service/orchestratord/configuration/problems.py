"""What can be wrong with a configuration, as values that never carry a secret.

Every problem names the key, the value and the rule (ORCH-3030, OC-CLI-8003). The invariant: a value
below a secret place (`key_hmac`, an unknown key beside it, `env`, a password in a URL) is replaced
before a `Problem` exists, so that no printer, log line or traceback can leak it.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

MASKED = "(hidden)"
# Long values are cut: a message is read on one terminal line.
_VALUE_CHARACTERS_MAX = 60
_ENVIRONMENT_NAME = re.compile(r"[A-Z_][A-Z0-9_]*\Z")
_URL_PASSWORD = re.compile(r"(://)[^/@\s]+@")
_PUBLIC_KEY_FIELDS = frozenset({"id", "tenant", "roles"})

Path = tuple[str | int, ...]


@dataclass(frozen=True, slots=True)
class Problem:
    """One finding: where (`key`, `line` from 1), what stands there, what holds (`rule`)."""

    key: str
    value: str
    rule: str
    line: int | None = None

    def __str__(self) -> str:
        place = f"line {self.line}: " if self.line is not None else ""
        shown = f" = {self.value}" if self.value else ""
        return f"{place}{self.key}{shown}: {self.rule}"


class ConfigError(Exception):
    """A configuration that must not be used; `problems` holds every finding, in file order."""

    def __init__(self, problems: Sequence[Problem], source: str = "configuration") -> None:
        self.problems = tuple(problems)
        self.source = source
        super().__init__(f"{source}: " + "; ".join(str(problem) for problem in self.problems))


def key_of(path: Path) -> str:
    """Return `pools[0].queue.capacity` for `("pools", 0, "queue", "capacity")`."""
    text = ""
    for part in path:
        text += f"[{part}]" if isinstance(part, int) else (f".{part}" if text else part)
    return text or "(document)"


def shown(path: Path, value: Any) -> str:
    """Return the value as one short line, masked where `path` is a secret place."""
    if _is_secret(path, value):
        return MASKED
    if isinstance(value, dict):
        return "{…}" if value else "{}"
    if isinstance(value, list):
        return "[…]" if value else "[]"
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        text = _URL_PASSWORD.sub(rf"\1{MASKED}@", value)
        text = '"' + "".join(c if c.isprintable() else "?" for c in text) + '"'
    else:
        text = str(value)
    if len(text) > _VALUE_CHARACTERS_MAX:
        text = text[: _VALUE_CHARACTERS_MAX - 1] + "…"
    return text


def _is_secret(path: Path, value: Any) -> bool:
    if path[:2] == ("auth", "keys") and len(path) > 3:
        field = path[3]
        if field == "key_env":
            # Someone may write the key itself where its variable's name belongs.
            return not (isinstance(value, str) and _ENVIRONMENT_NAME.match(value))
        return field not in _PUBLIC_KEY_FIELDS
    if path[:2] == ("auth", "keys") and len(path) == 3:
        return not isinstance(value, dict)
    if path[:1] == ("auth",) and len(path) > 1 and path[1] not in {"enabled", "keys"}:
        return True
    return "env" in path[:-1] or (len(path) > 2 and "args" in path[:-1])


class ReloadRefused(Exception):
    """A running service cannot take this configuration; nothing has changed. `invalid` says that
    the file has findings, `passing` that what hinders it passes by itself; else it takes a restart
    or an operator."""

    def __init__(self, message: str, *, invalid: bool = False, passing: bool = False) -> None:
        super().__init__(message)
        self.invalid = invalid
        self.passing = passing
