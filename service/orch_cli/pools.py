"""`llama-orch pools`: how pools are (ORCH-2103).

`pools` by itself, or with names, is `pools show`; `pools plan` needs no service.
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from msgspec import UNSET
from typer.core import TyperGroup

from orch_cli.exit_codes import EPILOG, ExitCode
from orch_cli.output import Output
from orch_cli.pool_plan import plan
from orch_cli.profiles import JsonOption, ProfileOption, UrlOption, choose
from orchcontrol_v1.types import PoolHealth
from orchqueue_v1.transport import OrchError

PoolId = Annotated[str, typer.Argument(metavar="POOL", help="The pool.")]


class ShownByDefault(TyperGroup):
    """Commands of which `show` may be left out: `pools`, `pools POOL`, `pools --json`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Put `show` where no command is named."""
        if not args or args[0] not in {*self.commands, "-h", "--help"}:
            args = ["show", *args]
        return super().parse_args(ctx, args)


group = typer.Typer(
    cls=ShownByDefault,
    help="Show how pools are, or `plan` what would run.\n\nExample: llama-orch pools llama3-8b",
    epilog=EPILOG,
    rich_markup_mode=None,
    subcommand_metavar="[show] [POOL]... | plan",
)
group.command("plan", epilog=EPILOG)(plan)


@group.command("show", epilog=EPILOG)
def show(
    pool_ids: Annotated[
        list[str] | None, typer.Argument(metavar="[POOL]...", help="Only these pools.")
    ] = None,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show how pools are: all that have a replica, or the named ones.

    One that fails does not keep the others; the exit status is then the failure's.

    Examples:

    \b
        llama-orch pools
        llama-orch pools llama3-8b-gpu0 --json
    """
    output = Output.of_process(as_json=as_json)
    with choose(url, profile).control() as client:
        if not pool_ids:
            replicas = [r for item in client.list_replicasets() for r in item.replicas or []]
            pool_ids = sorted({replica.pool_id for replica in replicas})
        found: dict[str, PoolHealth] = {}
        status = ExitCode.OK
        for pool_id in pool_ids:
            try:
                found[pool_id] = client.pool_health(pool_id)
            except OrchError as error:
                status = max(status, output.failure(error, pool_id=pool_id))
                if status is ExitCode.UNREACHABLE:
                    break  # the others would wait for the same nobody
    if found or status is ExitCode.OK:
        show_health(output, found)
    if status is not ExitCode.OK:
        raise typer.Exit(status)


def show_health(output: Output, found: dict[str, PoolHealth]) -> None:
    """Show pools by their ids: a table, or a JSON line for each."""
    if output.as_json:
        for pool_id, health in found.items():
            output.json({"pool_id": pool_id, "health": health})
        return
    rows = []
    for pool_id, health in found.items():
        error = "" if health.last_error is UNSET else health.last_error.message
        figures = {} if health.metrics is UNSET else health.metrics
        shown = " ".join(f"{name}={value:g}" for name, value in sorted(figures.items()))
        state = "unknown" if health.state is UNSET else health.state
        rows.append((pool_id, state, _yes(health.live), _yes(health.draining), shown, error))
    output.table("Pools", ["pool", "state", "live", "draining", "figures", "last error"], rows)


def _yes(value: object) -> str:
    return "yes" if value is True else "no" if value is False else "unknown"


def register(app: typer.Typer) -> None:
    """Add `pools` to the command line."""
    app.add_typer(group, name="pools")
