"""``requirements/open.yaml``: the MUST requirements that no complete test names yet, and why.

Off every request's path. Kept by hand, as a list of ``{reason, ids}``, so that a gap in the proof
is a line that somebody wrote and somebody reviews. Invariant: it only ever explains; what it lists
is still shown as untested or partial in COMPLIANCE.md. Requirements: OC-CONFIG-6010.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import yaml

OPEN_FILE = Path("requirements/open.yaml")

_HEAD = """\
# MUST requirements without a complete test yet, and why. Kept by hand; the lint names what is out
# of date. `python -m orch_tools requirements --settle REASON` removes what is proved by now and
# adds what is not explained.
"""


class OpenListError(Exception):
    """The file is not a list of {reason, ids}."""


def read_open(root: Path) -> dict[str, list[str]]:
    """Reason → ids, in the order of the file; a missing file is empty.

    Raises: OpenListError, naming the file.
    """
    path = root / OPEN_FILE
    groups = yaml.safe_load(path.read_text("utf-8")) if path.exists() else None
    found: dict[str, list[str]] = {}
    for group in groups or []:
        match group:
            case {"reason": str(reason), "ids": list(ids), **rest} if not rest:
                found.setdefault(reason, []).extend(str(each) for each in ids)
            case _:
                raise OpenListError(
                    f"{OPEN_FILE.as_posix()}: not of the form {{reason, ids}}: {group}"
                )
    return found


def write_open(root: Path, groups: Mapping[str, list[str]]) -> None:
    """Write the groups that have ids left, each sorted."""
    listed = [{"reason": why, "ids": sorted(ids)} for why, ids in groups.items() if ids]
    body = (
        yaml.safe_dump(listed, sort_keys=False, default_flow_style=None, width=100)
        if listed
        else ""
    )
    (root / OPEN_FILE).write_text(_HEAD + body, "utf-8")
