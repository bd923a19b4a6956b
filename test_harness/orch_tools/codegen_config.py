"""Configuration schema -> frozen msgspec Structs whose defaults are the schema's defaults.

Own code instead of datamodel-codegen, because there a nested section that is left out becomes
UNSET and not a section of defaults; here `msgspec.convert(data, Config)` is always complete. The
generator knows exactly the words of JSON Schema that the configuration uses and refuses all others
by name, so that no rule is lost without a word. Unknown keys are not the types' business: strict
and compat mode differ there, and the schema decides (ORCH-3030).
Requirements: ORCH-3030, OC-CONFIG-6001, OC-CONFIG-6010.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

Schema = dict[str, Any]

SCHEMA_PATH = "contracts/schemas/config.schema.json"
PACKAGE = "generated/orch_config"

_SCALARS = {"string": "str", "integer": "int", "number": "float", "boolean": "bool"}
# Constraint of the schema -> argument of msgspec.Meta.
_BOUNDS = {
    "minimum": "ge",
    "maximum": "le",
    "exclusiveMinimum": "gt",
    "exclusiveMaximum": "lt",
    "minLength": "min_length",
    "maxLength": "max_length",
    "minItems": "min_length",
    "maxItems": "max_length",
    "minProperties": "min_length",
    "maxProperties": "max_length",
}
# Left to the JSON Schema, which every configuration passes before these types are built.
_SCHEMA_ONLY = {"uniqueItems", "propertyNames", "oneOf", "x-rule", "examples"}
_KNOWN = {
    *("$ref", "type", "enum", "anyOf", "items", "properties", "required", "additionalProperties"),
    *("pattern", "description", "default", "title", "$schema", "$id", "$defs"),
    *_BOUNDS,
    *_SCHEMA_ONLY,
}

_HEADER = f'''"""Configuration types. Generated from {SCHEMA_PATH}; do not edit."""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta
'''

_INIT = f'''"""The configuration: types and schema. Generated from {SCHEMA_PATH}; do not edit."""

from __future__ import annotations

from importlib.resources import files

from orch_config.types import (
{{names}}
)

__all__ = [
{{quoted}}
    "schema_text",
]


def schema_text() -> str:
    """The JSON Schema (2020-12) that these types were generated from."""
    return files(__name__).joinpath("config.schema.json").read_text(encoding="utf-8")
'''


class ConfigSchemaError(Exception):
    """The schema uses something that this generator does not know; names the place and the word."""


def reference_name(schema: Schema) -> str | None:
    """The class that a `$ref` names."""
    reference: str | None = schema.get("$ref")
    return None if reference is None else reference.rsplit("/", 1)[1]


def split_null(schema: Schema) -> tuple[Schema, bool]:
    """The schema without its null alternative, and whether it had one."""
    alternatives = schema.get("anyOf")
    if alternatives is not None and {"type": "null"} in alternatives:
        rest = [alternative for alternative in alternatives if alternative != {"type": "null"}]
        return (rest[0] if len(rest) == 1 else {"anyOf": rest}), True
    kinds = schema.get("type")
    if isinstance(kinds, list) and "null" in kinds:
        rest_kinds = [kind for kind in kinds if kind != "null"]
        return {**schema, "type": rest_kinds[0] if len(rest_kinds) == 1 else rest_kinds}, True
    return schema, False


def with_bounds(python_type: str, schema: Schema) -> str:
    """The type with the schema's bounds as `Annotated`, or as it is without any."""
    arguments = [f"{_BOUNDS[word]}={schema[word]!r}" for word in _BOUNDS if word in schema]
    if "pattern" in schema:
        # In Python `$` also matches before a last newline; `\\Z` does not.
        pattern = re.sub(r"\$$", r"\\Z", schema["pattern"])
        arguments.append(f"pattern={pattern!r}")
    return f"Annotated[{python_type}, Meta({', '.join(arguments)})]" if arguments else python_type


