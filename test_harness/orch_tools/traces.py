"""Where requirement ids are named: contract elements, `req` markers of tests, docstrings and
comments of the product.

Off every request's path; read by `orch_tools.requirements` and `orch_tools.compliance`. Tests are
read as syntax trees, so that nothing is imported or run: a marker counts on a function, a class, in
`pytestmark`, or inside `parametrize`.

Invariant: what the scan cannot attribute to a test is reported, never dropped, so that the scan and
the plugin that reads the same markers at run time (`harness_kit.req_plugin`) cannot disagree in
silence. Requirements: OC-CONFIG-6010.
"""

from __future__ import annotations

import ast
import io
import re
import tokenize
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import yaml

ID = r"(?:ORCH|OC(?:-[A-Z0-9]+)+)-\d{4}"
_ID_IN_PROSE = re.compile(rf"(?<![\w-]){ID}(?![\w-])")
_ID_IN_NAME = re.compile(r"(?i)_(?:orch|oc(?:_[a-z0-9]+)+)_\d{4}(?:_|$)")
_HTTP_METHODS = frozenset({"get", "put", "post", "delete", "patch", "head", "options"})

CONTRACTS = Path("contracts")
TESTS = Path("test_harness")
PRODUCT = (Path("service"), Path("adapters"))


@dataclass(frozen=True, slots=True, order=True)
class Trace:
    """One place that names one requirement; `kind` is contract, test or code.

    `partial` says what the test leaves unproved; empty for a complete proof and for the other
    kinds.
    """

    requirement_id: str
    kind: str
    place: str
    partial: str = ""


def traces_of_contracts(root: Path) -> tuple[list[Trace], list[str]]:
    """Elements of the OpenAPI files, the metrics contract and the schemas that carry `x-req-id` or
    `requirements`.
    """
    traces: list[Trace] = []
    problems: list[str] = []
    for path in sorted((root / CONTRACTS).rglob("*")):
        if path.suffix not in {".yaml", ".yml", ".json"}:
            continue
        file = path.relative_to(root).as_posix()
        # YAML 1.2 reads JSON as well; C's loader is ten times as fast as Python's.
        document = yaml.load(path.read_text("utf-8"), Loader=yaml.CSafeLoader)
        for keys, named in _named_ids(document, ()):
            place = f"{file}#{_label(keys)}"
            for requirement_id in named:
                if re.fullmatch(ID, requirement_id):
                    traces.append(Trace(requirement_id, "contract", place))
                else:
                    problems.append(f"{place}: {requirement_id!r} is not a requirement id")
    return traces, problems


def traces_of_tests(root: Path) -> tuple[list[Trace], list[str]]:
    """Node ids (without parameters) of the tests that carry `req` markers.

    An id in a test's name is a problem: a name says a behaviour, the id goes into the marker.
    """
    traces: list[Trace] = []
    problems: list[str] = []
    for path, _, tree in _modules(root, TESTS, "test_*.py", problems):
        attributed: set[ast.AST] = set()
        for node_id, calls in _marked_tests(tree, path):
            if _ID_IN_NAME.search(node_id):
                problems.append(f"{node_id}: an id belongs into a req marker, not into a name")
            for call in calls:
                attributed.add(call)
                ids, partial, problem = _read_marker(call)
                if problem:
                    problems.append(f"{node_id}: {problem}")
                traces.extend(Trace(named, "test", node_id, partial) for named in ids)
        problems.extend(
            f"{path}:{node.lineno}: a req marker belongs on a test, a test class, in pytestmark "
            "or into parametrize"
            for node in ast.walk(tree)
            if _is_req(node) and isinstance(node, ast.Call) and node not in attributed
        )
    return traces, problems


def traces_of_code(root: Path) -> tuple[list[Trace], list[str]]:
    """Product modules, as path::module, that name an id in a docstring or a comment."""
    traces: list[Trace] = []
    problems: list[str] = []
    for top in PRODUCT:
        for path, source, tree in _modules(root, top, "*.py", problems):
            below = Path(path).relative_to(top).with_suffix("")
            module = ".".join(part for part in below.parts if part != "__init__")
            named = _ID_IN_PROSE.findall("\n".join(_prose(source, tree)))
            traces.extend(Trace(each, "code", f"{path}::{module}") for each in sorted(set(named)))
    return traces, problems


def _modules(
    root: Path, top: Path, pattern: str, problems: list[str]
) -> Iterator[tuple[str, str, ast.Module]]:
    """Path, source and syntax tree of each module; what does not parse is a problem."""
    for path in sorted((root / top).rglob(pattern)):
        name, source = path.relative_to(root).as_posix(), path.read_text("utf-8")
        try:
            yield name, source, ast.parse(source, name)
        except SyntaxError as error:
            problems.append(f"{name}:{error.lineno}: {error.msg}")


