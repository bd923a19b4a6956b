"""OpenAPI schemas -> msgspec Structs, one package per plane, with the contract as package data.

The Structs are what the data plane decodes request bodies into, so they are as strict as the
contract: bounds, patterns and closed enums. A schema with `additionalProperties: false` (a request)
refuses unknown fields; all others (answers, events) ignore what they do not know, so that a client
of this version reads the answers of a later one. Rules across fields (`oneOf` beside `properties`)
stay in the contract and are the service's to check: msgspec has no word for them.
Requirements: ORCH-2006, ORCH-3044, OC-CONFIG-6010.
"""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

# Contract file -> package below generated/.
PLANES: dict[str, str] = {
    "contracts/openapi/data.yaml": "orchqueue_v1",
    "contracts/openapi/control.yaml": "orchcontrol_v1",
}

STRICT_MODULE = '''"""Base classes of the generated types. Generated; do not edit."""

from __future__ import annotations

import msgspec


class Strict(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What is sent to us: an unknown field is an error."""


class Open(msgspec.Struct, kw_only=True):
    """What we send: readers ignore fields that a later version added."""
'''

_TYPES_HEADER = '"""Types of {title} {version}. Generated from {path}; do not edit."""\n\n'


def load_contract(root: Path, path: str) -> dict[str, Any]:
    """The parsed contract at `path`, relative to `root`."""
    contract: dict[str, Any] = yaml.safe_load((root / path).read_text(encoding="utf-8"))
    return contract


def without_cross_field_rules(contract: dict[str, Any]) -> dict[str, Any]:
    """The contract without `oneOf`/`anyOf` beside `properties`, which would become unions of
    Structs that msgspec cannot tell apart."""
    reduced = copy.deepcopy(contract)
    for schema in reduced["components"]["schemas"].values():
        if "properties" in schema:
            schema.pop("oneOf", None)
            schema.pop("anyOf", None)
    return reduced


def base_classes(contract: dict[str, Any], package: str) -> dict[str, str]:
    """Name of each object schema -> its base class."""
    closed = {True: f"{package}.strict.Strict", False: f"{package}.strict.Open"}
    return {
        name: closed[schema.get("additionalProperties") is False]
        for name, schema in contract["components"]["schemas"].items()
        if "properties" in schema
    }


def python_patterns(source: str) -> str:
    r"""`$` at the end of a pattern means the end of the text in the contract (ECMA 262), but in
    Python also the place before a last newline; `\Z` says what the contract says."""
    return re.sub(r"(pattern='[^'\n]*)\$'", r"\1\\Z'", source).replace("pattern='^", "pattern=r'^")


def types_module(contract: dict[str, Any], package: str, path: str) -> str:
    """The text of `types.py`; runs datamodel-codegen in a folder of its own."""
    with tempfile.TemporaryDirectory() as folder:
        source, target = Path(folder) / "contract.json", Path(folder) / "types.py"
        source.write_text(json.dumps(without_cross_field_rules(contract)), encoding="utf-8")
        command = [
            *(sys.executable, "-m", "datamodel_code_generator"),
            *("--input", str(source), "--input-file-type", "openapi", "--output", str(target)),
            *("--output-model-type", "msgspec.Struct", "--target-python-version", "3.11"),
            *("--openapi-scopes", "schemas", "--enum-field-as-literal", "all"),
            *("--base-class", f"{package}.strict.Open"),
            *("--base-class-map", json.dumps(base_classes(contract, package))),
            *("--disable-timestamp", "--use-schema-description", "--field-constraints"),
            *("--use-annotated", "--formatters", "builtin", "--custom-file-header", "#"),
        ]
        subprocess.run(command, check=True, capture_output=True, text=True, cwd=folder)
        generated = target.read_text(encoding="utf-8").removeprefix("#").lstrip("\n")
    info = contract["info"]
    header = _TYPES_HEADER.format(title=info["title"], version=info["version"], path=path)
    return header + python_patterns(generated)


def package_init(contract: dict[str, Any], path: str) -> str:
    """The text of `__init__.py`: the version, and the contract's own text."""
    title, version = contract["info"]["title"], contract["info"]["version"]
    return f'''"""{title}: its types and routes, and the contract itself.

Generated from {path}; do not edit.
"""

from __future__ import annotations

from importlib.resources import files

VERSION = "{version}"


def contract_text() -> str:
    """The OpenAPI document that everything here was generated from, as YAML."""
    return files(__name__).joinpath("openapi.yaml").read_text(encoding="utf-8")
'''


def generate(root: Path) -> dict[str, str | bytes]:
    """Both packages without their routes: relative path -> content."""
    generated: dict[str, str | bytes] = {}
    for path, package in PLANES.items():
        contract = load_contract(root, path)
        folder = f"generated/{package}"
        generated[f"{folder}/__init__.py"] = package_init(contract, path)
        generated[f"{folder}/py.typed"] = ""
        generated[f"{folder}/strict.py"] = STRICT_MODULE
        generated[f"{folder}/types.py"] = types_module(contract, package, path)
        generated[f"{folder}/openapi.yaml"] = (root / path).read_bytes()
    return generated
