"""Where feature files name requirement ids, and what the scan refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from harness_kit.trees import write_tree
from orch_tools import compliance, requirements
from orch_tools.features import traces_of_features
from orch_tools.requirements import RequirementErrors

FEATURE = "test_harness/bdd/features/scheduling/fair.feature"


def test_tags_count_on_feature_rule_and_scenario_and_an_outline_is_one_test(
    tmp_path: Path,
) -> None:
    feature = """
        @ORCH-0001
        Feature: Fair

          Background:
            Given all is well

          @ORCH-0002 @OC-CORE-0003
          Scenario: Weights
            Then it is fair

          @ORCH-0004
          Rule: Classes
            @ORCH-0005
            Scenario Outline: <kind> moves
              Then <kind> moves
              Examples:
                | kind  |
                | batch |
                | chat  |
    """
    write_tree(tmp_path, {FEATURE: feature})

    traces, problems = traces_of_features(tmp_path)

    assert problems == []
    assert {(t.requirement_id, t.kind, t.place) for t in traces} == {
        ("ORCH-0001", "test", f"{FEATURE}::Weights"),
        ("ORCH-0002", "test", f"{FEATURE}::Weights"),
        ("OC-CORE-0003", "test", f"{FEATURE}::Weights"),
        ("ORCH-0001", "test", f"{FEATURE}::<kind> moves"),
        ("ORCH-0004", "test", f"{FEATURE}::<kind> moves"),
        ("ORCH-0005", "test", f"{FEATURE}::<kind> moves"),
    }


def test_the_tag_of_scenarios_that_own_their_service_names_no_requirement(tmp_path: Path) -> None:
    feature = "@own-service\nFeature: F\n  @ORCH-0001\n  Scenario: A\n    Given x\n"
    write_tree(tmp_path, {FEATURE: feature})

    traces, problems = traces_of_features(tmp_path)

    assert problems == []
    assert [trace.requirement_id for trace in traces] == ["ORCH-0001"]


@pytest.mark.parametrize(
    ("feature", "problem"),
    [
        (
            "@slow\nFeature: F\n  Scenario: A\n    Given x\n",
            f"{FEATURE}:1: @slow is not a requirement id",
        ),
        (
            "Feature: F\n  Scenario: A\n    Given x\n  Scenario: A\n    Given y\n",
            f"{FEATURE}: more than one scenario is called 'A'",
        ),
        (
            "Feature: F\n  Scenario Outline: A\n    Given <x>\n\n    @ORCH-0001\n    Examples:\n"
            "      | x |\n      | 1 |\n",
            f"{FEATURE}:5: a tag belongs on a feature, a rule or a scenario",
        ),
        ("Scenario: without a feature\n", f"{FEATURE}: Parser errors:"),
    ],
)
def test_what_the_scan_cannot_attribute_is_a_problem(
    tmp_path: Path, feature: str, problem: str
) -> None:
    write_tree(tmp_path, {FEATURE: feature})

    traces, problems = traces_of_features(tmp_path)

    assert traces == []
    assert [found.splitlines()[0] for found in problems] == [problem]


def test_a_tree_without_features_has_no_traces(tmp_path: Path) -> None:
    assert traces_of_features(tmp_path) == ([], [])


SPEC = {"contracts/spec/10-alpha.md": "- [ORCH-0001] (MUST) One.\n"}


def test_an_unknown_id_in_a_tag_is_refused(tmp_path: Path) -> None:
    feature = "Feature: F\n  @ORCH-0002\n  Scenario: A\n    Given x\n"
    write_tree(tmp_path, SPEC | {FEATURE: feature})

    with pytest.raises(RequirementErrors) as raised:
        requirements.generate(tmp_path)

    assert raised.value.problems == (f"{FEATURE}::A: unknown requirement id ORCH-0002",)


def test_requirements_and_compliance_name_feature_file_and_scenario(tmp_path: Path) -> None:
    feature = "Feature: F\n  @ORCH-0001\n  Scenario: Weights hold\n    Given x\n"
    place = f"{FEATURE}::Weights hold"
    evidence = f'{{"ORCH-0001": {{"{place}": "passed"}}}}'
    write_tree(tmp_path, SPEC | {FEATURE: feature, "requirements/evidence.json": evidence})

    (entry,) = yaml.safe_load(requirements.generate(tmp_path)["requirements/10-alpha.yaml"])
    page = compliance.generate(tmp_path)["COMPLIANCE.md"]

    assert entry["tests"] == [place]
    assert f"| MUST | proven | [Weights hold]({FEATURE}) |" in str(page)
