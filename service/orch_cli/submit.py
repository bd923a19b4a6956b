"""`llama-orch submit`: hand in a task and, with `--stream`, watch it (OC-CLI-8001, OC-CLI-8002).

The first step of a task's path. Invariant: a repeated submission carries the same task id and
body, so that trying again after a lost answer can never make two tasks (ORCH-3024, ORCH-3025).
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import typer

from orch_cli.exit_codes import EPILOG, CliError, ExitCode
from orch_cli.output import Output, OutputFailed
from orch_cli.profiles import Connection, JsonOption, ProfileOption, UrlOption, choose
from orch_cli.stream import resume_note, still_running
from orch_cli.stream_view import Progress, show_stream
from orch_cli.task_defaults import Target, choose_target
from orch_cli.task_options import checked_task
from orchestrator_core.units import duration
from orchqueue_v1.transport import UNREACHABLE, OrchError
from orchqueue_v1.types import AdmissionResponse, TaskRequest

DEFAULT_MAX_TOKENS = 256
DEFAULT_DEADLINE_MS = 60_000
# Between tries when the service names no time of its own; doubles, up to the bound.
_BACKOFF_MS, _BACKOFF_MAX_MS, _UNREACHABLE_MAX_MS = 500, 30_000, 2_000

Engine = StrEnum("Engine", ["llamacpp", "vllm", "tgi", "triton"])
Workload = StrEnum("Workload", ["completion", "embedding", "rerank"])
Priority = StrEnum("Priority", ["interactive", "batch"])
Determinism = StrEnum("Determinism", ["strict", "best_effort"])
KvHint = StrEnum("KvHint", ["reuse", "cold"])

_TASK, _SAMPLING, _STREAM = "Task", "Sampling", "Stream"


def submit(
    prompt: Annotated[
        str | None, typer.Argument(metavar="[PROMPT]", help="The prompt; `-` reads stdin.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", "-f", metavar="FILE", help="The prompt from a file.")
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Send the prompt as a chat message, in the model's form.")
    ] = False,
    system: Annotated[
        str | None, typer.Option("--system", metavar="TEXT", help="A system message; means --chat.")
    ] = None,
    inputs: Annotated[
        list[str] | None,
        typer.Option("--input", metavar="TEXT", help="A text to embed or rank; may be repeated."),
    ] = None,
    stream: Annotated[
        bool, typer.Option("--stream", "-s", help="Show the tokens as they come.")
    ] = False,
    cancel_on_interrupt: Annotated[
        bool,
        typer.Option("--cancel-on-interrupt", help="Ctrl-C ends the task instead of leaving it."),
    ] = False,
    retry: Annotated[
        int,
        typer.Option(
            "--retry", metavar="N", min=0, help="Try again when refused for now or not reachable."
        ),
    ] = 0,
    workload: Annotated[Workload, typer.Option(rich_help_panel=_TASK)] = Workload.completion,
    engine: Annotated[
        Engine | None, typer.Option(help="Else: what is ready.", rich_help_panel=_TASK)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option(metavar="REF", help="Else: the engine's first.", rich_help_panel=_TASK),
    ] = None,
    ctx: Annotated[
        int | None,
        typer.Option(min=1, help="Tokens of context; else: what it needs.", rich_help_panel=_TASK),
    ] = None,
    max_tokens: Annotated[int, typer.Option(min=1, rich_help_panel=_TASK)] = DEFAULT_MAX_TOKENS,
    priority: Annotated[Priority, typer.Option(rich_help_panel=_TASK)] = Priority.interactive,
    deadline_ms: Annotated[
        int, typer.Option(min=1, help="From now to the last token.", rich_help_panel=_TASK)
    ] = DEFAULT_DEADLINE_MS,
    task_id: Annotated[
        str | None, typer.Option(metavar="UUID", help="Else: a new one.", rich_help_panel=_TASK)
    ] = None,
    session: Annotated[
        str | None, typer.Option(metavar="UUID", help="Else: a new one.", rich_help_panel=_TASK)
    ] = None,
    expected_tokens: Annotated[int | None, typer.Option(min=0, rich_help_panel=_TASK)] = None,
    kv_hint: Annotated[KvHint | None, typer.Option(rich_help_panel=_TASK)] = None,
    determinism: Annotated[
        Determinism, typer.Option(rich_help_panel=_SAMPLING)
    ] = Determinism.strict,
    seed: Annotated[
        int | None,
        typer.Option(min=0, envvar="ORCH_SEED_DEFAULT", rich_help_panel=_SAMPLING),
    ] = None,
    sampler_profile: Annotated[
        str | None, typer.Option(metavar="NAME", rich_help_panel=_SAMPLING)
    ] = None,
    temperature: Annotated[float | None, typer.Option(rich_help_panel=_SAMPLING)] = None,
    top_p: Annotated[float | None, typer.Option(rich_help_panel=_SAMPLING)] = None,
    top_k: Annotated[int | None, typer.Option(rich_help_panel=_SAMPLING)] = None,
    min_p: Annotated[float | None, typer.Option(rich_help_panel=_SAMPLING)] = None,
    repeat_penalty: Annotated[float | None, typer.Option(rich_help_panel=_SAMPLING)] = None,
    stop: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TEXT", help="End before this; repeatable.", rich_help_panel=_SAMPLING
        ),
    ] = None,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Hand in a task. With --stream its tokens are shown as they come.

    Engine, model and context are taken from the service when they are not given. On Ctrl-C the
    task goes on, and what to type to come back is shown.

    Examples:

    \b
        llama-orch submit "The capital of France is" --stream --max-tokens 16
        llama-orch submit --chat "What is a scheduler?" --seed 42 --stream --json
        git diff | llama-orch submit - --system "Summarise this change." --stream --retry 5
    """
    output = Output.of_process(as_json=as_json)
    text = _prompt_text(prompt, file)
    content = _content(workload, text, chat=chat, system=system, inputs=inputs or [])
    sampling = _given(
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repeat_penalty=repeat_penalty,
        stop=stop or None,
    )
    fields: dict[str, Any] = {
        "task_id": task_id or str(uuid.uuid4()),
        "session_id": session or str(uuid.uuid4()),
        "workload": workload.value,
        "priority": priority.value,
        "max_tokens": max_tokens,
        "deadline_ms": deadline_ms,
        "determinism": determinism.value,
        **content,
        **_given(
            seed=seed,
            sampler_profile_version=sampler_profile,
            expected_tokens=expected_tokens,
            kv_hint=kv_hint.value if kv_hint else None,
            sampling=sampling or None,
        ),
    }
    # What is wrong with the options is told before anybody is asked; a stand-in for what only the
    # service knows.
    stand_in = Target(engine or "llamacpp", model or "any", ctx or 1)
    checked_task(fields | _target_fields(stand_in))
    connection = choose(url, profile)
    texts = [part for part in (text, system, *(inputs or [])) if part]
    task: TaskRequest | None = None
    progress = Progress(None)

    def attempt() -> AdmissionResponse:
        nonlocal task, progress
        if task is None:
            with connection.control() as control:
                target = choose_target(
                    control,
                    engine=engine,
                    model=model,
                    ctx=ctx,
                    workload=workload,
                    text_bytes=sum(len(part.encode()) for part in texts),
                    max_tokens=max_tokens,
                )
            task = checked_task(fields | _target_fields(target))
        progress = Progress(None)
        with connection.data() as client:
            return client.submit_task(task)

    promise = submit_with_retries(attempt, retry, output)
    assert task is not None
    progress.promise = promise
    try:
        _announce(output, task, promise, stream)
        if stream:
            raise typer.Exit(
                _watch(output, connection, task.task_id, progress, cancel_on_interrupt)
            )
    except OutputFailed as error:
        raise still_running(error, task.task_id, progress.last_event_id) from None


