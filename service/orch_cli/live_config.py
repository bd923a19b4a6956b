"""`llama-orch config show | reload | revert`: what a running service goes by (ORCH-3031)."""

from __future__ import annotations

import json
from typing import Annotated, Any

import msgspec
import typer
import yaml

from orch_cli.exit_codes import EPILOG
from orch_cli.output import Output
from orch_cli.profiles import JsonOption, ProfileOption, UrlOption, choose
from orchcontrol_v1.types import ConfigChange, ConfigReloadRequest

_EFFECTS = {
    "live": "in force at once",
    "replace": "engines are drained and replaced",
    "add": "a pool comes",
    "remove": "a pool is drained and goes",
    "restart": "NEEDS A RESTART",
}


def show(url: UrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False) -> None:
    """Show the configuration that is in force, with every default, without secrets.

    Example: llama-orch config show > in-force.yaml
    """
    output = Output.of_process(as_json=as_json)
    with choose(url, profile).control() as client:
        state = client.get_config()
    if as_json:
        output.json(state)
        return
    output.note(f"revision {state.revision}")
    output.raw(yaml.safe_dump(msgspec.to_builtins(state.config), sort_keys=False))


def reload(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", "-n", help="Only say what would change.")
    ] = False,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Have the service read its configuration file again: all of it takes hold, or nothing.

    A file with findings, and one that needs a restart, is refused and changes nothing. What changes
    of a pool's engines is drained and replaced behind the answer; `llama-orch pools` shows how far
    that is. SIGHUP does the same.

    Examples:

    \b
        llama-orch config reload --dry-run
        llama-orch config reload
    """
    output = Output.of_process(as_json=as_json)
    with choose(url, profile).control() as client:
        change = client.reload_config(ConfigReloadRequest(dry_run=dry_run))
    _show(output, change)


def revert(
    url: UrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Go back to the configuration before the last reload; the file stays as it is.

    Example: llama-orch config revert
    """
    output = Output.of_process(as_json=as_json)
    with choose(url, profile).control() as client:
        change = client.revert_config()
    _show(output, change)


def _show(output: Output, change: ConfigChange) -> None:
    if output.as_json:
        output.json(change)
        return
    for warning in change.warnings or ():
        output.note(f"warning: {warning}", "yellow")
    if not change.changes:
        output.raw(f"nothing differs; revision {change.revision}\n")
        return
    output.table(
        "Changes",
        ["key", "before", "after", "effect"],
        [
            (
                difference.key,
                _text(difference.before),
                _text(difference.after),
                _EFFECTS[difference.effect],
            )
            for difference in change.changes
        ],
    )
    done = f"applied; revision {change.revision}" if change.applied else "not applied (dry run)"
    output.raw(f"{done}\n")


def _text(value: Any) -> str:
    return "-" if value is msgspec.UNSET else json.dumps(msgspec.to_builtins(value))


def register(group: typer.Typer) -> None:
    """Add the commands to `llama-orch config`."""
    for name, command in (("show", show), ("reload", reload), ("revert", revert)):
        group.command(name, epilog=EPILOG)(command)
