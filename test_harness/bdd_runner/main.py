"""The command line of `bdd-runner`.

Exit status: 0 every scenario that was played passed, 1 one failed, 2 nothing could be played (wrong
usage, no service, no key, no scenario). Invariant: the key comes from the environment and is never
shown.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from bdd.live_service import Address, LiveServiceError, find_service
from bdd.selection import VARIABLE, chosen_features
from bdd_runner.player import CannotPlay, play
from bdd_runner.report import Outcome, as_json, count, lines_of

HELP = """Play the features against a running service and say which promises it keeps.

Only what every service offers is asked for: tasks of a few tokens, their streams, sessions, health
and metrics. Scenarios that configure, kill or restart the service carry the tag @own-service; they
are counted, not played (`make bdd` plays them against a service of their own).

Examples:

\b
    bdd-runner --url http://127.0.0.1:8080 --api-key-env LLAMA_ORCH_API_KEY
    bdd-runner --features sse --json > report.json
    bdd-runner --tags ORCH-3045 --tags ORCH-3206
    bdd-runner --features my/journeys.feature --model builtin:smollm2

Exit status: 0 all that was played passed, 1 a scenario failed, 2 nothing could be played.
"""

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)


@app.command(help=HELP)
def run(
    url: Annotated[
        str, typer.Option(envvar="LLAMA_ORCH_URL", help="Where the service listens.")
    ] = "http://127.0.0.1:8080",
    api_key_env: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="The variable that holds a key with roles data, metrics."
        ),
    ] = "LLAMA_ORCH_API_KEY",
    features: Annotated[
        str,
        typer.Option(
            envvar=VARIABLE,
            metavar="PATH",
            help="A feature file or a folder of them, seen from here or from the features.",
        ),
    ] = "",
    tags: Annotated[
        list[str] | None,
        typer.Option(metavar="ID", help="Only scenarios with this tag; may be given again."),
    ] = None,
    engine: Annotated[str | None, typer.Option(help="Ask this engine.")] = None,
    model: Annotated[
        str | None, typer.Option(metavar="REF", help="Ask for this model; else the first one.")
    ] = None,
    as_document: Annotated[
        bool, typer.Option("--json", help="Print the report as one JSON document.")
    ] = False,
) -> None:
    """See `HELP`."""
    key = os.environ.get(api_key_env)
    try:
        chosen = chosen_features(features, Path.cwd())
        service = find_service(Address.of(url), key, engine, model)
        wanted = frozenset(tag.removeprefix("@") for tag in tags or ())
        played = play(service, chosen, wanted)
    except (LiveServiceError, FileNotFoundError, CannotPlay) as error:
        hint = "" if key else f" ({api_key_env} is not set)"
        typer.echo(f"bdd-runner: {error}{hint}", err=True)
        raise typer.Exit(2) from None
    shown = f"{service.model.engine} {service.model.ref}"
    if as_document:
        typer.echo(as_json(url, shown, played))
    else:
        typer.echo(f"{url}: {shown}")
        for line in lines_of(played):
            typer.echo(line)
    if count(played, Outcome.FAILED):
        raise typer.Exit(1)


def main() -> None:
    """Run the command."""
    app()
