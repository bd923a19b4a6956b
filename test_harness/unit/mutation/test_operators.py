"""What the operators change, and that a mutant's name is about code and not about lines."""

from __future__ import annotations

import ast

import pytest

from mutation.mutation_run import candidates, known_survivors
from mutation.operators import mutants


def changed(line: str) -> set[str]:
    """What becomes of one line in a function's body."""
    found = mutants(f"def f(a, b):\n    {line}\n")
    return {ast.unparse(each.tree()).splitlines()[1].strip() for each in found}


@pytest.mark.parametrize(
    ("line", "lies"),
    [
        ("a < b", {"a <= b"}),
        ("a == b", {"a != b"}),
        ("a not in b", {"a in b"}),
        ("a + b", {"a - b"}),
        ("a * b", {"a + b"}),
        ("a and b", {"a or b"}),
        ("a = not b", {"a = not not b"}),
        ("a = 7", {"a = 8"}),
        ("a = True", {"a = False"}),
        ("a = min(b)", {"a = max(b)"}),
        ("a += b", {"a -= b"}),
        ("return a", {"return None"}),
        ("a.sort()", {"..."}),
        ("f'{a}' + 'x'", set()),
        ("'a docstring'", set()),
        ("assert a < b", set()),
        ("c: 'Literal[1]' = a", set()),
    ],
)
def test_each_operator_tells_its_lie_and_no_other(line: str, lies: set[str]) -> None:
    assert changed(line) == lies


def test_only_what_runs_in_functions_is_changed() -> None:
    source = "LIMIT = 1\nclass A:\n    size = 2\n    def f(self, n=3):\n        return None\n"

    assert list(mutants(source)) == []


def test_a_name_stays_when_lines_move_and_tells_twins_apart() -> None:
    source = "def f(a):\n    b = a + 1\n    c = a + 1\n"

    names = [each.name for each in mutants(source)]

    assert names == [each.name for each in mutants("# a comment\n\n" + source)]
    assert len(names) == len(set(names)) == 4


def test_every_survivor_is_still_a_mutant_and_has_its_reason() -> None:
    named = {each.name for each in candidates()}

    assert known_survivors().keys() <= named
    assert all(len(reason) > 20 for reason in known_survivors().values())
    assert len(known_survivors()) <= 0.15 * len(named)
