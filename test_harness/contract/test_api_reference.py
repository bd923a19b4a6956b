"""The references of API and errors: nothing missing, and nothing that the contracts do not say."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml

from orch_tools import api_reference
from orch_tools.config_reference import anchor

ROOT = Path(__file__).resolve().parents[2]
DATA, CONTROL = (
    yaml.safe_load((ROOT / f"contracts/openapi/{plane}.yaml").read_text("utf-8"))
    for plane in ("data", "control")
)
DOCUMENTS = {"OrchQueue v1": DATA, "OrchControl v1": CONTROL}
PLACES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")])


def test_every_operation_is_in_the_reference_once() -> None:
    headings = re.findall(r"^### ([a-z_]+)$", api_reference.api(DOCUMENTS), re.MULTILINE)

    operations = [
        entry["operationId"]
        for document in DOCUMENTS.values()
        for item in document["paths"].values()
        for entry in item.values()
        if isinstance(entry, dict) and "operationId" in entry
    ]

    assert sorted(headings) == sorted(operations)


@pytest.mark.req("ORCH-2006", partial="the catalogue of codes")
def test_the_catalogue_has_each_code_with_the_statuses_at_which_the_contract_has_it() -> None:
    catalog = DATA["components"]["schemas"]["ErrorCode"]["x-catalog"]

    documented: dict[str, set[int]] = {code: set() for code in catalog}
    for item in DATA["paths"].values():
        for entry in item.values():
            for status, response in entry.get("responses", {}).items():
                name = response.get("$ref", "").rpartition("/")[2]
                found = DATA["components"]["responses"][name] if name else response
                for code in re.findall(r"\b([A-Z]+(?:_[A-Z]+)+|INTERNAL): ", found["description"]):
                    documented[code].add(int(status))

    beyond = {
        code: sorted(statuses - set(catalog[code]["statuses"]))
        for code, statuses in documented.items()
    }
    assert beyond == {code: [] for code in catalog}
    assert sorted(catalog) == sorted(DATA["components"]["schemas"]["ErrorCode"]["enum"])


def test_a_code_without_words_is_refused() -> None:
    broken = yaml.safe_load(yaml.safe_dump(DATA))
    broken["components"]["schemas"]["ErrorCode"]["enum"].append("MOON_PHASE")

    with pytest.raises(api_reference.ReferenceError, match="MOON_PHASE"):
        api_reference.errors(broken)


@pytest.mark.parametrize("path", PLACES, ids=lambda path: path.name)
def test_every_link_in_the_documents_leads_somewhere(path: Path) -> None:
    targets = re.findall(r"\]\(([^)\s]+)\)", _prose(path))

    dead = [target for target in targets if not _leads_somewhere(path, target)]

    assert dead == []


def _leads_somewhere(path: Path, target: str) -> bool:
    if re.match(r"[a-z]+:", target):
        return True
    name, _, fragment = target.partition("#")
    file = (path.parent / name) if name else path
    if not file.exists():
        return False
    if not fragment or file.suffix != ".md":
        return True
    headings = re.findall(r"^#{1,6} (.+?)\s*$", _prose(file), re.MULTILINE)
    return fragment in {anchor(heading) for heading in headings}


def _prose(path: Path) -> str:
    """The text without its code blocks."""
    return re.sub(r"^```.*?^```", "", path.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)
