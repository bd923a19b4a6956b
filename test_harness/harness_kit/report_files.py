"""Where the tests leave what a reader of the proof wants to see: counts, diffs, dumps, logs.

A report is a file below one folder, `dist/reports/` unless LLORCH_REPORTS_DIR names another; the
proof bundle takes that folder as it is. A report decides nothing: what fails a test is said by the
test itself. It holds no key and no prompt of a user, and its name is the same in every run, so that
a later run replaces it.
"""

from __future__ import annotations

import os
from pathlib import Path

REPORTS_DIR = Path(__file__).parents[2] / "dist" / "reports"


def report_file(name: str) -> Path:
    """The path of the report `name` ("chaos/faults.json"), its folders made; a later run writes it
    anew.

    Raises:
        ValueError: the name leads out of the folder of reports.
    """
    root = Path(os.environ.get("LLORCH_REPORTS_DIR", "") or REPORTS_DIR).resolve()
    path = (root / name).resolve()
    if not path.is_relative_to(root) or path == root:
        raise ValueError(f"report name {name!r}: it must name a file below {root.name}/")
    path.parent.mkdir(parents=True, exist_ok=True)
    return path
