"""Settings that the contract has and this version accepts without doing them, said loudly.

Somebody who configures a protection must not believe in it: each such setting is a warning in
`config validate` and at the start of `serve`. Invariant: a line here goes in the same commit in
which its setting begins to work (ORCH-3030, OC-CLI-8003).
"""

from __future__ import annotations

from typing import Any

from .findings import Findings, section

_TRUST_DEMANDS = ("allowed_registries", "require_signature", "require_sbom", "ca_roots")


def warn_of_not_yet(data: dict[str, Any], findings: Findings) -> None:
    """Warn of everything in `data` that asks for what this version does not do."""
    catalog = section(data, "catalog")
    policy = catalog.get("trust_policy")
    # `permissive` with nothing else asks for nothing: it is what this version does anyway.
    if isinstance(policy, dict) and (
        policy.get("mode", "strict") == "strict" or any(policy.get(name) for name in _TRUST_DEMANDS)
    ):
        rule = "models are not verified yet: every model that a pool names is served"
        findings.warn(("catalog", "trust_policy"), policy, rule)
    url = section(data, "cluster").get("url")
    if url:
        rule = "not connected yet: this process runs embedded and shares nothing with others"
        findings.warn(("cluster", "url"), url, rule)
    plugins = section(data, "policy").get("plugins")
    if plugins:
        rule = "policy plugins are not loaded yet: nothing they would refuse is refused"
        findings.warn(("policy", "plugins"), plugins, rule)
