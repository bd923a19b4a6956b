"""Which features run: all of them, or those that `LLORCH_BDD_FEATURE_PATH` names.

Off every request's path; asked once, when the scenarios are collected. Invariant: a path that does
not lead to a feature is an error, never an empty run.
"""

from __future__ import annotations

from pathlib import Path

VARIABLE = "LLORCH_BDD_FEATURE_PATH"
FEATURES = Path(__file__).parent / "features"


def chosen_features(named: str, here: Path) -> Path:
    """A feature file or a folder of them; `named` is relative to `here`, or to the features.

    Empty stands for all. Raises FileNotFoundError, naming the variable.
    """
    if not named:
        return FEATURES
    for base in (here, FEATURES):
        found = (base / named).resolve()
        if (found.suffix == ".feature" and found.is_file()) or any(found.glob("**/*.feature")):
            return found
    raise FileNotFoundError(
        f"{VARIABLE}: there is no feature in {named!r}, neither here nor in {FEATURES}"
    )