def _prompt_text(prompt: str | None, file: Path | None) -> str | None:
    if file is not None and prompt is not None:
        raise CliError("a prompt and --file exclude each other")
    source = f"--file: {file}" if file is not None else "stdin"
    try:
        if file is not None:
            return file.read_text("utf-8")
        if prompt == "-":
            # The bytes themselves: what a locale makes of them differs between machines.
            return "" if sys.stdin is None else sys.stdin.buffer.read().decode("utf-8")
        if prompt is not None:
            prompt.encode("utf-8")
        return prompt
    except OSError as error:
        raise CliError(f"{source} cannot be read: {error.strerror}") from None
    except UnicodeError:
        raise CliError("the prompt is not UTF-8 text") from None


def _content(
    workload: Workload, text: str | None, *, chat: bool, system: str | None, inputs: list[str]
) -> dict[str, Any]:
    """Return prompt, messages or inputs, whichever the workload takes. Raises `CliError`."""
    if workload is not Workload.completion:
        if not inputs:
            raise CliError(f"{workload.value} needs at least one --input")
        return {"inputs": inputs, **({"prompt": text} if text else {})}
    if inputs:
        raise CliError("--input belongs to --workload embedding or rerank")
    if not text:
        raise CliError(
            "a prompt is missing", hint="give it as an argument, with --file, or `-` for stdin"
        )
    if not chat and system is None:
        return {"prompt": text}
    messages = [{"role": "system", "content": system}] if system else []
    return {"messages": [*messages, {"role": "user", "content": text}]}


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _target_fields(target: Target) -> dict[str, Any]:
    return {"model_ref": target.model_ref, "engine": str(target.engine), "ctx": target.ctx}


