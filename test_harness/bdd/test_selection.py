"""`LLORCH_BDD_FEATURE_PATH`: a file or a folder, seen from here or from the features."""

from __future__ import annotations

from pathlib import Path

import pytest

from bdd.selection import FEATURES, chosen_features


def test_without_a_choice_all_features_run(tmp_path: Path) -> None:
    assert chosen_features("", tmp_path) == FEATURES
    assert list(FEATURES.rglob("*.feature"))


def test_a_path_is_seen_from_here_first_and_then_from_the_features(tmp_path: Path) -> None:
    mine = tmp_path / "mine.feature"
    mine.touch()

    assert chosen_features("mine.feature", tmp_path) == mine
    assert chosen_features(str(mine), FEATURES) == mine
    assert chosen_features("scheduling", tmp_path) == FEATURES / "scheduling"


def test_a_folder_of_the_same_name_without_features_is_passed_over(tmp_path: Path) -> None:
    (tmp_path / "adapters").mkdir()

    assert chosen_features("adapters", tmp_path) == FEATURES / "adapters"


def test_a_path_that_does_not_exist_is_an_error_that_names_the_variable(tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"LLORCH_BDD_FEATURE_PATH: there is no feature in 'x'"
    ):
        chosen_features("x", tmp_path)
