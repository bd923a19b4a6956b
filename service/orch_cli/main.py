"""`llama-orch`: one command per noun; expected failures become a message, a hint and an exit
status.

Modules are imported by name and register themselves, so that `--help` and completions start fast:
nothing here imports the service. Invariant: an expected failure never shows a traceback.
(OC-CLI-8001)
"""

from __future__ import annotations

import contextlib
import io
import os
import sys
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from orch_cli import (
    cancel,
    capabilities,
    config,
    determinism,
    devices,
    explain,
    keys,
    models,
    pool_managerd,
    pool_orders,
    pools,
    profiles,
    proof,
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

Begin with:

\b
    llama-orch serve --config FILE
    llama-orch submit "The capital of France is" --stream
"""


class Commands(TyperGroup):
    """The root group: where a command's expected failure becomes an exit status."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises `typer.Exit` for every expected failure."""
        try:
            return super().invoke(ctx)
        except UnicodeEncodeError:
            # Stdout takes every character (see `main`), so it was a word of the command line.
            error = CliError("an argument is not UTF-8 text")
            raise typer.Exit(self._failed(ctx, error)) from None
        except (CliError, OrchError) as error:
            raise typer.Exit(self._failed(ctx, error)) from None
        except KeyboardInterrupt:
            raise typer.Exit(ExitCode.INTERRUPTED) from None

    @staticmethod
    def _failed(ctx: Any, error: CliError | OrchError) -> ExitCode:
        # The command has parsed its own --json; a failure has to look the same way.
        as_json = "--json" in ctx.meta.get(_ARGUMENTS, ())
        return Output.of_process(as_json=as_json).failure(error)

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
    pool_managerd,
    submit,
    stream,
    cancel,
    explain,
    session,
    pools,
    pool_orders,
    replicasets,
    devices,
    capabilities,
    config,
    determinism,
    keys,
    models,
    profiles,
    proof,
    self_test,
    simulate,
):
    _module.register(app)


def main() -> None:
    """Run the command line of this process."""
    _take_every_character()
    try:
        app()
    except OSError as error:
        # What no command expected: typer's own output to a full disk, for one.
        name = f"{error.filename}: " if error.filename else ""
        _say(f"error: {name}{error.strerror or error}")
        sys.exit(ExitCode.TASK_FAILED)
    finally:
        _settle_stdout()


def _take_every_character() -> None:
    """A model writes more than an old locale has; in a pipe the bytes are UTF-8 whatever it is."""
    if sys.stdout is None:  # closed by the caller, with `>&-`
        sys.stdout = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 - until the end
    for file in (sys.stdout, sys.stderr):
        if isinstance(file, io.TextIOWrapper):
            encoding = file.encoding if file.isatty() else "utf-8"
            file.reconfigure(encoding=encoding, errors="backslashreplace")


def _say(line: str) -> None:
    with contextlib.suppress(OSError):
        print(line, file=sys.stderr)


def _settle_stdout() -> None:
    """Drop what stdout did not take: Python would try again at its end and show a traceback."""
    try:
        sys.stdout.flush()
    except OSError:
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


if __name__ == "__main__":
    main()
