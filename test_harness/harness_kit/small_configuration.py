"""A configuration of a few lines, as text, that the tests of its rules vary."""

from __future__ import annotations

import pytest

from orchestratord.configuration import ConfigError, LoadedConfig, parse_config

POOL = """\
pools:
  - id: p0
    engine: llamacpp
    model: builtin:smollm2
    ctx: 2048
    replicas:
      - { id: r0, url: "http://127.0.0.1:9001" }
"""
KEYS = """\
auth:
  keys:
    - { id: dev, tenant: acme, roles: [data, control, metrics], key_env: ACME_KEY }
"""
ENVIRONMENT = {"ACME_KEY": "sesame-open-sesame"}


def accept(text: str, environ: dict[str, str] | None = None) -> LoadedConfig:
    """The configuration that the text is; raises `ConfigError` where it is none."""
    return parse_config(text, "t.yaml", environ=ENVIRONMENT if environ is None else environ)


def reject(text: str, environ: dict[str, str] | None = None) -> list[tuple[str, str, str, int]]:
    """Key, value, rule and line (0 where there is none) of each mistake."""
    with pytest.raises(ConfigError) as caught:
        accept(text, environ)
    return [(p.key, p.value, p.rule, p.line or 0) for p in caught.value.problems]
