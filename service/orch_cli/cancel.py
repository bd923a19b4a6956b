"""`llama-orch cancel`: end queued or running tasks (ORCH-2003)."""

from __future__ import annotations

from typing import Annotated

import typer

from orch_cli.exit_codes import EPILOG
from orch_cli.output import Output
from orch_cli.profiles import JsonOption, ProfileOption, UrlOption, choose


def cancel(
    task_ids: Annotated[list[str], typer.Argument(metavar="TASK_ID...", help="The tasks.")],
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """End queued or running tasks; a finished one stays as it is.

    When the command returns, the end is on disk and no more tokens will come.

    Example: llama-orch cancel 5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11
    """
    output = Output.of_process(as_json=as_json)
    with choose(url, profile).data() as client:
        for task_id in task_ids:
            client.cancel_task(task_id)
            if as_json:
                output.json({"task_id": task_id, "canceled": True})
            else:
                output.raw(f"canceled {task_id}\n")


def register(app: typer.Typer) -> None:
    """Add `cancel` to the command line."""
    app.command("cancel", epilog=EPILOG)(cancel)
