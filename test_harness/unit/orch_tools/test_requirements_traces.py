"""Where requirement ids are found: markers, contract elements, docstrings and comments."""

from __future__ import annotations

from pathlib import Path

from harness_kit.trees import write_tree
from orch_tools.traces import traces_of_code, traces_of_contracts, traces_of_tests

TEST_FILE = "test_harness/unit/test_alpha.py"


def test_markers_count_on_module_class_function_and_parameter(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            TEST_FILE: """
                import pytest

                pytestmark = [pytest.mark.req("ORCH-0001")]

                @pytest.mark.req("ORCH-0002", "ORCH-0003")
                class TestOne:
                    pytestmark = pytest.mark.req("ORCH-0004")

                    @pytest.mark.parametrize(
                        "n", [1, pytest.param(2, marks=pytest.mark.req("ORCH-0005"))]
                    )
                    async def test_a(self, n): ...

                def test_b(): ...
            """
        },
    )

    traces, problems = traces_of_tests(tmp_path)

    assert problems == []
    assert {(t.requirement_id, t.place) for t in traces} == {
        ("ORCH-0001", f"{TEST_FILE}::TestOne::test_a"),
        ("ORCH-0002", f"{TEST_FILE}::TestOne::test_a"),
        ("ORCH-0003", f"{TEST_FILE}::TestOne::test_a"),
        ("ORCH-0004", f"{TEST_FILE}::TestOne::test_a"),
        ("ORCH-0005", f"{TEST_FILE}::TestOne::test_a"),
        ("ORCH-0001", f"{TEST_FILE}::test_b"),
    }


def test_a_state_machine_is_the_test_that_runs_it(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            TEST_FILE: """
                import pytest

                TestA = pytest.mark.req("ORCH-0001")(MachineA.TestCase)

                @pytest.mark.req("ORCH-0002")
                class TestB(MachineB.TestCase): ...
            """
        },
    )

    traces, problems = traces_of_tests(tmp_path)

    assert problems == []
    assert {(t.requirement_id, t.place) for t in traces} == {
        ("ORCH-0001", f"{TEST_FILE}::TestA::runTest"),
        ("ORCH-0002", f"{TEST_FILE}::TestB::runTest"),
    }


def test_a_marker_the_scan_cannot_attribute_is_a_problem_not_a_loss(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            TEST_FILE: """
                import pytest

                CASES = [pytest.param(1, marks=pytest.mark.req("ORCH-0001"))]
            """
        },
    )

    traces, problems = traces_of_tests(tmp_path)

    assert traces == []
    assert problems == [
        f"{TEST_FILE}:3: a req marker belongs on a test, a test class, in pytestmark "
        "or into parametrize"
    ]


def test_markers_must_be_literal_and_may_only_add_what_is_missing(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            TEST_FILE: """
                import pytest

                @pytest.mark.req(NAMED)
                def test_computed(): ...

                @pytest.mark.req("ORCH-0001", partial="")
                def test_empty(): ...

                @pytest.mark.req("ORCH-0001", note="x")
                def test_other_word(): ...
            """
        },
    )

    _, problems = traces_of_tests(tmp_path)

    assert [p.split(": ")[0].rpartition("::")[2] for p in problems] == [
        "test_computed",
        "test_empty",
        "test_other_word",
    ]


def test_an_id_in_a_name_and_a_file_that_does_not_parse_are_problems(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            TEST_FILE: "def test_orch_3004_rejects(): ...\n",
            "test_harness/unit/test_broken.py": "def test(:\n",
        },
    )

    _, problems = traces_of_tests(tmp_path)

    assert problems[0] == (
        f"{TEST_FILE}::test_orch_3004_rejects: an id belongs into a req marker, not into a name"
    )
    assert problems[1].startswith("test_harness/unit/test_broken.py:1: ")


def test_code_counts_in_docstrings_and_comments_but_not_in_other_texts(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "service/core/__init__.py": '"""ORCH-0001"""\n',
            "service/core/mod.py": """
                def f():
                    '''See OC-POLICY-SDK-4101.'''
                    x = "ORCH-0003"
                    return x  # ORCH-0002, not X-ORCH-0004
            """,
        },
    )

    traces, problems = traces_of_code(tmp_path)

    assert problems == []
    assert {(t.requirement_id, t.place) for t in traces} == {
        ("ORCH-0001", "service/core/__init__.py::core"),
        ("OC-POLICY-SDK-4101", "service/core/mod.py::core.mod"),
        ("ORCH-0002", "service/core/mod.py::core.mod"),
    }


def test_contract_elements_are_named_as_a_person_would(tmp_path: Path) -> None:
    write_tree(
        tmp_path,
        {
            "contracts/openapi/data.yaml": """
                paths:
                  /v1/tasks:
                    post: {x-req-id: [ORCH-0001, ORCH-0002]}
                components:
                  schemas:
                    Task: {x-req-id: ORCH-0003}
            """,
            "contracts/schemas/config.schema.json": """
                {"properties": {
                    "requirements": {"type": "array"},
                    "pools": {"items": {"properties": {"ctx": {"x-req-id": "ORCH-0004"}}}}}}
            """,
            "contracts/metrics.yaml": "- {name: queue_depth, requirements: [not an id]}\n",
        },
    )

    traces, problems = traces_of_contracts(tmp_path)

    assert {(t.requirement_id, t.place) for t in traces} == {
        ("ORCH-0001", "contracts/openapi/data.yaml#POST /v1/tasks"),
        ("ORCH-0002", "contracts/openapi/data.yaml#POST /v1/tasks"),
        ("ORCH-0003", "contracts/openapi/data.yaml#components/schemas/Task"),
        ("ORCH-0004", "contracts/schemas/config.schema.json#pools.ctx"),
    }
    assert problems == ["contracts/metrics.yaml#queue_depth: 'not an id' is not a requirement id"]
