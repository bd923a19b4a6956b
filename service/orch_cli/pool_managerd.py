"""`llama-orch pool-managerd`: run engines on this host for an orchestrator elsewhere."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Annotated

import typer

from orch_cli.exit_codes import EPILOG, CliError, ExitCode
from orch_cli.profiles import ProfileOption, UrlOption, choose
from orch_cli.serve import configuration_failure

LEASE_MS = 15_000


def run(
    config: Annotated[
        Path,
        typer.Option("--config", envvar="LLAMA_ORCH_CONFIG", metavar="FILE", help="Configuration."),
    ],
    manager_id: Annotated[
        str | None, typer.Option("--id", metavar="NAME", help="Its name; else that of this host.")
    ] = None,
    advertise_host: Annotated[
        str,
        typer.Option(
            "--advertise-host",
            metavar="H",
            help="Address of this host on which engines listen; anybody who reaches it can use "
            "them, so it belongs to a network of your own.",
        ),
    ] = "127.0.0.1",
    lease_ms: Annotated[
        int,
        typer.Option(
            "--lease-ms",
            metavar="MS",
            min=1000,
            max=600_000,
            help="Without a heartbeat for so long the orchestrator drops the engines.",
        ),
    ] = LEASE_MS,
    url: UrlOption = None,
    profile: ProfileOption = None,
) -> None:
    """Run the engines of the pools that have `launch`, and register them with an orchestrator.

    There the pools have `managed: true`, and the key needs the role control. Prints one JSON line
    with "event": "managing" once it is registered; its log goes to stderr. While the orchestrator
    is away the engines run on. SIGTERM drains them within server.shutdown_ms, then exits 0.

    Example: llama-orch pool-managerd --config gpu-host.yaml --url http://10.0.0.1:8080
    """
    # Imported here: the other commands shall not pay for the service's imports.
    from orchestratord.configuration import ConfigError
    from orchestratord.manager_app import CannotManage, run_manager
    from orchestratord.ports.coordinator import LeaseHeld
    from pool_managerd.registration import Refused

    connection = choose(url, profile)
    try:
        run_manager(
            config,
            url=connection.url,
            api_key=connection.api_key,
            manager_id=manager_id or socket.gethostname(),
            advertise_host=advertise_host,
            lease_ms=lease_ms,
        )
    except ConfigError as error:
        problems = [str(problem) for problem in error.problems]
        raise configuration_failure(error.source, problems) from None
    except CannotManage as error:
        raise CliError(f"cannot start: {error}") from None
    except LeaseHeld as error:
        hint = "another pool manager runs on this server.state_dir; give this one its own"
        raise CliError(f"cannot start: {error}", hint=hint) from None
    except Refused as error:
        hint = "the key needs the role control; it stands in LLAMA_ORCH_API_KEY or in a profile"
        message = f"{connection.url} refuses this manager: {error}"
        raise CliError(
            message, hint=hint if error.status in (401, 403) else None, exit_code=ExitCode.USAGE
        ) from None
    except OSError as error:
        what = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror)
        raise CliError(f"cannot start: {what}") from None


def register(app: typer.Typer) -> None:
    """Add `pool-managerd` to the command line."""
    app.command("pool-managerd", epilog=EPILOG)(run)
