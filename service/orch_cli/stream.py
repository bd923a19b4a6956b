"""`llama-orch stream`: read a task's stream, from the start or from where one left (ORCH-3202)."""

from __future__ import annotations

from typing import Annotated

import typer

from orch_cli.exit_codes import EPILOG, CliError, ExitCode
from orch_cli.identifiers import uuid_argument
from orch_cli.output import Output, OutputFailed
from orch_cli.profiles import JsonOption, ProfileOption, UrlOption, choose
from orch_cli.stream_view import Progress, show_stream


def stream(
    task_id: Annotated[str, typer.Argument(metavar="TASK_ID", help="The task.")],
    from_: Annotated[
        int | None,
        typer.Option(
            "--from",
            metavar="N",
            min=0,
            help="Go on after event N (its id; sent as Last-Event-ID). Without it: from the start.",
        ),
    ] = None,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Read a task's stream, late, again, or from where you left.

    A broken connection is opened again by itself, without a gap and without an event twice.

    Examples:

    \b
        llama-orch stream 5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11
        llama-orch stream 5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11 --from 17 --json
    """
    output = Output.of_process(as_json=as_json)
    uuid_argument("TASK_ID", task_id)
    progress = Progress(None)
    with choose(url, profile).data() as client:
        try:
            status = show_stream(output, progress, client.stream_task(task_id, from_))
        except KeyboardInterrupt:
            resume_note(output, task_id, progress.last_event_id or from_)
            raise typer.Exit(ExitCode.INTERRUPTED) from None
        except OutputFailed as error:
            raise still_running(error, task_id, progress.last_event_id or from_) from None
    raise typer.Exit(status)


def resume_note(output: Output, task_id: str, last_event_id: int | None) -> None:
    """Say how to come back to a stream that was left."""
    back = _command(task_id, last_event_id)
    output.note(f"left; the task goes on. Come back: {back}", "yellow")
    output.note(f"end it: llama-orch cancel {task_id}", "yellow")


def still_running(error: OutputFailed, task_id: str, last_event_id: int | None) -> CliError:
    """Return the failure of stdout with what to type to read what it did not take."""
    back = _command(task_id, last_event_id)
    hint = f"the task was admitted and goes on. Come back: {back}"
    return CliError(error.message, hint=hint, exit_code=error.exit_code)


def _command(task_id: str, last_event_id: int | None) -> str:
    place = f" --from {last_event_id}" if last_event_id is not None else ""
    return f"llama-orch stream {task_id}{place}"


def register(app: typer.Typer) -> None:
    """Add `stream` to the command line."""
    app.command("stream", epilog=EPILOG)(stream)
