"""``requirements/open.yaml``: the MUST requirements that no complete test names yet, and why.

Off every request's path. Kept by hand: which capabilities have landed and which are ahead, and a
list of ``{reason, waits_for, ids}``, so that a gap in the proof is a line that somebody wrote and
somebody reviews. Invariants: it only ever explains, what it lists is still shown as untested or
partial in COMPLIANCE.md; and it explains nothing by a capability that has landed, so that a MUST
of a landed one without a test fails the lint. Requirements: OC-CONFIG-6010.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec
import yaml

OPEN_FILE = Path("requirements/open.yaml")

_HEAD = """\
# MUST requirements without a complete test yet, why, and which capability brings it. A capability
# that is under `landed` excuses nothing. Kept by hand; the lint names what is out of date.
# `python -m orch_tools requirements --settle REASON --waits-for CAPABILITY` removes what is proved
# by now and adds what is not explained.
"""


class OpenListError(Exception):
    """The file is not of the form {landed, ahead, open: [{reason, waits_for, ids}]}."""


class Gap(msgspec.Struct, forbid_unknown_fields=True):
    """Requirements that are open for one reason until one capability lands."""

    reason: str
    waits_for: str
    ids: list[str]


class OpenList(msgspec.Struct, forbid_unknown_fields=True):
    """The whole file, in its order."""

    landed: list[str] = []
    ahead: list[str] = []
    open: list[Gap] = []

    @property
    def listed(self) -> Iterator[str]:
        """Every id, as often as it stands there."""
        return (each for gap in self.open for each in gap.ids)

    def problems(self, complete: set[str]) -> Iterator[str]:
        """What is out of date in the list, one line each; `complete` has the ids with a complete
        test.
        """
        for gap in self.open:
            if gap.waits_for in self.landed:
                yield (
                    f"{', '.join(gap.ids)}: open until {gap.waits_for!r}, which has landed; write "
                    "the test"
                )
            elif gap.waits_for not in self.ahead:
                yield f"{', '.join(gap.ids)}: waits for {gap.waits_for!r}, which is not `ahead`"
        for requirement_id, times in Counter(self.listed).items():
            if requirement_id in complete:
                yield f"{requirement_id} has a complete test now, take it out"
            elif times > 1:
                yield f"{requirement_id} is listed twice"

    def settled(self, needed: Iterable[str], reason: str, waits_for: str) -> OpenList:
        """The list with what is still `needed` and no more; what nobody explained is under
        `reason`.
        """
        missing = set(needed)
        gaps = [
            Gap(gap.reason, gap.waits_for, [each for each in gap.ids if each in missing])
            for gap in self.open
        ]
        if new := sorted(missing.difference(*(gap.ids for gap in gaps))):
            gaps.append(Gap(reason, waits_for, new))
        return OpenList(self.landed, self.ahead, [gap for gap in gaps if gap.ids])


def read_open(root: Path) -> OpenList:
    """Read the list below `root`; a missing file is empty.

    Raises: OpenListError, naming the file.
    """
    path = root / OPEN_FILE
    document = yaml.safe_load(path.read_text("utf-8")) if path.exists() else {}
    try:
        return msgspec.convert(document, OpenList)
    except msgspec.ValidationError as error:
        raise OpenListError(f"{OPEN_FILE.as_posix()}: {error}") from None


def write_open(root: Path, listed: OpenList) -> None:
    """Write the list."""
    body = yaml.safe_dump(
        msgspec.to_builtins(listed), sort_keys=False, default_flow_style=None, width=100
    )
    (root / OPEN_FILE).write_text(_HEAD + body, "utf-8")
