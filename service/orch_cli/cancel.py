"""`llama-orch cancel`: end queued or running tasks (ORCH-2003)."""

from __future__ import annotations

from typing import Annotated

import typer

from orch_cli.exit_codes import EPILOG, CliError, ExitCode
from orch_cli.identifiers import uuid_argument
from orch_cli.output import Output
from orch_cli.profiles import JsonOption, ProfileOption, UrlOption, choose
from orchqueue_v1.transport import OrchError


def cancel(
    task_ids: Annotated[list[str], typer.Argument(metavar="TASK_ID...", help="The tasks.")],
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """End queued or running tasks; a finished one stays as it is.

    When the command returns, the end is on disk and no more tokens will come. One that fails does
    not keep the others; the exit status is then the failure's.

    Example: llama-orch cancel 5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11
    """
    output = Output.of_process(as_json=as_json)
    status = ExitCode.OK
    with choose(url, profile).data() as client:
        for task_id in task_ids:
            try:
                client.cancel_task(uuid_argument("TASK_ID", task_id))
            except CliError as error:  # names the id itself
                status = max(status, output.failure(error))
                continue
            except OrchError as error:
                status = max(status, output.failure(error, task_id=task_id))
                if status is ExitCode.UNREACHABLE:
                    break  # the others would wait for the same nobody
                continue
            if as_json:
                output.json({"task_id": task_id, "canceled": True})
            else:
                output.raw(f"canceled {task_id}\n")
    if status is not ExitCode.OK:
        raise typer.Exit(status)


def register(app: typer.Typer) -> None:
    """Add `cancel` to the command line."""
    app.command("cancel", epilog=EPILOG)(cancel)
