"""OrchQueue v1: its types and routes, and the contract itself.

Generated from contracts/openapi/data.yaml; do not edit.
"""

from __future__ import annotations

from importlib.resources import files

VERSION = "1.0.0"


def contract_text() -> str:
    """The OpenAPI document that everything here was generated from, as YAML."""
    return files(__name__).joinpath("openapi.yaml").read_text(encoding="utf-8")
