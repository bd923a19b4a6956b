"""Configuration text to plain data plus the line of every key.

YAML 1.2 core scalars only: `sync: off` is the text "off" and never False, `12:30` and `2026-01-01`
stay text. A key that stands twice is an error, because the loser would be dropped without a word.
The data is what jsonschema and msgspec see next (ORCH-3030, OC-CONFIG-6001).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import yaml
from yaml.composer import ComposerError

from .problems import ConfigError, Path, Problem, key_of


@dataclass(frozen=True, slots=True)
class Document:
    """Parsed configuration: `data` is what YAML says, `lines` maps a path to its line (from 1)."""

    data: dict[str, Any]
    lines: dict[Path, int]
    source: str

    def line_of(self, path: Path) -> int | None:
        """Return the line of `path`, or of its nearest ancestor that stands in the file."""
        for length in range(len(path), -1, -1):
            line = self.lines.get(path[:length])
            if line is not None:
                return line
        return None


# The deepest place of the schema is nine levels down. Everything that walks a document recurses, so
# that a deeper one would end in RecursionError.
_DEPTH_MAX = 50


class _CoreSchemaLoader(yaml.SafeLoader):
    """SafeLoader with the scalars of YAML 1.2's core schema (yaml.org/spec/1.2.2, 10.3.2)."""

    yaml_implicit_resolvers: dict[Any, Any] = {}  # noqa: RUF012 - the registry PyYAML expects here
    _depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """Compose one node. Raises `ComposerError` where nodes are nested too deeply."""
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            rule = f"nested more than {_DEPTH_MAX} levels deep"
            raise ComposerError(None, None, rule, parent.start_mark if parent else None)
        try:
            return super().compose_node(parent, index)
        finally:
            self._depth -= 1


for _tag, _pattern, _first in (
    ("bool", r"(?:true|True|TRUE|false|False|FALSE)\Z", "tTfF"),
    ("null", r"(?:~|null|Null|NULL|)\Z", ["~", "n", "N", ""]),
    ("int", r"(?:[-+]?[0-9]+|0x[0-9a-fA-F]+)\Z", "-+0123456789"),
    ("float", r"[-+]?(?:\.[0-9]+|[0-9]+(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?\Z", "-+.0123456789"),
    ("merge", r"<<\Z", "<"),
):
    _CoreSchemaLoader.add_implicit_resolver(
        f"tag:yaml.org,2002:{_tag}", re.compile(_pattern), list(_first)
    )


def _construct_int(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    # PyYAML's own reads 010 as octal 8; in YAML 1.2 it is ten.
    text = node.value
    return int(text, 16) if text.startswith("0x") else int(text)


def _construct_float(_loader: yaml.SafeLoader, node: yaml.ScalarNode) -> float:
    return float(node.value)


_CoreSchemaLoader.add_constructor("tag:yaml.org,2002:int", _construct_int)
_CoreSchemaLoader.add_constructor("tag:yaml.org,2002:float", _construct_float)


def parse_document(text: str, source: str) -> Document:
    """Parse configuration text.

    Raises:
        ConfigError: not YAML, more than one document, not a mapping, a key twice.
    """
    loader = _CoreSchemaLoader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            raise ConfigError([Problem("(document)", "", "the file is empty")], source)
        lines: dict[Path, int] = {}
        repeated: list[Problem] = []
        _walk(root, (), lines, repeated, frozenset())
        if repeated:
            raise ConfigError(repeated, source)
        data = loader.construct_document(root)
    except yaml.YAMLError as error:
        raise ConfigError([_syntax_problem(error)], source) from None
    finally:
        loader.dispose()
    if not isinstance(data, dict):
        rule = "the document must be a mapping of sections such as `pools:`"
        raise ConfigError([Problem("(document)", "", rule, 1)], source)
    return Document(data, lines, source)


def _walk(
    node: yaml.Node,
    path: Path,
    lines: dict[Path, int],
    repeated: list[Problem],
    open_nodes: frozenset[int],
) -> None:
    lines.setdefault(path, node.start_mark.line + 1)
    if id(node) in open_nodes:
        rule = "an alias must not contain itself"
        repeated.append(Problem(key_of(path), "", rule, node.start_mark.line + 1))
        return
    inside = open_nodes | {id(node)}
    if isinstance(node, yaml.SequenceNode):
        for index, item in enumerate(node.value):
            _walk(item, (*path, index), lines, repeated, inside)
        return
    if not isinstance(node, yaml.MappingNode):
        return
    first_lines: dict[str, int] = {}
    for key_node, value_node in node.value:
        line = key_node.start_mark.line + 1
        if not isinstance(key_node, yaml.ScalarNode) or not key_node.tag.endswith(
            (":str", ":merge")
        ):
            repeated.append(Problem(key_of(path), "", "keys must be plain text", line))
            continue
        key = key_node.value
        child = (*path, key)
        if key in first_lines:
            rule = f"this key already stands in line {first_lines[key]}; keep one"
            repeated.append(Problem(key_of(child), "", rule, line))
            continue
        first_lines[key] = line
        lines[child] = line
        _walk(value_node, child, lines, repeated, inside)


def _syntax_problem(error: yaml.YAMLError) -> Problem:
    # Only the parser's sentence: its snippet could show a secret, and so could a quoted name.
    if isinstance(error, yaml.MarkedYAMLError) and error.problem_mark is not None:
        sentence = re.sub(r"'[^']{3,}'|\"[^\"]{3,}\"", "…", error.problem or "cannot be read")
        line = error.problem_mark.line + 1
        return Problem("(document)", "", f"not valid YAML: {sentence}", line)
    if isinstance(error, yaml.reader.ReaderError):
        return Problem("(document)", "", f"not valid YAML: {error.reason}")
    return Problem("(document)", "", "not valid YAML")
