"""`llama-orch determinism verify`: decode a strict stream once more and compare it byte by byte.

The proof does not take the service's word for anything but the record: the stream is read again
and hashed here, the same request is sent under other ids, and its text is compared here.
Requirement: ORCH-3206.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum
from typing import Annotated

import msgspec
import typer

from orch_cli.exit_codes import EPILOG, CliError, ExitCode
from orch_cli.identifiers import uuid_argument
from orch_cli.output import Output
from orch_cli.profiles import JsonOption, ProfileOption, UrlOption, choose
from orch_cli.submit import submit_with_retries
from orchqueue_v1.client import OrchQueueClient
from orchqueue_v1.sse import EndEvent, ErrorEvent, StreamEvent, TokenEvent
from orchqueue_v1.types import DeterminismReport

# What is shown of two texts on either side of the first byte in which they differ.
CONTEXT_CHARACTERS = 40
# How long the replay may take altogether; the original's deadline may have been much shorter.
REPLAY_DEADLINE_MS = 3_600_000

group = typer.Typer(
    no_args_is_help=True, help="Prove streams.", epilog=EPILOG, rich_markup_mode=None
)


class Verdict(StrEnum):
    """What a comparison came to."""

    PROVED = "proved"
    DIVERGED = "diverged"  # the same input gave other bytes
    NOT_THE_STREAM = "not-the-stream"  # the record is not that of the stream
    NOT_COMPARABLE = "not-comparable"  # another engine version or model: nothing is promised


@dataclass(frozen=True, slots=True)
class Decoded:
    """One stream, whole: its tokens in order, and its own record."""

    tokens: list[str]
    report: DeterminismReport

    @property
    def text(self) -> str:
        return "".join(self.tokens)

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.text.encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class Comparison:
    """`differs_at` is the first token that differs, None where none does."""

    verdict: Verdict
    message: str
    differs_at: int | None = None
    expected: str = ""
    got: str = ""


def compare(original: Decoded, replay: Decoded) -> Comparison:
    """What the replay says of the original."""
    record, other = original.report, replay.report
    if original.sha256 != record.sha256:
        return Comparison(
            Verdict.NOT_THE_STREAM,
            f"the stream's text has sha256 {original.sha256}, its record says {record.sha256}",
        )
    if record.key != other.key:
        changed = [
            f"{name} {getattr(record, name)} -> {getattr(other, name)}"
            for name in ("engine_version", "model_digest", "sampler_profile_version", "seed")
            if getattr(record, name) != getattr(other, name)
        ]
        return Comparison(
            Verdict.NOT_COMPARABLE,
            "what decodes it now is not what decoded it then: " + ("; ".join(changed) or "its key"),
        )
    if original.text == replay.text:
        return Comparison(
            Verdict.PROVED,
            f"{len(original.tokens)} tokens, {len(original.text.encode())} bytes, equal; "
            f"sha256 {record.sha256}",
        )
    at = next(
        (
            place
            for place, (old, new) in enumerate(zip(original.tokens, replay.tokens, strict=False))
            if old != new
        ),
        min(len(original.tokens), len(replay.tokens)),
    )
    return Comparison(
        Verdict.DIVERGED,
        f"the same key gave other bytes from token {at} on",
        at,
        "".join(original.tokens[at:])[:CONTEXT_CHARACTERS],
        "".join(replay.tokens[at:])[:CONTEXT_CHARACTERS],
    )


@group.command("verify", epilog=EPILOG)
def verify(
    task_id: Annotated[str, typer.Argument(metavar="TASK_ID", help="A strict task that ended.")],
    retry: Annotated[
        int, typer.Option("--retry", metavar="N", min=0, help="Try again when refused for now.")
    ] = 5,
    url: UrlOption = None,
    profile: ProfileOption = None,
    as_json: JsonOption = False,
) -> None:
    """Decode a strict task once more and compare the two streams byte by byte.

    Proved (exit 0) means: the stream is the one that its record is of, and the same prompt,
    parameters, seed, sampler profile, engine version and model give the same bytes now. Diverged
    or another text than the record's is exit 1; another version of engine or model cannot be
    compared, exit 4. It costs one task of the same size.

    Examples:

    \b
        llama-orch determinism verify 5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11
        llama-orch determinism verify 5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11 --json
    """
    output = Output.of_process(as_json=as_json)
    uuid_argument("TASK_ID", task_id)
    with choose(url, profile).data() as client:
        report = client.get_determinism(task_id)
        original = Decoded(_tokens(client.stream_task(task_id), task_id), report)
        request = msgspec.structs.replace(
            report.request,
            task_id=str(uuid.uuid4()),
            session_id=str(uuid.uuid4()),
            deadline_ms=max(report.request.deadline_ms, REPLAY_DEADLINE_MS),
        )
        output.note(f"decoding {report.tokens_out} tokens again as task {request.task_id}")
        submit_with_retries(lambda: client.submit_task(request), retry, output)
        replay = _replayed(client, request.task_id)
    _show(output, task_id, request.task_id, compare(original, replay))


def _replayed(client: OrchQueueClient, task_id: str) -> Decoded:
    try:
        tokens = _tokens(client.stream_task(task_id), task_id)
    except KeyboardInterrupt:
        client.cancel_task(task_id)  # nobody would read it
        raise
    return Decoded(tokens, client.get_determinism(task_id))


def _tokens(events: Iterable[StreamEvent], task_id: str) -> list[str]:
    """The tokens of a stream that ends well. Raises `CliError` for one that does not."""
    tokens: list[str] = []
    for event in events:
        match event:
            case TokenEvent():
                tokens.append(event.data.t)
            case EndEvent() if event.data.canceled is True:
                message = f"task {task_id} was cancelled"
                raise CliError(message, exit_code=ExitCode.TASK_FAILED)
            case ErrorEvent():
                message = f"task {task_id} ended with {event.data.code}: {event.data.message}"
                raise CliError(message, exit_code=ExitCode.TASK_FAILED)
            case _:
                pass
    return tokens


def _show(output: Output, task_id: str, replay_id: str, found: Comparison) -> None:
    if output.as_json:
        document: dict[str, object] = {
            "task_id": task_id,
            "replay_task_id": replay_id,
            "verdict": found.verdict.value,
            "message": found.message,
        }
        if found.differs_at is not None:
            document |= {
                "differs_at": found.differs_at,
                "expected": found.expected,
                "got": found.got,
            }
        output.json(document)
    else:
        output.raw(f"{found.verdict.value}: {found.message}\n")
        if found.differs_at is not None:
            output.raw(f"  then: {found.expected!r}\n  now:  {found.got!r}\n")
    if found.verdict is Verdict.NOT_COMPARABLE:
        raise typer.Exit(ExitCode.REFUSED)
    if found.verdict is not Verdict.PROVED:
        raise typer.Exit(ExitCode.TASK_FAILED)


def register(app: typer.Typer) -> None:
    """Add `determinism` to the command line."""
    app.add_typer(group, name="determinism")
