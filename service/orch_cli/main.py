"""`llama-orch`: one command per noun; expected failures become a message, a hint and an exit
status.

Modules are imported by name and register themselves, so that `--help` and completions start fast:
nothing here imports the service. Invariant: an expected failure never shows a traceback.
(OC-CLI-8001)
"""

from __future__ import annotations

from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orch_cli import (
    cancel,
    capabilities,
    config,
    keys,
    pools,
    profiles,
    replicasets,
    self_test,
    serve,
    session,
    simulate,
    stream,
    submit,
)
from orch_cli.exit_codes import EPILOG, CliError, ExitCode
from orch_cli.output import Output
from orchqueue_v1 import VERSION as API_VERSION
from orchqueue_v1.transport import OrchError

_HELP = """Hand tasks to a fleet of LLM engines, read their tokens as streams, look after the fleet.

Begin with: llama-orch serve --config FILE, then: llama-orch submit "The capital of France is"
--stream
"""


class Commands(TyperGroup):
    """The root group: where a command's expected failure becomes an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises `typer.Exit` for every expected failure."""
        try:
            return super().invoke(ctx)
        except (CliError, OrchError) as error:
            # The command has parsed its own --json; a failure has to look the same way.
            as_json = "--json" in ctx.meta.get(_ARGUMENTS, ())
            raise typer.Exit(Output.of_process(as_json=as_json).failure(error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remember the words of the command line, then parse them."""
        ctx.meta[_ARGUMENTS] = tuple(args)
        return super().parse_args(ctx, args)


_ARGUMENTS = "orch_cli.arguments"


def _show_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"llama-orch {version('llama-orch')} (API {API_VERSION})")
        raise typer.Exit


app = typer.Typer(
    name="llama-orch",
    cls=Commands,
    help=_HELP,
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", is_eager=True, callback=_show_version, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    """Take the options that stand before a command."""


for _module in (
    serve,
    submit,
    stream,
    cancel,
    session,
    pools,
    replicasets,
    capabilities,
    config,
    keys,
    profiles,
    self_test,
    simulate,
):
    _module.register(app)


def main() -> None:
    """Run the command line of this process."""
    app()


if __name__ == "__main__":
    main()
