"""A change of the contracts has its words in CHANGELOG_SPEC.md."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness_kit.trees import write_tree
from orch_tools import spec_changes

pytestmark = pytest.mark.req("OC-CONFIG-6010", partial="all but the rule of the changelog")

SPEC = "contracts/spec/alpha.md"
API = "contracts/openapi/data.yaml"


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    write_tree(
        tmp_path,
        {
            SPEC: "- [ORCH-0001] (MUST) One.\n- [ORCH-0002] (MUST) Two.\n",
            API: "openapi: 3.0.3\n",
            "contracts/pacts/client.json": "{}",
            "CHANGELOG_SPEC.md": "# Changes\n\n## Unreleased\n\n## 1.0.0\n\n- ORCH-0001: first.\n",
        },
    )
    spec_changes.write(tmp_path, spec_changes.snapshot(tmp_path, "1.0.0"))
    return tmp_path


def unreleased(tree: Path, text: str) -> None:
    path = tree / "CHANGELOG_SPEC.md"
    path.write_text(path.read_text().replace("## Unreleased\n", f"## Unreleased\n\n{text}\n"))


def test_without_a_change_nothing_has_to_be_said(tree: Path) -> None:
    assert spec_changes.problems(tree) == []


def test_examples_and_pacts_are_no_contracts(tree: Path) -> None:
    (tree / "contracts/pacts/client.json").write_text("{ }")

    assert spec_changes.problems(tree) == []


@pytest.mark.parametrize(
    ("spec", "requirement_id"),
    [
        ("- [ORCH-0001] (MUST) One and more.\n- [ORCH-0002] (MUST) Two.\n", "ORCH-0001"),
        ("- [ORCH-0001] (SHOULD) One.\n- [ORCH-0002] (MUST) Two.\n", "ORCH-0001"),
        ("- [ORCH-0001] (MUST) One.\n", "ORCH-0002"),
        (
            "- [ORCH-0001] (MUST) One.\n- [ORCH-0002] (MUST) Two.\n- [ORCH-0003] (MAY) New.\n",
            "ORCH-0003",
        ),
    ],
)
def test_a_requirement_that_is_new_changed_or_gone_must_be_named(
    spec: str, requirement_id: str, tree: Path
) -> None:
    (tree / SPEC).write_text(spec)

    before = spec_changes.problems(tree)
    unreleased(tree, f"- {requirement_id}: see there.")

    assert before == [
        f"CHANGELOG_SPEC.md: {requirement_id} has changed since 1.0.0; say so under ## Unreleased"
    ]
    assert spec_changes.problems(tree) == []


def test_a_contract_that_differs_must_be_named(tree: Path) -> None:
    (tree / API).write_text("openapi: 3.0.3\ninfo: {}\n")

    before = spec_changes.problems(tree)
    unreleased(tree, f"- ORCH-0001: `{API}`, a field.")

    assert before == [
        f"CHANGELOG_SPEC.md: {API} has changed since 1.0.0; name it under ## Unreleased"
    ]
    assert spec_changes.problems(tree) == []


def test_a_release_names_the_version_and_begins_anew(tree: Path) -> None:
    (tree / API).write_text("openapi: 3.0.3\ninfo: {}\n")
    unreleased(tree, f"- ORCH-0001: `{API}`, a field.")

    spec_changes.release(tree, "1.1.0", "2026-11-23")

    text = (tree / "CHANGELOG_SPEC.md").read_text()
    assert "## Unreleased\n\n## 1.1.0 - 2026-11-23\n\n- ORCH-0001: `" in text
    assert spec_changes.problems(tree) == []


def test_a_release_with_a_change_that_nobody_named_is_refused(tree: Path) -> None:
    (tree / API).write_text("openapi: 3.0.3\ninfo: {}\n")

    with pytest.raises(spec_changes.ChangelogError, match=API):
        spec_changes.release(tree, "1.1.0", "2026-11-23")

    assert "1.1.0" not in (tree / "CHANGELOG_SPEC.md").read_text()


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("CHANGELOG_SPEC.md", "# Changes\n", "has no heading '## Unreleased'"),
        ("requirements/released.json", "[]", "requirements/released.json: Expected `object`"),
    ],
)
def test_what_cannot_be_read_is_named(file: str, content: str, message: str, tree: Path) -> None:
    (tree / file).write_text(content)

    with pytest.raises(spec_changes.ChangelogError, match=message):
        spec_changes.problems(tree)
