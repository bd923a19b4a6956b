"""COMPLIANCE.md: a status is earned by tests that name the requirement and passed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness_kit.trees import write_tree
from orch_tools import codegen, compliance, requirements
from orch_tools.evidence import EvidenceError
from orch_tools.traces import Trace

SPEC = "contracts/spec/10-alpha.md"
TEST_FILE = "test_harness/unit/test_alpha.py"
EVIDENCE = "requirements/evidence.json"

WHOLE = Trace("ORCH-0001", "test", "t::whole")
PART = Trace("ORCH-0001", "test", "t::part", partial="restarts")


def row_of(text: str | bytes, requirement_id: str) -> list[str]:
    lines = [line for line in str(text).splitlines() if line.startswith(f"| [{requirement_id}]")]
    assert len(lines) == 1
    return [cell.strip() for cell in lines[0].split("|")[1:-1]]


@pytest.mark.parametrize(
    ("tests", "outcomes", "expected"),
    [
        ([], {}, "untested"),
        ([WHOLE], {}, "not run"),
        ([WHOLE], {"t::whole": "passed"}, "proven"),
        ([WHOLE], {"t::whole": "failed"}, "failing"),
        ([PART], {"t::part": "passed"}, "partial"),
        ([PART], {"t::part": "failed"}, "failing"),
        ([PART, WHOLE], {"t::part": "passed", "t::whole": "passed"}, "proven"),
        ([PART, WHOLE], {"t::part": "failed", "t::whole": "passed"}, "failing"),
        ([PART, WHOLE], {"t::part": "passed"}, "not run"),
        ([WHOLE], {"t::gone": "passed"}, "not run"),
    ],
)
def test_a_status_follows_from_the_naming_tests_and_their_outcomes(
    tests: list[Trace], outcomes: dict[str, str], expected: str
) -> None:
    assert compliance.status(tests, outcomes) == expected


def test_the_table_links_spec_tests_and_code_and_counts_each_status(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            SPEC: """
                ## 1 First
                - [ORCH-0001] (MUST) Proved.
                - [ORCH-0002] (SHOULD) Half.
                - [ORCH-0003] (MAY) Nothing yet.
                - [ORCH-0004] (WITHDRAWN 2026-11-23, see ORCH-0001) Gone.
            """,
            TEST_FILE: """
                import pytest

                @pytest.mark.req("ORCH-0001")
                @pytest.mark.req("ORCH-0002", partial="a|b")
                class TestOne:
                    def test_it(self): ...
            """,
            "service/core/mod.py": "# ORCH-0001\n",
            EVIDENCE: json.dumps(
                {
                    "ORCH-0001": {f"{TEST_FILE}::TestOne::test_it": "passed"},
                    "ORCH-0002": {f"{TEST_FILE}::TestOne::test_it": "passed"},
                }
            ),
        },
    )

    text = str(compliance.generate(tmp_path)["COMPLIANCE.md"])

    assert row_of(text, "ORCH-0001") == [
        f"[ORCH-0001]({SPEC}#1-first)",
        "MUST",
        "proven",
        f"[TestOne.test_it]({TEST_FILE})",
        "[core.mod](service/core/mod.py)",
    ]
    assert f"[TestOne.test_it]({TEST_FILE}) (leaves out: a\\|b)" in text
    assert row_of(text, "ORCH-0003")[1:] == ["MAY", "untested", "", ""]
    assert row_of(text, "ORCH-0004")[2] == "withdrawn 2026-11-23, see ORCH-0001"
    assert "| **total** | 1 | 1 | 0 | 0 | 1 | 3 |" in text


def test_a_malformed_evidence_file_is_refused_by_name(tmp_path: Path) -> None:
    write_tree(tmp_path, {SPEC: "- [ORCH-0001] (MUST) X.\n", EVIDENCE: '{"ORCH-0001": ["t"]}'})

    with pytest.raises(EvidenceError, match=r"evidence\.json: not of the form"):
        compliance.generate(tmp_path)


@pytest.mark.req(
    "OC-CONFIG-6010", partial="the generators of code, which regen --check compares in CI"
)
def test_a_second_generation_changes_nothing_whatever_order_the_files_came_in(
    tmp_path: Path,
) -> None:
    files = {
        "contracts/spec/20-beta.md": "- [OC-CORE-0001] (MUST) B.\n",
        SPEC: "- [ORCH-0002] (MUST) A2.\n- [ORCH-0001] (MUST) A1.\n",
        "service/b/mod.py": "# ORCH-0001 OC-CORE-0001\n",
        "service/a/mod.py": "# ORCH-0001 ORCH-0002\n",
    }
    forward = write_tree(tmp_path / "one", files)
    backward = write_tree(tmp_path / "two", dict(reversed(files.items())))
    generators = (requirements.generate, compliance.generate)

    first = codegen.collect(forward, generators)
    codegen.write(forward, first)

    assert codegen.write(forward, codegen.collect(forward, generators)) == []
    assert codegen.collect(backward, generators) == first
