"""A configuration as it may be shown: everything but what is, or may hold, a secret (OC-CTRL-2041).

Hidden are keyed digests of keys, the environment of engines (a hub's token, say), what
`redaction` hides of their command lines, and user part, query and fragment of addresses. The names
of variables are shown: they are what an operator looks for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import msgspec

import orch_config
from orchestrator_core.redaction import REDACTED, shown_text, shown_words

# The last part of a key's path: its value, or each value in it, is hidden.
_SECRET_KEYS = ("key_hmac", "env")
# Its value is the words of a command line.
_COMMAND_KEYS = ("args", "command")


def public_view(config: orch_config.Config) -> dict[str, Any]:
    """All keys with their values, defaults filled in."""
    view: dict[str, Any] = _public("", msgspec.to_builtins(config))
    return view


def public_value(key: str, value: Any) -> Any:
    """One value as it may be shown; `key` is its path, such as pools[p].launch.env.HF_TOKEN."""
    parts = re.split(r"[.\[]", key)
    if value is not None and any(part in _SECRET_KEYS for part in parts[:-1]):
        return REDACTED
    return _public(parts[-1], value)


def _public(name: str, value: Any) -> Any:
    if name in _SECRET_KEYS and value is not None:
        return dict.fromkeys(value, REDACTED) if isinstance(value, Mapping) else REDACTED
    if isinstance(value, Mapping):
        return {key: _public(key, inner) for key, inner in value.items()}
    if name in _COMMAND_KEYS and isinstance(value, list | tuple):
        return list(shown_words(value))
    if isinstance(value, list | tuple):
        return [_public(name, inner) for inner in value]
    return shown_text(value) if isinstance(value, str) else value
