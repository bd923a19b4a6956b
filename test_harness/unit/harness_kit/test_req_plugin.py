"""The `req` plugin: bad ids stop the run, outcomes become evidence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness_kit.trees import write_tree

pytest_plugins = ["pytester"]

SPEC = {
    "pytest.ini": "[pytest]\nmarkers = req(*ids): proves\n",
    "contracts/spec/10-alpha.md": """
        - [ORCH-0001] (MUST) One.
        - [ORCH-0002] (MUST) Two.
        - [ORCH-0003] (WITHDRAWN 2026-11-23, see ORCH-0001) Three.
    """,
}


@pytest.fixture(autouse=True)
def no_other_plugins(monkeypatch: pytest.MonkeyPatch) -> None:
    """The inner runs load our plugin alone, which also makes them ten times as fast."""
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")


def run(pytester: pytest.Pytester, files: dict[str, str], *options: str) -> pytest.RunResult:
    write_tree(pytester.path, SPEC | files)
    return pytester.runpytest_inprocess("-p", "harness_kit.req_plugin", *options)


def evidence(pytester: pytest.Pytester) -> object:
    return json.loads((pytester.path / "out.json").read_text())


@pytest.mark.parametrize(
    ("marker", "message"),
    [
        ('"ORCH-0009"', "unknown requirement id ORCH-0009"),
        ('"ORCH-0003"', "ORCH-0003 was withdrawn on 2026-11-23, use ORCH-0001"),
        ("", "a req marker takes requirement ids as texts, at least one"),
        ('"ORCH-0001", note="x"', 'a req marker takes only partial="what is missing" beside ids'),
    ],
)
def test_a_bad_marker_stops_the_run_before_any_test(
    pytester: pytest.Pytester, marker: str, message: str
) -> None:
    source = f"import pytest\n@pytest.mark.req({marker})\ndef test_it(): print('has run')\n"

    result = run(pytester, {"test_a.py": source}, "-s", "--evidence-out", "out.json")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines([f"*test_a.py::test_it: *{message}"])
    assert "has run" not in result.outlines
    assert not (pytester.path / "out.json").exists()


def test_outcomes_are_recorded_per_test_function_and_id(pytester: pytest.Pytester) -> None:
    source = """
        import pytest

        @pytest.mark.req("ORCH-0001")
        class TestOne:
            @pytest.mark.req("ORCH-0002", partial="restarts")
            def test_passes(self): ...

            @pytest.mark.parametrize("n", [0, 1, 2])
            def test_one_parameter_fails(self, n):
                assert n != 1

        def test_without_marker(): ...
    """

    run(pytester, {"sub/test_a.py": source}, "--evidence-out", "out.json")

    assert evidence(pytester) == {
        "ORCH-0001": {
            "sub/test_a.py::TestOne::test_one_parameter_fails": "failed",
            "sub/test_a.py::TestOne::test_passes": "passed",
        },
        "ORCH-0002": {"sub/test_a.py::TestOne::test_passes": "passed"},
    }


def test_a_failing_tear_down_is_a_failure_and_a_skip_proves_nothing(
    pytester: pytest.Pytester,
) -> None:
    source = """
        import pytest

        pytestmark = pytest.mark.req("ORCH-0001")

        @pytest.fixture
        def torn():
            yield
            raise RuntimeError

        def test_torn(torn): ...

        @pytest.mark.parametrize("n", [0, 1])
        def test_half_skipped(n):
            if n:
                pytest.skip()
    """

    run(pytester, {"test_a.py": source}, "--evidence-out", "out.json")

    assert evidence(pytester) == {"ORCH-0001": {"test_a.py::test_torn": "failed"}}


def test_two_invocations_merge_into_one_file(pytester: pytest.Pytester) -> None:
    files = {
        f"test_{name}.py": f"""
            import pytest

            @pytest.mark.req("ORCH-0001")
            def test_{name}(): ...
        """
        for name in ("a", "b")
    }

    run(pytester, files, "--evidence-out", "out.json", "test_a.py")
    run(pytester, files, "--evidence-out", "out.json", "--evidence-merge", "test_b.py")

    assert evidence(pytester) == {
        "ORCH-0001": {"test_a.py::test_a": "passed", "test_b.py::test_b": "passed"}
    }


def test_an_interrupted_run_leaves_the_earlier_evidence_alone(pytester: pytest.Pytester) -> None:
    source = """
        import pytest

        @pytest.mark.req("ORCH-0001")
        def test_it():
            pytest.exit("enough")
    """
    (pytester.path / "out.json").write_text('{"earlier": {}}')

    run(pytester, {"test_a.py": source}, "--evidence-out", "out.json")

    assert evidence(pytester) == {"earlier": {}}


def test_merging_without_a_file_to_merge_into_is_refused(pytester: pytest.Pytester) -> None:
    result = run(pytester, {"test_a.py": "def test_it(): ...\n"}, "--evidence-merge")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*--evidence-merge needs --evidence-out FILE*"])


def test_a_specification_that_contradicts_itself_stops_the_run(pytester: pytest.Pytester) -> None:
    source = 'import pytest\n@pytest.mark.req("ORCH-0001")\ndef test_it(): ...\n'
    twice = "- [ORCH-0001] (MUST) Again.\n"

    result = run(pytester, {"test_a.py": source, "contracts/spec/20-beta.md": twice})

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*20-beta.md: ORCH-0001 is given twice*"])


def test_the_spec_is_found_from_the_root_not_from_where_the_run_starts(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = 'import pytest\n@pytest.mark.req("ORCH-0001")\ndef test_it(): ...\n'
    below: Path = pytester.path / "sub"
    write_tree(pytester.path, SPEC | {"sub/test_a.py": source})
    monkeypatch.chdir(below)

    result = pytester.runpytest_inprocess(
        "-p", "harness_kit.req_plugin", "--evidence-out", "out.json"
    )

    assert result.ret == pytest.ExitCode.OK
    assert json.loads((below / "out.json").read_text()) == {
        "ORCH-0001": {"sub/test_a.py::test_it": "passed"}
    }


SCENARIOS = """
    from pytest_bdd import given, parsers, scenarios

    scenarios("features")

    @given("all is well")
    def all_is_well(): ...

    @given(parsers.parse("{n:d} is below 2"))
    def below(n):
        assert n < 2
