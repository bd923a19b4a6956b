"""The specification parser, what it refuses, and the files it generates."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from harness_kit.trees import write_tree
from orch_tools import requirements
from orch_tools.requirements import RequirementErrors, load_catalog, parse_spec

ALPHA = "contracts/spec/10-alpha.md"
BETA = "contracts/spec/20-beta.md"
TEST_FILE = "test_harness/unit/test_alpha.py"


def problems_of(root: Path) -> tuple[str, ...]:
    with pytest.raises(RequirementErrors) as raised:
        requirements.generate(root)
    return raised.value.problems


def test_a_bullet_gives_id_level_text_and_the_heading_it_stands_under() -> None:
    text = "# Alpha\n\n## 2 Public API: v1\n\n- [OC-E2E-9001] (SHOULD) Does\n  what it says.\n"

    (found,) = parse_spec(text, ALPHA)

    assert (found.id, found.level, found.text) == ("OC-E2E-9001", "SHOULD", "Does what it says.")
    assert found.section == "2 Public API: v1"
    assert found.anchor == f"{ALPHA}#2-public-api-v1"


@pytest.mark.parametrize(
    "line",
    [
        "- [ORCH-0001] (SHALL) An unknown level.",
        "- [ORCH-1] (MUST) An id without four digits.",
        "- [ORCH-0001] No level at all.",
        "- [ORCH-0001] (WITHDRAWN 2026-11-23) No successor.",
    ],
)
def test_a_bullet_that_only_looks_like_a_requirement_is_refused_with_its_line(line: str) -> None:
    with pytest.raises(RequirementErrors) as raised:
        parse_spec(f"# Alpha\n\n{line}\n", ALPHA)

    assert raised.value.problems[0].startswith(f"{ALPHA}:3: ")
    assert line[:20] in raised.value.problems[0]


def test_an_id_given_twice_is_refused_with_both_files(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {ALPHA: "- [ORCH-0001] (MUST) One.\n", BETA: "- [ORCH-0001] (MUST) Another.\n"},
    )

    assert problems_of(tmp_path) == (f"{BETA}: ORCH-0001 is given twice, first in {ALPHA}",)


def test_an_unknown_id_is_refused_wherever_it_is_named(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            ALPHA: "- [ORCH-0001] (MUST) One.\n",
            TEST_FILE: """
                import pytest

                @pytest.mark.req("ORCH-0002")
                def test_it(): ...
            """,
            "contracts/openapi/data.yaml": "paths: {/v1/x: {get: {x-req-id: ORCH-0003}}}\n",
            "service/core/mod.py": '"""Carries ORCH-0004."""\n',
        },
    )

    assert problems_of(tmp_path) == (
        "contracts/openapi/data.yaml#GET /v1/x: unknown requirement id ORCH-0003",
        "service/core/mod.py::core.mod: unknown requirement id ORCH-0004",
        f"{TEST_FILE}::test_it: unknown requirement id ORCH-0002",
    )


def test_a_withdrawn_id_in_use_is_refused_with_date_and_successor(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            ALPHA: """
                - [ORCH-0001] (WITHDRAWN 2026-11-23, see ORCH-0002) Old.
                - [ORCH-0002] (MUST) New.
            """,
            "service/core/mod.py": "# ORCH-0001\n",
        },
    )

    assert problems_of(tmp_path) == (
        "service/core/mod.py::core.mod: requirement ORCH-0001 was withdrawn on 2026-11-23, "
        "use ORCH-0002",
    )


def test_a_withdrawn_id_must_name_a_living_successor(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {ALPHA: "- [ORCH-0001] (WITHDRAWN 2026-11-23, see ORCH-0009) Old.\n"},
    )

    with pytest.raises(RequirementErrors, match=r"successor of ORCH-0001: unknown .* ORCH-0009"):
        load_catalog(tmp_path)


def test_a_generated_file_joins_the_bullet_with_what_names_it(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            ALPHA: "# A\n## 1 First\n- [ORCH-0001] (MUST) One.\n",
            TEST_FILE: """
                import pytest

                @pytest.mark.req("ORCH-0001")
                def test_whole(): ...

                @pytest.mark.req("ORCH-0001", partial="restarts")
                def test_part(): ...
            """,
            "contracts/metrics.yaml": "metrics: [{name: queue_depth, requirements: [ORCH-0001]}]\n",
            "adapters/engines/wire.py": '"""ORCH-0001."""\n',
        },
    )

    text = requirements.generate(tmp_path)["requirements/10-alpha.yaml"]

    assert yaml.safe_load(text) == [
        {
            "id": "ORCH-0001",
            "level": "MUST",
            "text": "One.",
            "section": "1 First",
            "spec": f"{ALPHA}#1-first",
            "contract": ["contracts/metrics.yaml#metrics/queue_depth"],
            "tests": [f"{TEST_FILE}::test_whole"],
            "code": ["adapters/engines/wire.py::engines.wire"],
            "partial_tests": {f"{TEST_FILE}::test_part": "restarts"},
        }
    ]


def test_lint_asks_for_a_complete_test_of_each_must_or_an_explanation(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            ALPHA: """
                - [ORCH-0001] (MUST) Proved in part.
                - [ORCH-0002] (MUST) Explained.
                - [ORCH-0003] (MAY) Not needed.
                - [ORCH-0004] (MUST) Proved.
            """,
            TEST_FILE: """
                import pytest

                @pytest.mark.req("ORCH-0001", partial="the rest")
                @pytest.mark.req("ORCH-0004")
                def test_it(): ...
            """,
            "requirements/open.yaml": """
                ahead: [cluster]
                open: [{reason: later, waits_for: cluster, ids: [ORCH-0002]}]
            """,
        },
    )

    assert requirements.lint(tmp_path) == [
        f"{ALPHA}: ORCH-0001 is a MUST without a complete test; "
        "write one, or say why in requirements/open.yaml"
    ]


def test_lint_names_explanations_that_are_out_of_date(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            ALPHA: "- [ORCH-0001] (MUST) Proved.\n",
            TEST_FILE: """
                import pytest

                pytestmark = pytest.mark.req("ORCH-0001")

                def test_it(): ...
            """,
            "requirements/open.yaml": """
                ahead: [cluster]
                open: [{reason: later, waits_for: cluster, ids: [ORCH-0001, ORCH-0007]}]
            """,
        },
    )

    assert requirements.lint(tmp_path) == [
        "requirements/open.yaml: ORCH-0001 has a complete test now, take it out",
        "requirements/open.yaml: unknown requirement id ORCH-0007",
    ]


def test_settling_drops_what_is_proved_and_adds_what_is_not_explained(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            ALPHA: """
                - [ORCH-0001] (MUST) Proved.
                - [ORCH-0002] (MUST) Explained.
                - [ORCH-0003] (MUST) New.
                - [ORCH-0004] (SHOULD) May stay without.
            """,
            TEST_FILE: """
                import pytest

                @pytest.mark.req("ORCH-0001")
                def test_it(): ...
            """,
            "requirements/open.yaml": """
                ahead: [cluster, catalog]
                open:
                - {reason: no cluster, waits_for: cluster, ids: [ORCH-0002]}
                - {reason: soon, waits_for: cluster, ids: [ORCH-0001, ORCH-0009]}
            """,
        },
    )

    requirements.settle(tmp_path, "found today", "catalog")

    assert yaml.safe_load((tmp_path / "requirements/open.yaml").read_text())["open"] == [
        {"reason": "no cluster", "waits_for": "cluster", "ids": ["ORCH-0002"]},
        {"reason": "found today", "waits_for": "catalog", "ids": ["ORCH-0003"]},
    ]
    assert requirements.lint(tmp_path) == []


@pytest.mark.parametrize(
    ("waits_for", "problem"),
    [
        ("core", "ORCH-0001: open until 'core', which has landed; write the test"),
        ("moon", "ORCH-0001: waits for 'moon', which is not `ahead`"),
    ],
)
def test_what_has_landed_or_is_unknown_excuses_nothing(
    waits_for: str, problem: str, tmp_path: Path
) -> None:
    gap = f"{{reason: later, waits_for: {waits_for}, ids: [ORCH-0001]}}"
    write_tree(
        tmp_path,
        {
            ALPHA: "- [ORCH-0001] (MUST) X.",
            "requirements/open.yaml": f"{{landed: [core], ahead: [cluster], open: [{gap}]}}",
        },
    )

    assert requirements.lint(tmp_path) == [f"requirements/open.yaml: {problem}"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("- ORCH-0001", "Expected `object`, got `array`"),
        ("open: [{reason: x, waits_for: y}]", "missing required field `ids`"),
        ("open: [{reason: x, waits_for: y, ids: ORCH-0001}]", "Expected `array`, got `str`"),
        ("opens: []", "unknown field `opens`"),
    ],
)
def test_a_malformed_open_list_is_a_problem_not_an_explanation(
    text: str, problem: str, tmp_path: Path
) -> None:
    write_tree(tmp_path, {ALPHA: "- [ORCH-0001] (MUST) X.", "requirements/open.yaml": text})

    found = requirements.lint(tmp_path)

    assert found[0].startswith("requirements/open.yaml: ")
    assert problem in found[0]
