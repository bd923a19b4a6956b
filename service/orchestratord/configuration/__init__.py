"""The service's configuration: read from YAML, proved, typed.

Nothing starts on a configuration that this package has not accepted; a bad one fails with the key,
the value, the rule and the line of every finding, and never with a secret (ORCH-3030,
OC-CONFIG-6001, OC-CLI-8003). Knows only the generated `orch_config` types and schema.
"""

from __future__ import annotations

from .host_checks import Host
from .load import AnyEnvironment, LoadedConfig, config_schema, load_config, parse_config
from .problems import ConfigError, Problem, ReloadRefused
from .quotas import PriorityQuota, TenantQuota, effective_quotas

__all__ = [
    "AnyEnvironment",
    "ConfigError",
    "Host",
    "LoadedConfig",
    "PriorityQuota",
    "Problem",
    "ReloadRefused",
    "TenantQuota",
    "config_schema",
    "effective_quotas",
    "load_config",
    "parse_config",
]
