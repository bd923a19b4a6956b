"""`docs/configuration.md` from the configuration's schema: every key with type, default, range,
what it does, and an example that validates.

Nothing is written twice: the words are the schema's descriptions and `examples`, the order is the
schema's. The lint of the contract (`contract/test_contracts_valid.py`) sees to it that every key
stands in an example of its section. Requirements: ORCH-3030, OC-CONFIG-6002, OC-CONFIG-6010.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from orch_tools.codegen_config import SCHEMA_PATH, Schema, reference_name, split_null

REFERENCE_PATH = "docs/configuration.md"
_TOP = "Top level"

_HEADER = f"""# Configuration reference

Generated from `{SCHEMA_PATH}` by `make regen`; do not edit.
`llama-orch config schema` prints the schema; `llama-orch config validate FILE` checks a file and
says which key, value and rule do not agree.

A configuration is one YAML file. Everything has a default but what is marked as required. Unknown
keys are an error, or a warning with `server.config_mode: compat`. Times end in `_ms` or `_s`, sizes
in `_bytes`.
"""
_UNITS = {
    "string": ("minLength", "maxLength", " characters"),
    "integer": ("minimum", "maximum", ""),
    "number": ("minimum", "maximum", ""),
}


def generate(root: Path) -> dict[str, str | bytes]:
    """Path -> content of the reference."""
    schema = json.loads((root / SCHEMA_PATH).read_text(encoding="utf-8"))
    return {REFERENCE_PATH: reference(schema)}


def reference(schema: Schema) -> str:
    """The whole document, in Markdown."""
    parts = [_HEADER, _section(_TOP, schema, None)]
    for path, name in sections(schema):
        definition = schema["$defs"][name]
        parts.append(_section(path, definition, definition.get("examples")))
    return "\n".join(parts)


def sections(schema: Schema) -> Iterator[tuple[str, str]]:
    """(path, definition) of every section, depth first, in the order of the schema."""

    def below(path: str, part: Schema) -> Iterator[tuple[str, str]]:
        for key, value in part.get("properties", {}).items():
            where = f"{path}.{key}" if path else key
            name, place = _target(value, where)
            if name is not None:
                yield place, name
                yield from below(place, schema["$defs"][name])

    yield from below("", schema)


def _target(value: Schema, where: str) -> tuple[str | None, str]:
    """The definition that a key's value, its entries or its values are of, and their path."""
    inner, _ = split_null(value)
    if "items" in inner:
        return _target(inner["items"], f"{where}[]")
    if isinstance(inner.get("additionalProperties"), dict):
        return _target(inner["additionalProperties"], f"{where}.<name>")
    return reference_name(inner), where


def _section(path: str, part: Schema, examples: list[Any] | None) -> str:
    lines = [f"## {path}", "", part.get("description", "")]
    if "x-rule" in part:
        lines.append(f"It {part['x-rule']}.")
    lines += ["", "| key | type | default | what it does |", "| --- | --- | --- | --- |"]
    required = set(part.get("required", ()))
    for key, value in part.get("properties", {}).items():
        name, place = _target(value, key if path == _TOP else f"{path}.{key}")
        default = json.dumps(value.get("default"))
        shown = "**required**" if key in required else f"`{default}`"
        if name is not None and default == "{}":
            shown = "its defaults"
        words = value.get("description", "").replace("|", "\\|")
        if name is not None:
            words = f"{words} See [{place}](#{anchor(place)}).".strip()
        lines.append(f"| `{key}` | {_type(value)} | {shown} | {words} |")
    for example in examples or ():
        lines += ["", "```yaml", *_yaml(path, example), "```"]
    return "\n".join([*lines, ""])


def anchor(heading: str) -> str:
    """The fragment that renderers of Markdown give a heading: words, hyphens, underscores."""
    return "".join(c for c in heading.lower().replace(" ", "-") if c.isalnum() or c in "-_")


def _yaml(path: str, example: Any) -> list[str]:
    """The example under its whole path, so that it can be copied."""
    document = example
    for name in reversed(path.split(".")):
        if name == "<name>":
            document = {"mine": document}
        else:
            document = {name.removesuffix("[]"): [document] if name.endswith("[]") else document}
    text: str = yaml.safe_dump(document, sort_keys=False, width=110)
    return text.rstrip("\n").split("\n")


def _type(value: Schema) -> str:
    inner, optional = split_null(value)
    suffix = " or null" if optional else ""
    if reference_name(inner) is not None:
        return f"section{suffix}"
    if "enum" in inner:
        return ", ".join(f"`{word}`" for word in inner["enum"]) + suffix
    if "anyOf" in inner:
        return " or ".join(_type(alternative) for alternative in inner["anyOf"]) + suffix
    if "items" in inner:
        return f"list of {_type(inner['items'])}{suffix}"
    kind = "map" if inner["type"] == "object" else str(inner["type"])
    return kind + _range(inner) + suffix


def _range(inner: Schema) -> str:
    """The bounds of a number or of a text's length, as far as there are any."""
    least_word, most_word, unit = _UNITS.get(inner["type"], ("", "", ""))
    least, most = inner.get(least_word), inner.get(most_word)
    if "exclusiveMinimum" in inner:
        return f", above {inner['exclusiveMinimum']}" + (f" to {most}" if most else "")
    if least is None and most is None:
        return ""
    if most is None:
        return f", at least {least}{unit}"
    return f", {0 if least is None else least} to {most}{unit}"
