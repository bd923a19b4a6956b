"""Small repository trees for the tests of the tools: a mapping of paths to texts, written out.

Off every request's path. Invariant: what a test reads is in the test itself, nothing is inherited.
"""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import Path


def write_tree(root: Path, files: Mapping[str, str]) -> Path:
    """Write each text, freed of its common indentation, below `root`; returns `root`."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(textwrap.dedent(text).lstrip("\n"), "utf-8")
    return root
