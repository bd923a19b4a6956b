"""`llama-orch serve`: run the service in the foreground until SIGTERM."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from orch_cli.exit_codes import EPILOG, CliError, ExitCode
from orchestrator_core.units import counted


def run(
    config: Annotated[
        Path,
        typer.Option("--config", envvar="LLAMA_ORCH_CONFIG", metavar="FILE", help="Configuration."),
    ],
    host: Annotated[
        str | None, typer.Option("--host", metavar="H", help="Instead of server.host.")
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            "--port", metavar="P", min=0, max=65535, help="Instead of server.port; 0 is a free one."
        ),
    ] = None,
) -> None:
    """Run the service until SIGTERM or Ctrl-C.

    Prints one JSON line with "event": "listening", the host and the port on stdout once it accepts
    requests; its log goes to stderr. SIGTERM lets running work finish within server.shutdown_ms,
    then exits 0.

    Example: llama-orch serve --config llama-orch.yaml --port 0
    """
    # Imported here: the other commands shall not pay for the service's imports.
    from orchestratord import app as service
    from orchestratord.configuration import ConfigError
    from orchestratord.ports.coordinator import LeaseHeld
    from orchestratord.ports.journal import JournalError

    try:
        status = service.serve(config, host, port)
    except ConfigError as error:
        raise configuration_failure(
            error.source, [str(problem) for problem in error.problems]
        ) from None
    except LeaseHeld as error:
        hint = "another service runs on this server.state_dir; stop it, or give this one its own"
        raise CliError(f"cannot start: {error}", hint=hint) from None
    except JournalError as error:
        raise CliError(f"cannot start: {error}", exit_code=ExitCode.TASK_FAILED) from None
    except service.CannotListen as error:
        given = {"server.host": host, "server.port": port}.get(error.key)
        key = error.key if given is None else error.key.replace("server.", "--")
        hint = (
            "an address of this machine, such as 127.0.0.1; 0.0.0.0 is all of them"
            if error.key == "server.host"
            else "something else listens there, or it takes more rights; `--port 0` is a free one"
        )
        message = f"cannot listen: {key} = {error.value}: {error.cause}"
        raise CliError(message, hint=hint) from None
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        raise CliError(f"cannot start: {what}") from None
    raise typer.Exit(status)


def configuration_failure(source: str, problems: list[str]) -> CliError:
    """Return the error that lists what is wrong with a configuration, one finding a line."""
    lines = "".join(f"\n  {problem}" for problem in problems)
    return CliError(
        f"{source}: {counted(len(problems), 'problem')}{lines}",
        hint="`llama-orch config schema` shows every key with its rule and default",
        exit_code=ExitCode.USAGE,
    )


def register(app: typer.Typer) -> None:
    """Add `serve` to the command line."""
    app.command("serve", epilog=EPILOG)(run)
