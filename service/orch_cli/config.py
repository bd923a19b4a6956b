"""`llama-orch config`: prove a configuration and show what it grants (OC-CLI-8003)."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated, Any

import typer

from orch_cli import live_config
from orch_cli.exit_codes import EPILOG, ExitCode
from orch_cli.output import Output
from orch_cli.profiles import JsonOption
from orch_cli.serve import configuration_failure
from orchestrator_core.units import counted

group = typer.Typer(
    no_args_is_help=True,
    help="Check configurations, and change a running service's.",
    epilog=EPILOG,
    rich_markup_mode=None,
)


@group.command("validate", epilog=EPILOG)
def validate(
    file: Annotated[
        Path,
        typer.Argument(envvar="LLAMA_ORCH_CONFIG", metavar="FILE", help="The configuration."),
    ],
    as_json: JsonOption = False,
    check_environment: Annotated[
        bool,
        typer.Option(
            "--env/--no-env",
            help="Whether this machine will run it: key_env variables, adapters, model files.",
        ),
    ] = True,
) -> None:
    """Check a configuration and show the quotas that will hold.

    Every finding names the key, the value, the rule and the line. Unknown keys are errors, or
    warnings under server.config_mode: compat. The exit status is 0 when the service would start
    with it, else 2.

    Example: llama-orch config validate llama-orch.yaml
    """
    from orchestratord.configuration import (
        AnyEnvironment,
        ConfigError,
        effective_quotas,
        load_config,
    )
    from orchestratord.installation import this_host

    output = Output.of_process(as_json=as_json)
    try:
        if check_environment:
            loaded = load_config(file, environ=os.environ, host=this_host())
        else:
            loaded = load_config(file, environ=AnyEnvironment())
    except ConfigError as error:
        if not as_json:
            raise configuration_failure(error.source, [str(p) for p in error.problems]) from None
        output.json(
            {
                "valid": False,
                "problems": [
                    {"key": p.key, "value": p.value, "rule": p.rule, "line": p.line}
                    for p in error.problems
                ],
            }
        )
        raise typer.Exit(ExitCode.USAGE) from None
    priorities, tenants = effective_quotas(loaded.config)
    if as_json:
        rows = {
            "priorities": [_fields(q) for q in priorities],
            "tenants": [_fields(q) for q in tenants],
        }
        output.json({"valid": True, "warnings": list(loaded.warnings), "quotas": rows})
        return
    output.note(f"{file}: valid, {counted(len(loaded.config.pools), 'pool')}", "bold green")
    for warning in loaded.warnings:
        output.note(f"warning: {warning}", "yellow")
    output.table(
        "Classes",
        ["pool", "class", "weight", "share", "queue", "rate limit"],
        [
            (
                q.pool_id,
                q.priority,
                q.weight,
                f"{q.share_ratio:.0%}",
                q.queue_capacity,
                _rate(q.rate_limit_rps),
            )
            for q in priorities
        ],
    )
    output.table(
        "Tenants",
        ["pool", "tenant", "weight", "share", "running at once", "rate limit", "tokens", "KV"],
        [
            (
                q.pool_id,
                q.tenant,
                q.weight,
                f"{q.share_ratio:.0%}",
                q.max_concurrent or "unlimited",
                _rate(q.rps),
                f"{q.tokens_per_minute}/min" if q.tokens_per_minute else "unlimited",
                f"{q.kv_bytes} bytes" if q.kv_bytes else "unlimited",
            )
            for q in tenants
        ],
    )
    budgets = loaded.config.sessions.budgets
    output.table(
        "Each session",
        ["limit", "value"],
        [
            ("turns", loaded.config.sessions.max_turns),
            ("idle time", f"{loaded.config.sessions.ttl_ms} ms"),
            ("tokens", budgets.tokens or "unlimited"),
            ("decode time", f"{budgets.time_ms} ms" if budgets.time_ms else "unlimited"),
            ("cost", budgets.cost or "unlimited"),
        ],
    )


@group.command("schema", epilog=EPILOG)
def schema() -> None:
    """Print the JSON Schema (2020-12) of the configuration.

    Example: llama-orch config schema > llama-orch.schema.json
    """
    import json

    from orchestratord.configuration import config_schema

    Output.of_process().raw(json.dumps(config_schema(), indent=2, ensure_ascii=False) + "\n")


def _fields(row: Any) -> dict[str, Any]:
    return {name: getattr(row, name) for name in row.__slots__}


def _rate(limit_rps: float | None) -> str:
    return "unlimited" if limit_rps is None else f"{limit_rps:g}/s"


def register(app: typer.Typer) -> None:
    """Add `config` to the command line."""
    live_config.register(group)
    app.add_typer(group, name="config")
