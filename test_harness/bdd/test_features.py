"""Every scenario of `features/` against the real service process; `bdd.selection` says which."""

from __future__ import annotations

import os
from pathlib import Path

from pytest_bdd import scenarios

from bdd.selection import VARIABLE, chosen_features

pytest_plugins = [
    "bdd.steps.stage_steps",
    "bdd.steps.task_steps",
    "bdd.steps.answer_steps",
    "bdd.steps.stream_steps",
    "bdd.steps.share_steps",
    "bdd.steps.breaker_steps",
    "bdd.steps.explain_steps",
    "bdd.steps.order_steps",
]

scenarios(str(chosen_features(os.environ.get(VARIABLE, ""), Path.cwd())))
