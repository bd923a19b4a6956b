"""The configuration against its JSON Schema 2020-12, told in sentences.

Strict mode: every unknown key is a problem with a guess at what was meant. Compat mode: unknown
keys are cut out and come back as warnings; everything else stays a problem (ORCH-3030,
OC-CONFIG-6001).
"""

from __future__ import annotations

import copy
import difflib
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from .document import Document
from .problems import Path, Problem, key_of, shown

_TYPE_WORDS = {
    "object": "a mapping",
    "array": "a list",
    "string": "text",
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "null": "null",
}


def check_schema(
    document: Document, schema: dict[str, Any], *, compat: bool
) -> tuple[dict[str, Any], tuple[Problem, ...], tuple[Problem, ...]]:
    """Validate `document`; return (data to use, problems, warnings).

    In compat mode the returned data is a copy without its unknown keys, each of which is a warning.
    """
    validator = Draft202012Validator(schema)
    data = copy.deepcopy(document.data)
    warnings: list[Problem] = []
    while True:
        problems: dict[tuple[Path, str], Problem] = {}
        unknown: dict[Path, Problem] = {}
        for error in _leaves(validator.iter_errors(data)):
            path = tuple(error.absolute_path)
            value: Any = error.instance
            if error.validator in {"additionalProperties", "unevaluatedProperties"}:
                for name in _unknown_names(value, error.schema):
                    child = (*path, name)
                    rule = _unknown_rule(name, error.schema)
                    unknown[child] = Problem(
                        key_of(child),
                        shown(child, value[name]),
                        rule,
                        document.line_of(child),
                    )
            else:
                problem = _problem(error, path, document)
                problems[path, problem.rule] = problem
        if compat and unknown:
            # A key below another unknown key goes with its parent; a second pass finds the rest.
            for child, warning in unknown.items():
                warnings.append(warning)
                _remove(data, child)
            continue
        found = [*problems.values(), *unknown.values()]
        warnings.sort(key=lambda problem: (problem.line or 0, problem.key))
        found.sort(key=lambda problem: (problem.line or 0, problem.key))
        return data, tuple(found), tuple(warnings)


def _leaves(errors: Iterator[ValidationError]) -> Iterator[ValidationError]:
    """Descend into the alternative that was most likely meant.

    `anyOf: [null, {...}]` is how the schema says "may be null": the user wants to hear about the
    mapping they wrote, not that it is no null.
    """
    for error in errors:
        if error.validator not in {"anyOf", "oneOf"} or not error.context:
            yield error
            continue
        branches: dict[int, list[ValidationError]] = defaultdict(list)
        for inner in error.context:
            branches[int(inner.schema_path[0])].append(inner)
        close = [
            branch
            for branch in branches.values()
            if not any(
                not inner.path and inner.validator in {"type", "const", "enum"} for inner in branch
            )
        ]
        if len(close) == 1:
            yield from _leaves(iter(close[0]))
        else:
            yield error


def _unknown_names(value: Any, schema: Any) -> list[str]:
    return [name for name in value if name not in schema.get("properties", {})]


def _unknown_rule(name: str, schema: Any) -> str:
    known = sorted(schema.get("properties", {}))
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if close:
        return f"unknown key; did you mean `{close[0]}`?"
    if known:
        return f"unknown key; known here: {', '.join(known)}"
    return "unknown key"


def _remove(data: Any, path: Path) -> None:
    for part in path[:-1]:
        data = data[part]
    data.pop(path[-1], None)


def _problem(error: ValidationError, path: Path, document: Document) -> Problem:
    """Turn one schema error into key, value and a rule that never quotes the value."""
    # jsonschema types these as what any validator could hold.
    value: Any = error.instance
    limit: Any = error.validator_value
    schema: Any = error.schema
    match error.validator:
        case "required":
            missing = next(name for name in limit if name not in value)
            child = (*path, missing)
            return Problem(key_of(child), "", "required, but missing", document.line_of(path))
        case "type":
            names = [limit] if isinstance(limit, str) else list(limit)
            rule = "must be " + " or ".join(_TYPE_WORDS.get(name, name) for name in names)
        case "enum":
            rule = "must be one of " + ", ".join(_literal(item) for item in limit)
        case "const":
            rule = f"must be {_literal(limit)}"
        case "minimum":
            rule = f"must be at least {limit}"
        case "exclusiveMinimum":
            rule = f"must be more than {limit}"
        case "maximum":
            rule = f"must be at most {limit}"
        case "exclusiveMaximum":
            rule = f"must be less than {limit}"
        case "multipleOf":
            rule = f"must be a multiple of {limit}"
        case "minLength":
            rule = "must not be empty" if limit == 1 else f"must have at least {limit} characters"
        case "maxLength":
            rule = f"must have at most {limit} characters"
        case "minItems" | "minProperties":
            rule = "must not be empty" if limit == 1 else f"must have at least {limit} entries"
        case "maxItems" | "maxProperties":
            rule = f"must have at most {limit} entries"
        case "uniqueItems":
            rule = "must not repeat an entry"
        case "pattern":
            rule = f"must match the pattern {limit}"
        case "format":
            rule = f"must be a valid {limit}"
        case "anyOf" | "oneOf":
            rule = _alternatives(limit, list(error.context or []))
        case _:
            rule = f"breaks the schema's rule `{error.validator}`"
    if error.validator in {"anyOf", "oneOf"} and "x-rule" in schema:
        rule = schema["x-rule"]
    return Problem(key_of(path), shown(path, value), rule, document.line_of(path))


def _literal(value: Any) -> str:
    return (
        "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
    )


def _alternatives(branches: list[Any], context: list[ValidationError]) -> str:
    wanted = [branch.get("required") for branch in branches if isinstance(branch, dict)]
    if len(wanted) == len(branches) and all(wanted):
        return "needs exactly one of " + " / ".join(" + ".join(names) for names in wanted if names)
    roots = [inner.validator_value for inner in context if inner.validator == "type"]
    if roots and len(roots) == len(context):
        return "must be " + " or ".join(_TYPE_WORDS.get(str(name), str(name)) for name in roots)
    return "matches none of the allowed forms"