def submit_with_retries(
    attempt: Callable[[], AdmissionResponse],
    retries: int,
    output: Output,
    sleep: Callable[[float], None] = time.sleep,
) -> AdmissionResponse:
    """Hand in a task, up to `retries` more times where the refusal is retriable (ORCH-3025).

    A service that cannot be reached is asked again soon: it may be starting.

    Raises:
        OrchError: refused for good, or the last try was refused too.
    """
    for number in range(retries + 1):
        try:
            return attempt()
        except OrchError as error:
            if not error.retriable or number == retries:
                raise
            is_unreachable = error.code == UNREACHABLE
            bound_ms = _UNREACHABLE_MAX_MS if is_unreachable else _BACKOFF_MAX_MS
            doubled_ms = min(_BACKOFF_MS * 2 ** min(number, 16), bound_ms)
            wait_ms = doubled_ms if error.retry_after_ms is None else error.retry_after_ms
            why = "not reachable" if is_unreachable else error.message
            output.note(
                f"{why}; try {number + 2} of {retries + 1} in {duration(wait_ms)}", "yellow"
            )
            sleep(wait_ms / 1000)
    raise AssertionError("the loop above always returns or raises")


def _announce(
    output: Output, task: TaskRequest, promise: AdmissionResponse, is_streamed: bool
) -> None:
    if output.as_json:
        output.json({"event": "admitted", "data": _admitted(task, promise)})
        return
    line = (
        f"task {task.task_id} · session {task.session_id} · {task.engine} {task.model_ref}"
        f" · queue position {promise.queue_position}"
        f" · start predicted after {duration(promise.predicted_start_ms)}"
    )
    if is_streamed:
        output.note(line)
        return
    # Without a stream the id is the result: alone on stdout, so that a script can take it.
    output.note(line)
    output.note(f"read it: llama-orch stream {task.task_id}")
    output.raw(f"{task.task_id}\n")


def _admitted(task: TaskRequest, promise: AdmissionResponse) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(promise)
    chosen = {"engine": task.engine, "model_ref": task.model_ref, "ctx": task.ctx}
    return fields | {"session_id": task.session_id} | chosen


def _watch(
    output: Output,
    connection: Connection,
    task_id: str,
    progress: Progress,
    cancel_on_interrupt: bool,
) -> ExitCode:
    with connection.data() as client:
        try:
            return show_stream(output, progress, client.stream_task(task_id))
        except KeyboardInterrupt:
            if cancel_on_interrupt:
                client.cancel_task(task_id)
                output.note(f"canceled {task_id}", "yellow")
            else:
                resume_note(output, task_id, progress.last_event_id)
            return ExitCode.INTERRUPTED


def register(app: typer.Typer) -> None:
    """Add `submit` to the command line."""
    app.command("submit", epilog=EPILOG)(submit)