def _marked_tests(tree: ast.Module, path: str) -> Iterator[tuple[str, list[ast.Call]]]:
    def visit(
        body: list[ast.stmt], prefix: str, outer: list[ast.Call]
    ) -> Iterator[tuple[str, list[ast.Call]]]:
        inherited = outer + [
            call for node in body if _assigns_pytestmark(node) for call in _req_calls(node)
        ]
        for node in body:
            if isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
                own = [call for mark in node.decorator_list for call in _req_calls(mark)]
                yield from visit(node.body, f"{prefix}::{node.name}", inherited + own)
                if any(_is_machine(base) for base in node.bases):
                    yield f"{prefix}::{node.name}::runTest", inherited + own
            elif isinstance(node, ast.Assign) and (name := _machine_name(node)):
                yield f"{prefix}::{name}::runTest", inherited + _req_calls(node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith(
                "test_"
            ):
                own = [call for mark in node.decorator_list for call in _req_calls(mark)]
                yield f"{prefix}::{node.name}", inherited + own

    return visit(tree.body, path, [])


def _is_machine(node: ast.expr) -> bool:
    """Is this `….TestCase`, the test of a Hypothesis state machine?"""
    return isinstance(node, ast.Attribute) and node.attr == "TestCase"


def _machine_name(node: ast.Assign) -> str | None:
    """The name in `TestX = pytest.mark.req(…)(Machine.TestCase)`."""
    value, target = node.value, node.targets[0]
    if (
        isinstance(target, ast.Name)
        and target.id.startswith("Test")
        and isinstance(value, ast.Call)
        and _is_req(value.func)
        and any(_is_machine(argument) for argument in value.args)
    ):
        return target.id
    return None


def _assigns_pytestmark(node: ast.stmt) -> bool:
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return any(isinstance(t, ast.Name) and t.id == "pytestmark" for t in targets)


def _req_calls(node: ast.AST) -> list[ast.Call]:
    return [n for n in ast.walk(node) if isinstance(n, ast.Call) and _is_req(n)]


def _is_req(node: ast.AST) -> bool:
    """Is this a call `….mark.req(…)`?"""
    return (
        isinstance(node, ast.Call)
        and isinstance(node.func, ast.Attribute)
        and node.func.attr == "req"
        and isinstance(node.func.value, ast.Attribute)
        and node.func.value.attr == "mark"
    )


def _read_marker(call: ast.Call) -> tuple[list[str], str, str | None]:
    ids = [a.value for a in call.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    partial = ""
    for keyword in call.keywords:
        if (
            keyword.arg != "partial"
            or not isinstance(keyword.value, ast.Constant)
            or not isinstance(keyword.value.value, str)
            or not keyword.value.value
        ):
            return ids, "", 'a req marker takes only partial="what is missing", a literal text'
        partial = keyword.value.value
    if not ids or len(ids) != len(call.args):
        return ids, partial, "a req marker takes requirement ids as literal texts, at least one"
    return ids, partial, None


def _prose(source: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        match node:
            case ast.Expr(value=ast.Constant(value=str(text))):
                yield text
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.COMMENT:
            yield token.string


def _named_ids(node: object, keys: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], list[str]]]:
    """Every mapping that names ids, with the keys that lead to it and the ids as text, whatever
    they look like.
    """
    if isinstance(node, dict):
        for word in ("x-req-id", "requirements"):
            value = node.get(word)
            named = [value] if isinstance(value, str) else value
            # Below `properties` a key of this name is a field, and its value a schema: not ours.
            if isinstance(named, list) and (not keys or keys[-1] != "properties"):
                yield keys, [str(item) for item in named]
        for key, value in node.items():
            yield from _named_ids(value, (*keys, str(key)))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            name = value.get("name") if isinstance(value, dict) else None
            yield from _named_ids(value, (*keys, name if isinstance(name, str) else str(index)))


def _label(keys: tuple[str, ...]) -> str:
    """The keys as a person would say them: an operation, a dotted configuration key, else the keys
    with slashes.
    """
    match keys:
        case ("paths", path, method, *rest) if method in _HTTP_METHODS:
            return " ".join([method.upper(), path, *rest])
        case ("paths", path, *rest):
            return " ".join([path, *rest])
        case ("properties", *_):
            return ".".join(
                k for k in keys if k not in {"properties", "items", "additionalProperties"}
            )
        case _:
            return "/".join(keys)
