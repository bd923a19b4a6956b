"""Small lies in a module's code, one at a time: what a test suite that means something must notice.

A mutant is the module with one expression or statement changed; its name says where and how in the
words of the code, so that it stays the same when lines move. Only code inside functions is changed;
annotations, docstrings and assertions are not. Source: DeMillo, Lipton, Sayward, "Hints on Test
Data Selection" (1978); the operators are the usual ones of statement, relation and arithmetic.
"""

from __future__ import annotations

import ast
import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

_RELATIONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_ARITHMETIC: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
}  # fmt: skip
_CALLS = {"min": "max", "max": "min", "any": "all", "all": "any"}


@dataclass(frozen=True, slots=True)
class Mutant:
    """One changed module: `name` says what and where."""

    name: str
    source: str
    place: int
    change: int

    def tree(self) -> ast.Module:
        """The module with the change in it, to be compiled."""
        tree = ast.parse(self.source)
        node, _ = next(islice(_places(tree), self.place, None))
        list(_changes(node))[self.change](node)
        return ast.fix_missing_locations(tree)


def mutants(source: str) -> Iterator[Mutant]:
    """Every mutant of a module, in the order of its code."""
    seen: Counter[str] = Counter()
    for place, (node, where) in enumerate(_places(ast.parse(source))):
        for index, change in enumerate(_changes(node)):
            changed = copy.deepcopy(node)
            change(changed)
            name = f"{where}: {_line_of(node)} -> {_line_of(changed)}"
            seen[name] += 1
            if seen[name] > 1:
                name += f" ({seen[name]})"
            yield Mutant(name, source, place, index)


def _places(tree: ast.Module) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
    """Every node of a function's body, with the function's name."""

    def below(node: ast.AST, where: str) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                inner = f"{where}.{child.name}" if where else child.name
                if isinstance(child, ast.ClassDef):
                    yield from below(child, inner)
                else:
                    for statement in child.body:
                        yield from inside(statement, inner)

    def inside(node: ast.AST, where: str) -> Iterator[tuple[ast.expr | ast.stmt, str]]:
        if isinstance(node, ast.Assert) or _is_docstring(node):
            return
        if isinstance(node, ast.expr | ast.stmt):
            yield node, where
        for name, value in ast.iter_fields(node):
            if name in ("annotation", "returns", "type_params"):
                continue
            for child in value if isinstance(value, list) else [value]:
                if isinstance(child, ast.AST):
                    yield from inside(child, where)

    yield from below(tree, "")


def _is_docstring(node: ast.AST) -> bool:
    return (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )


def _changes(node: ast.expr | ast.stmt) -> Iterator[Callable[[ast.expr | ast.stmt], None]]:
    """What can be done to a node; each changes a copy of it in place."""
    match node:
        case ast.Compare(ops=[only]) if type(only) in _RELATIONS:
            yield _relation
        case ast.BinOp(op=op) if type(op) in _ARITHMETIC and not _is_text(node):
            yield _arithmetic
        case ast.BoolOp():
            yield _connective
        case ast.UnaryOp(op=ast.Not()):
            yield _affirm
        case ast.Constant(value=bool() | int()):
            yield _other_constant
        case ast.Call(func=ast.Name(id=name)) if name in _CALLS:
            yield _other_call
        case ast.If(test=ast.Name() | ast.Attribute() | ast.Call()):
            yield _negate
        case ast.AugAssign(op=op) if type(op) in _ARITHMETIC:
            yield _arithmetic
        case ast.Return(value=ast.expr() as value) if not _is_none(value):
            yield _return_nothing
        case ast.Expr(value=ast.Call()):
            yield _do_nothing
        case _:
            pass


def _relation(node: ast.expr | ast.stmt) -> None:
    assert isinstance(node, ast.Compare)
    node.ops = [_RELATIONS[type(node.ops[0])]()]


def _arithmetic(node: ast.expr | ast.stmt) -> None:
    assert isinstance(node, ast.BinOp | ast.AugAssign)
    node.op = _ARITHMETIC[type(node.op)]()


def _connective(node: ast.expr | ast.stmt) -> None:
    assert isinstance(node, ast.BoolOp)
    node.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()


def _affirm(node: ast.expr | ast.stmt) -> None:
    assert isinstance(node, ast.UnaryOp)
    # `not not x` is x as a truth value, which is all that `not` ever gave.
    node.operand = ast.UnaryOp(ast.Not(), node.operand)


def _other_constant(node: ast.expr | ast.stmt) -> None:
    assert isinstance(node, ast.Constant)
    assert isinstance(node.value, int)
    node.value = not node.value if isinstance(node.value, bool) else node.value + 1


def _other_call(node: ast.expr | ast.stmt) -> None:
    assert isinstance(node, ast.Call)
    assert isinstance(node.func, ast.Name)
    node.func.id = _CALLS[node.func.id]


def _negate(node: ast.expr | ast.stmt) -> None:
    assert isinstance(node, ast.If)
    node.test = ast.UnaryOp(ast.Not(), node.test)


def _return_nothing(node: ast.expr | ast.stmt) -> None:
    assert isinstance(node, ast.Return)
    node.value = ast.Constant(None)


def _do_nothing(node: ast.expr | ast.stmt) -> None:
    assert isinstance(node, ast.Expr)
    node.value = ast.Constant(...)


def _is_text(node: ast.BinOp) -> bool:
    sides = (node.left, node.right)
    return any(
        isinstance(side, ast.JoinedStr)
        or (isinstance(side, ast.Constant) and isinstance(side.value, str))
        for side in sides
    )


def _is_none(value: ast.expr) -> bool:
    return isinstance(value, ast.Constant) and value.value is None


def _line_of(node: ast.expr | ast.stmt) -> str:
    """The node in one line of code; of a block its head."""
    return ast.unparse(node).splitlines()[0]