def annotation(schema: Schema, where: str) -> str:
    """The Python type of a schema. Raises `ConfigSchemaError`."""
    unknown = sorted(set(schema) - _KNOWN)
    if unknown:
        raise ConfigSchemaError(f"{where}: no support for {', '.join(unknown)}")
    schema, nullable = split_null(schema)
    if nullable:
        return f"{annotation(schema, where)} | None"
    name = reference_name(schema)
    if name is not None:
        return name
    if "anyOf" in schema:
        return " | ".join(annotation(alternative, where) for alternative in schema["anyOf"])
    if "enum" in schema:
        return f"Literal[{', '.join(repr(value) for value in schema['enum'])}]"
    match schema.get("type"):
        case "array":
            items = annotation(schema["items"], f"{where}[]")
            return with_bounds(f"tuple[{items}, ...]", schema)
        case "object" if isinstance(schema.get("additionalProperties"), dict):
            values = annotation(schema["additionalProperties"], f"{where}{{}}")
            return with_bounds(f"dict[str, {values}]", schema)
        case str(kind) if kind in _SCALARS:
            return with_bounds(_SCALARS[kind], schema)
        case kind:
            raise ConfigSchemaError(f"{where}: no support for type {kind}")


def literal(value: Any, schema: Schema, definitions: dict[str, Schema]) -> str:
    """A default value as Python source of the type that `annotation` gives."""
    schema, _ = split_null(schema)
    name = reference_name(schema)
    if value is None:
        return "None"
    if name is not None:
        properties = definitions[name]["properties"]
        arguments = [
            f"{key}={literal(item, properties[key], definitions)}" for key, item in value.items()
        ]
        return f"{name}({', '.join(arguments)})"
    if isinstance(value, list):
        items = [literal(item, schema["items"], definitions) for item in value]
        return f"({', '.join(items)}{',' if len(items) == 1 else ''})"
    if isinstance(value, dict):
        values = schema["additionalProperties"]
        entries = [f"{key!r}: {literal(item, values, definitions)}" for key, item in value.items()]
        return f"{{{', '.join(entries)}}}"
    if schema.get("type") == "number":
        return repr(float(value))
    return repr(value)


def field_lines(name: str, schema: Schema, required: bool, definitions: dict[str, Schema]) -> str:
    """One field with its description above it."""
    described = (
        schema.get("description") or definitions[reference_name(schema) or name]["description"]
    )
    line = f"    # {described}\n    {name}: {annotation(schema, name)}"
    if required:
        return line
    if "default" not in schema:
        raise ConfigSchemaError(f"{name}: neither required nor with a default")
    value = literal(schema["default"], schema, definitions)
    if isinstance(schema["default"], dict):
        # A dict must not be shared, and a section's class may have defaults of its own.
        return f"{line} = msgspec.field(default_factory=lambda: {value})"
    return f"{line} = {value}"


def class_lines(name: str, schema: Schema, definitions: dict[str, Schema]) -> str:
    """One Struct."""
    required = set(schema.get("required", ()))
    fields = [
        field_lines(key, value, key in required, definitions)
        for key, value in schema["properties"].items()
    ]
    head = f"class {name}(msgspec.Struct, kw_only=True, frozen=True):"
    return "\n".join([head, f'    """{schema["description"]}"""', "", *fields])


def class_order(root: Schema, definitions: dict[str, Schema]) -> list[str]:
    """Names of all referenced definitions, each after those that it uses."""
    order: list[str] = []

    def visit(node: Any) -> None:
        if isinstance(node, list):
            for item in node:
                visit(item)
        elif isinstance(node, dict):
            name = reference_name(node)
            if name is not None and name not in order:
                visit(definitions[name])
                order.append(name)
            for key, value in node.items():
                if key not in ("$defs", "default"):
                    visit(value)

    visit(root)
    return order


def generate(root: Path) -> dict[str, str | bytes]:
    """The package `orch_config`: relative path -> content. Raises `ConfigSchemaError`."""
    text = (root / SCHEMA_PATH).read_text(encoding="utf-8")
    schema: Schema = json.loads(text)
    definitions: dict[str, Schema] = schema["$defs"]
    order = class_order(schema, definitions)
    unused = sorted(set(definitions) - set(order))
    if unused:
        raise ConfigSchemaError(f"$defs: nothing refers to {', '.join(unused)}")
    classes = [class_lines(name, definitions[name], definitions) for name in order]
    classes.append(class_lines(schema["title"], schema, definitions))
    names = sorted([*order, schema["title"]])
    return {
        f"{PACKAGE}/__init__.py": _INIT.format(
            names="\n".join(f"    {name}," for name in names),
            quoted="\n".join(f'    "{name}",' for name in names),
        ),
        f"{PACKAGE}/py.typed": "",
        f"{PACKAGE}/types.py": _HEADER + "\n\n" + "\n\n\n".join(classes) + "\n",
        f"{PACKAGE}/config.schema.json": text,
    }