"""
FEATURE = "test_harness/bdd/features/a.feature"


def run_scenarios(
    pytester: pytest.Pytester, feature: str, steps: str = SCENARIOS, *options: str
) -> pytest.RunResult:
    files = SPEC | {FEATURE: feature, "test_harness/bdd/test_features.py": steps}
    write_tree(pytester.path, files)
    loaded = ("-p", "pytest_bdd.plugin", "-p", "harness_kit.req_plugin", "--strict-markers")
    return pytester.runpytest_inprocess(*loaded, "-W", "error", *options)


def test_tags_are_markers_and_scenarios_are_recorded_by_file_and_name(
    pytester: pytest.Pytester,
) -> None:
    feature = """
        @ORCH-0001
        Feature: Tags
          @ORCH-0002
          Scenario: It is [well]
            Given all is well

          Scenario Outline: Few enough
            Given <n> is below 2

            Examples:
              | n |
              | 1 |
              | 2 |
    """

    result = run_scenarios(pytester, feature, SCENARIOS, "--evidence-out", "out.json")

    result.assert_outcomes(passed=2, failed=1)
    assert evidence(pytester) == {
        "ORCH-0001": {f"{FEATURE}::Few enough": "failed", f"{FEATURE}::It is [well]": "passed"},
        "ORCH-0002": {f"{FEATURE}::It is [well]": "passed"},
    }


@pytest.mark.parametrize(
    ("tag", "message"),
    [
        ("@ORCH-0009", f"*{FEATURE}::It is so: unknown requirement id ORCH-0009"),
        ("@ORCH-0003", f"*{FEATURE}::It is so: *withdrawn on 2026-11-23, use ORCH-0001"),
        ("@ORCH-1", "*'ORCH-1' not found in `markers` configuration option*"),
    ],
)
def test_a_bad_tag_stops_the_run_before_any_scenario(
    pytester: pytest.Pytester, tag: str, message: str
) -> None:
    feature = f"""
        Feature: Tags
          {tag}
          Scenario: It is so
            Given all is well
    """

    result = run_scenarios(pytester, feature)

    assert result.ret in (pytest.ExitCode.USAGE_ERROR, pytest.ExitCode.INTERRUPTED)
    lines = result.stderr if result.ret is pytest.ExitCode.USAGE_ERROR else result.stdout
    lines.fnmatch_lines([message])
    assert not result.parseoutcomes().get("passed")


def test_a_step_that_nobody_defined_fails(pytester: pytest.Pytester) -> None:
    feature = """
        Feature: Steps
          Scenario: It is so
            Given all is well
            Then the moon is full
    """

    result = run_scenarios(pytester, feature)

    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(['*StepDefinitionNotFoundError: *Then "the moon is full"*'])


def test_a_step_that_nobody_awaits_fails(pytester: pytest.Pytester) -> None:
    feature = """
        Feature: Steps
          Scenario: It is so
            Given it comes later
    """
    steps = """
        from pytest_bdd import given, scenarios

        scenarios("features")

        @given("it comes later")
        async def later():
            assert False
    """

    result = run_scenarios(pytester, feature, steps)

    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*coroutine 'later' was never awaited*"])
