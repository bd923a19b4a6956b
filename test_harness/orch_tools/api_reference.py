"""`docs/api.md` and `docs/errors.md` from the two OpenAPI files: every operation with its roles,
parameters, answers and fields, and every error code with what it means and what helps.

Nothing is written twice: the words are the contracts' own. Invariant: an operation, a schema that
an operation reaches, or an error code cannot be missing. Requirements: ORCH-2006, ORCH-3044,
OC-CONFIG-6010.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from orch_tools.config_reference import anchor

API_PATH = "docs/api.md"
ERRORS_PATH = "docs/errors.md"
_PLANES = {
    "OrchQueue v1": "contracts/openapi/data.yaml",
    "OrchControl v1": "contracts/openapi/control.yaml",
}
_METHODS = ("get", "put", "post", "patch", "delete")
_BY_PROPERTY = ("allOf", "oneOf", "anyOf")

Document = dict[str, Any]


class ReferenceError(Exception):
    """A contract lacks the words that the reference needs; the message names the place."""


def generate(root: Path) -> dict[str, str | bytes]:
    """Path -> content of both documents. Raises: ReferenceError."""
    documents = {
        title: yaml.safe_load((root / path).read_text("utf-8")) for title, path in _PLANES.items()
    }
    return {API_PATH: api(documents), ERRORS_PATH: errors(documents["OrchQueue v1"])}


def api(documents: dict[str, Document]) -> str:
    """The reference of all operations, in the order of the contracts."""
    parts = [
        "# API reference",
        "",
        "Generated from `contracts/openapi/` by `make regen`; do not edit. A running service shows",
        "it at `/docs`, and the contracts at `/openapi/data.yaml` and `/openapi/control.yaml`.",
        "Errors are in [errors.md](errors.md).",
        "",
    ]
    for title, document in documents.items():
        version = document["info"]["version"]
        parts += [f"## {title} {version}", "", "| operation | | |", "| --- | --- | --- |"]
        for path, method, entry in _operations(document):
            name = entry["operationId"]
            parts.append(f"| [{name}](#{anchor(name)}) | `{method} {path}` | {entry['summary']} |")
        parts.append("")
        for path, method, entry in _operations(document):
            parts += _operation(document, path, method, entry)
        parts += [f"### Fields of {title}", ""]
        for name in _reached(document):
            parts += _schema(document, name)
    return "\n".join(parts)


def errors(document: Document) -> str:
    """The catalogue of error codes. Raises: ReferenceError for a code without words."""
    codes = document["components"]["schemas"]["ErrorCode"]
    catalog = codes.get("x-catalog", {})
    if set(catalog) != set(codes["enum"]):
        odd = ", ".join(sorted(set(catalog) ^ set(codes["enum"])))
        raise ReferenceError(f"ErrorCode: x-catalog and enum differ in {odd}")
    lines = [
        "# Error catalogue",
        "",
        "Generated from `contracts/openapi/data.yaml` by `make regen`; do not edit. Every refusal",
        "has the fields of `ErrorEnvelope`; retry what is `retriable`, after `retry_after_ms`, and",
        "nothing else. In a stream the same fields stand in the terminal `error` event.",
        "",
        "| code | HTTP | retriable | it means | what helps |",
        "| --- | --- | --- | --- | --- |",
    ]
    for code in codes["enum"]:
        about = catalog[code]
        statuses = ", ".join(str(status) for status in about["statuses"])
        lines.append(
            f"| `{code}` | {statuses} | {about['retriable']} | {about['means']} "
            f"| {about['helps']} |"
        )
    return "\n".join([*lines, ""])


def _operations(document: Document) -> Iterator[tuple[str, str, Document]]:
    for path, item in document["paths"].items():
        for method in _METHODS:
            if method in item:
                shared = item.get("parameters", [])
                entry = item[method]
                yield (
                    path,
                    method.upper(),
                    entry | {"parameters": shared + entry.get("parameters", [])},
                )


def _operation(document: Document, path: str, method: str, entry: Document) -> list[str]:
    lines = [f"### {entry['operationId']}", "", f"`{method} {path}`", ""]
    lines += [str(entry.get("description", entry["summary"])).strip(), ""]
    if roles := entry.get("x-roles"):
        lines += [f"Roles: {' or '.join(f'`{role}`' for role in roles)}.", ""]
    parameters = [_resolve(document, each) for each in entry["parameters"]]
    if parameters:
        lines += ["| parameter | in | what it is |", "| --- | --- | --- |"]
        lines += [
            f"| `{each['name']}` | {each['in']} | {_cell(each.get('description', ''))} |"
            for each in parameters
        ]
        lines.append("")
    if "requestBody" in entry:
        body = _content_schema(_resolve(document, entry["requestBody"]))
        lines += [f"Body: {_type(body)}.", ""]
    lines += ["| status | what it says | body |", "| --- | --- | --- |"]
    for status, response in entry["responses"].items():
        found = _resolve(document, response)
        schema = _content_schema(found)
        shown = _type(schema) if schema else ""
        lines.append(f"| {status} | {_cell(found['description'])} | {shown} |")
    return [*lines, ""]


def _schema(document: Document, name: str) -> list[str]:
    schema = document["components"]["schemas"][name]
    lines = [f"#### {name}", "", schema.get("description", "").strip(), ""]
    if "enum" in schema:
        lines += ["One of " + ", ".join(f"`{each}`" for each in schema["enum"]) + ".", ""]
    if properties := schema.get("properties"):
        required = set(schema.get("required", ()))
        lines += ["| field | type | what it is |", "| --- | --- | --- |"]
        for key, value in properties.items():
            mark = ", required" if key in required else ""
            lines.append(f"| `{key}` | {_type(value)}{mark} | {_cell(_words(value))} |")
        lines.append("")
    return lines


def _reached(document: Document) -> list[str]:
    """Every schema that an operation leads to, sorted."""
    schemas = document["components"]["schemas"]
    reached: set[str] = set()
    waiting = [json.dumps([document["paths"], document["components"].get("responses", {})])]
    while waiting:
        text = waiting.pop()
        for name in schemas.keys() - reached:
            if f'"#/components/schemas/{name}"' in text:
                reached.add(name)
                waiting.append(json.dumps(schemas[name]))
    return sorted(reached)


def _resolve(document: Document, part: Document) -> Document:
    while "$ref" in part:
        found: Any = document
        for step in part["$ref"].removeprefix("#/").split("/"):
            found = found[step]
        part = found
    return part


def _content_schema(part: Document) -> Document:
    for media in part.get("content", {}).values():
        schema: Document = media.get("schema", {})
        return schema
    return {}


def _type(schema: Document) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{name}](#{anchor(name)})"
    for combined in _BY_PROPERTY:
        if combined in schema:
            return " or ".join(_type(each) for each in schema[combined])
    if "enum" in schema:
        return ", ".join(f"`{each}`" for each in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if isinstance(schema.get("additionalProperties"), dict):
        return f"map of {_type(schema['additionalProperties'])}"
    kind = str(schema.get("type", "any"))
    least, most = schema.get("minimum"), schema.get("maximum")
    if least is not None and most is not None:
        kind += f", {least} to {most}"
    elif least is not None:
        kind += f", at least {least}"
    return kind + (" or null" if schema.get("nullable") else "")


def _words(schema: Document) -> str:
    return str(schema.get("description", ""))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
