"""The rule of CHANGELOG_SPEC.md: what changed in the contracts since their last version is there.

Off every request's path. ``requirements/released.json`` remembers the last version: the digest of
each requirement's level and text, and of each contract file. A requirement that is new, changed or
gone since then, and a contract file that differs, must be named below "## Unreleased". Invariant:
the rule reads names only; whether the words beside them are true is for a reviewer.
Requirements: OC-CONFIG-6010.
"""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import msgspec

from orch_tools.requirements import SPEC_FOLDER, load_catalog
from orch_tools.traces import ID

CHANGELOG_FILE = Path("CHANGELOG_SPEC.md")
RELEASED_FILE = Path("requirements/released.json")
CONTRACTS = Path("contracts")
# Examples and pacts show the contracts; they are none.
_NOT_CONTRACTS = ("contracts/examples/", "contracts/pacts/", f"{SPEC_FOLDER.as_posix()}/")

_UNRELEASED = "## Unreleased"


class ChangelogError(Exception):
    """The changelog or the record of the last version is not of the described form."""


class Released(msgspec.Struct, forbid_unknown_fields=True):
    """What the contracts were at `version`: requirement id → digest, contract file → digest."""

    version: str
    requirements: dict[str, str]
    contracts: dict[str, str]


def snapshot(root: Path, version: str) -> Released:
    """What the contracts below `root` are now. Raises: RequirementErrors."""
    return Released(
        version,
        {
            each.id: _digest(f"{each.level} {each.text}".encode())
            for each in load_catalog(root).by_id.values()
        },
        {
            name: _digest(path.read_bytes())
            for path in sorted((root / CONTRACTS).rglob("*"))
            if path.is_file()
            and not (name := path.relative_to(root).as_posix()).startswith(_NOT_CONTRACTS)
        },
    )


def problems(root: Path) -> list[str]:
    """What changed since the last version and is not named in the changelog, one line each.

    Raises: RequirementErrors, ChangelogError.
    """
    before = _read(root)
    now = snapshot(root, before.version)
    entry = _unreleased(root)
    named = set(re.findall(rf"\b{ID}\b", entry))
    found = [
        f"{CHANGELOG_FILE}: {each} has changed since {before.version}; say so under {_UNRELEASED}"
        for each in _changed(before.requirements, now.requirements)
        if each not in named
    ]
    found += [
        f"{CHANGELOG_FILE}: {each} has changed since {before.version}; name it under {_UNRELEASED}"
        for each in _changed(before.contracts, now.contracts)
        if each not in entry
    ]
    return found


def release(root: Path, version: str, date: str) -> None:
    """Make what is unreleased the version `version` of `date` (YYYY-MM-DD), and remember it.

    Raises: RequirementErrors; ChangelogError when something is not named yet.
    """
    if missing := problems(root):
        raise ChangelogError("\n".join(missing))
    path = root / CHANGELOG_FILE
    heading = f"{_UNRELEASED}\n\n## {version} - {date}"
    path.write_text(path.read_text("utf-8").replace(_UNRELEASED, heading, 1), "utf-8")
    write(root, snapshot(root, version))


def write(root: Path, released: Released) -> None:
    """Remember `released` as the last version."""
    text = msgspec.json.format(msgspec.json.encode(released), indent=1)
    (root / RELEASED_FILE).parent.mkdir(exist_ok=True)
    (root / RELEASED_FILE).write_bytes(text + b"\n")


def _read(root: Path) -> Released:
    try:
        return msgspec.json.decode((root / RELEASED_FILE).read_bytes(), type=Released)
    except (OSError, msgspec.DecodeError) as error:
        raise ChangelogError(f"{RELEASED_FILE}: {error}") from None


def _unreleased(root: Path) -> str:
    text = (root / CHANGELOG_FILE).read_text("utf-8")
    _, heading, rest = text.partition(f"{_UNRELEASED}\n")
    if not heading:
        raise ChangelogError(f"{CHANGELOG_FILE}: has no heading {_UNRELEASED!r}")
    return rest.partition("\n## ")[0]


def _changed(before: dict[str, str], now: dict[str, str]) -> list[str]:
    return sorted(each for each in before.keys() | now.keys() if before.get(each) != now.get(each))


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
