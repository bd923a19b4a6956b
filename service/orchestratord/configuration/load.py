"""From a file to `orch_config.Config`: parse, schema, cross checks, types, in this order.

The order is the invariant: cross checks read data that the schema accepted, the types are built
from data that both accepted. Findings of one stage are reported together (ORCH-3030,
OC-CONFIG-6001).
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

import orch_config

from .cross_checks import check_values
from .document import parse_document
from .host_checks import Host
from .problems import ConfigError, Problem
from .schema_rules import check_schema

# A hand-written configuration is kilobytes; a file of megabytes is the wrong file.
_FILE_BYTES_MAX = 8 * 1024 * 1024


class AnyEnvironment(dict[str, str]):
    """An environment in which every variable holds a good key: a file is judged without secrets."""

    def get(self, key: str, default: Any = None) -> Any:
        return "a value that is long enough for a key"


@dataclass(frozen=True, slots=True)
class LoadedConfig:
    """An accepted configuration and what its author should still know; `source` is for messages."""

    config: orch_config.Config
    warnings: tuple[str, ...]
    source: str = "configuration"


def config_schema() -> dict[str, Any]:
    """Return the JSON Schema (2020-12) of the configuration, a fresh copy."""
    schema: dict[str, Any] = json.loads(orch_config.schema_text())
    return schema


def load_config(
    path: Path, *, environ: Mapping[str, str] | None = None, host: Host | None = None
) -> LoadedConfig:
    """Read and prove the configuration in `path`.

    Args:
        environ: where `key_env` names are looked up; None means this process's environment.
        host: the machine that shall run it; None leaves its adapters and model files unasked.
    Raises:
        ConfigError: the file cannot be read, or any finding; all findings of a stage at once.
    """
    source = str(path)
    try:
        with path.open("rb") as file:
            raw = file.read(_FILE_BYTES_MAX + 1)
    except OSError as error:
        problem = Problem("(file)", "", f"cannot be read: {error.strerror or error}")
        raise ConfigError([problem], source) from None
    if len(raw) > _FILE_BYTES_MAX:
        raise ConfigError([Problem("(file)", "", f"is over {_FILE_BYTES_MAX} bytes")], source)
    try:
        text = raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = raw.count(b"\n", 0, error.start) + 1
        raise ConfigError([Problem("(file)", "", "is not UTF-8 text", line)], source) from None
    return parse_config(text, source, environ=environ, host=host)


def parse_config(
    text: str,
    source: str = "configuration",
    *,
    environ: Mapping[str, str] | None = None,
    host: Host | None = None,
) -> LoadedConfig:
    """Prove configuration text; see `load_config`. Raises `ConfigError`."""
    document = parse_document(text, source)
    server = document.data.get("server")
    # The mode is read before the proof, because it decides how the proof is done.
    compat = isinstance(server, dict) and server.get("config_mode") == "compat"
    data, problems, ignored = check_schema(document, config_schema(), compat=compat)
    if problems:
        raise ConfigError(problems, source)
    variables = os.environ if environ is None else environ
    problems, advice = check_values(data, document, variables, host)
    if problems:
        raise ConfigError(problems, source)
    try:
        config = msgspec.convert(data, orch_config.Config)
    except msgspec.ValidationError as error:
        # The schema accepted what the types refuse: our contradiction, still the user's first clue.
        # msgspec's sentence names the place and the expected type, never the value.
        raise ConfigError([Problem("(document)", "", str(error))], source) from None
    warnings = [f"{warning} (ignored: server.config_mode is compat)" for warning in ignored]
    return LoadedConfig(config, (*warnings, *(str(warning) for warning in advice)), source)
