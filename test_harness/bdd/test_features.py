"""Every scenario of `features/` against the real service process; `bdd.selection` says which."""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

import pytest
from pytest_bdd import scenarios
from pytest_bdd.feature import get_features
from pytest_bdd.steps import StepNamePrefix

from bdd.selection import FEATURES, VARIABLE, chosen_features

pytest_plugins = [
    "bdd.steps.stage_steps",
    "bdd.steps.task_steps",
    "bdd.steps.answer_steps",
    "bdd.steps.stream_steps",
    "bdd.steps.share_steps",
    "bdd.steps.breaker_steps",
    "bdd.steps.explain_steps",
    "bdd.steps.order_steps",
    "bdd.steps.watch_steps",
    "bdd.steps.config_steps",
]

scenarios(str(chosen_features(os.environ.get(VARIABLE, ""), Path.cwd())))


def test_every_step_is_used(request: pytest.FixtureRequest) -> None:
    """By a feature of the project, whichever of them run now."""
    features = get_features([str(FEATURES)])
    used = {
        (step.type, step.name)
        for feature in features
        for scenario in feature.scenarios.values()
        for step in scenario.steps
    }
    unused = [
        f"{context.type} {context.parser.name}"
        for module in pytest_plugins
        for name in vars(import_module(module))
        if name.startswith(StepNamePrefix.step_def.value)
        for context in [request.getfixturevalue(name)]
        if not any(kind == context.type and context.parser.is_matching(text) for kind, text in used)
    ]

    assert len(used) > 100
    assert unused == []
