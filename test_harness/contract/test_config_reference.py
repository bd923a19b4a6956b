"""The configuration reference: an example for every key, and none that would be refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

from orch_tools import codegen_config, config_reference

ROOT = Path(__file__).resolve().parents[2]
SCHEMA = json.loads((ROOT / codegen_config.SCHEMA_PATH).read_text(encoding="utf-8"))
SECTIONS = dict(config_reference.sections(SCHEMA))


@pytest.mark.req("OC-CONFIG-6002")
@pytest.mark.parametrize("name", sorted(SCHEMA["$defs"]))
def test_every_key_stands_in_an_example_of_its_section_that_validates(name: str) -> None:
    definition = SCHEMA["$defs"][name]
    validator = jsonschema.Draft202012Validator(definition | {"$defs": SCHEMA["$defs"]})

    examples: list[dict[str, Any]] = definition["examples"]
    shown = {key for example in examples for key in example}
    problems = [error.message for example in examples for error in validator.iter_errors(example)]

    assert shown == set(definition["properties"])
    assert problems == []


def test_every_section_of_the_schema_is_in_the_reference() -> None:
    text = config_reference.reference(SCHEMA)

    headings = [line.removeprefix("## ") for line in text.splitlines() if line.startswith("## ")]

    assert headings == ["Top level", *SECTIONS]
    assert set(SECTIONS.values()) == set(SCHEMA["$defs"])
    assert SECTIONS["pools[].admission.fairness.tenants[]"] == "Tenant"


def test_an_example_is_shown_under_its_whole_path() -> None:
    text = config_reference.reference(SCHEMA)

    blocks = [yaml.safe_load(part.split("```")[0]) for part in text.split("```yaml\n")[1:]]
    tenants = [
        block["pools"][0]["admission"]["fairness"]["tenants"][0]
        for block in blocks
        if "admission" in block.get("pools", [{}])[0]
        and "tenants" in block["pools"][0]["admission"].get("fairness", {})
    ]

    assert SCHEMA["$defs"]["Tenant"]["examples"][0] in tenants


def test_links_lead_to_headings() -> None:
    text = config_reference.reference(SCHEMA)

    links = {part.split(")")[0] for part in text.split("](#")[1:]}
    anchors = {
        config_reference.anchor(line.removeprefix("## "))
        for line in text.splitlines()
        if line.startswith("## ")
    }

    assert links <= anchors
