"""`llama-orch self-test`: prove that a running service works, from the outside (ORCH-3049).

Capabilities, a minimal decode, the same bytes again, a cancel and the metrics, in this order; one
that fails does not hide the others.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass

import typer

from orch_cli.exit_codes import EPILOG, CliError, ExitCode
from orch_cli.output import Output
from orch_cli.profiles import Connection, JsonOption, ProfileOption, UrlOption, choose
from orch_cli.task_defaults import Target, choose_target
from orchestrator_core.units import duration
from orchqueue_v1.sse import EndEvent, ErrorEvent, TokenEvent
from orchqueue_v1.transport import DEFAULT_TIMEOUT_S, Endpoint, OrchError, Request, SyncTransport
from orchqueue_v1.types import TaskRequest

_DECODE_TOKENS = 8
_CANCEL_TOKENS = 512
_DEADLINE_MS = 60_000
_SEED = 7


@dataclass(frozen=True, slots=True)
class Finding:
    """How one check went."""

    check: str
    passed: bool
    detail: str
    took_ms: int


class _Failed(Exception):
    """A check's expectation that did not hold."""


def self_test(
    url: UrlOption = None, profile: ProfileOption = None, as_json: JsonOption = False
) -> None:
    """Check a running service: capabilities, decode, determinism, cancel, metrics.

    The exit status is 0 when all checks pass, else 1. The key needs the roles data and metrics.

    Example: llama-orch self-test --profile prod
    """
    output = Output.of_process(as_json=as_json)
    connection = choose(url, profile)
    findings = list(run_checks(connection))
    if as_json:
        for finding in findings:
            output.json({name: getattr(finding, name) for name in finding.__slots__})
    else:
        output.table(
            f"Self-test of {connection.url}",
            ["check", "result", "detail", "took"],
            [
                (f.check, "ok" if f.passed else "FAILED", f.detail, duration(f.took_ms))
                for f in findings
            ],
        )
    if not all(finding.passed for finding in findings):
        raise typer.Exit(ExitCode.TASK_FAILED)


def run_checks(connection: Connection) -> list[Finding]:
    """Run every check against a service and return how each went, in order.

    Raises:
        OrchError: UNREACHABLE before anything could be checked.
    """
    findings: list[Finding] = []
    target: Target | None = None

    def check(name: str, work: Callable[[], str]) -> None:
        begun_s = time.monotonic()
        try:
            passed, detail = True, work()
        except (_Failed, OrchError, CliError) as error:
            passed, detail = False, str(error)
        findings.append(Finding(name, passed, detail, round((time.monotonic() - begun_s) * 1000)))

    def capabilities() -> str:
        nonlocal target
        with connection.control() as client:
            target = choose_target(
                client,
                engine=None,
                model=None,
                ctx=None,
                workload="completion",
                text_bytes=0,
                max_tokens=_DECODE_TOKENS,
            )
        return f"{target.engine} {target.model_ref}, ctx {target.ctx}"

    def decode() -> str:
        text = _decoded_text(connection, _task(target, _DECODE_TOKENS))
        return f"{len(text)} characters"

    def determinism() -> str:
        first, second = (_decoded_text(connection, _task(target, _DECODE_TOKENS)) for _ in range(2))
        if first != second:
            raise _Failed("the same prompt and seed gave other bytes")
        return "two runs, the same bytes"

    check("capabilities", capabilities)
    check("decode", decode)
    check("determinism", determinism)
    check("cancel", lambda: _canceled(connection, _task(target, _CANCEL_TOKENS)))
    check("metrics", lambda: _metrics(connection))
    return findings


def _task(target: Target | None, max_tokens: int) -> TaskRequest:
    if target is None:
        raise _Failed("no engine to ask")
    return TaskRequest(
        task_id=str(uuid.uuid4()),
        session_id=str(uuid.uuid4()),
        workload="completion",
        model_ref=target.model_ref,
        engine=target.engine,  # type: ignore[arg-type]  # the service's own word
        ctx=target.ctx,
        priority="interactive",
        max_tokens=max_tokens,
        deadline_ms=_DEADLINE_MS,
        seed=_SEED,
        prompt="Count: one, two, three,",
    )


def _decoded_text(connection: Connection, task: TaskRequest) -> str:
    parts: list[str] = []
    with connection.data() as client:
        client.submit_task(task)
        for event in client.stream_task(task.task_id):
            match event:
                case TokenEvent():
                    parts.append(event.data.t)
                case ErrorEvent():
                    raise _Failed(f"{event.data.code}: {event.data.message}")
                case _:
                    pass
    if not parts:
        raise _Failed("no token came")
    return "".join(parts)


def _canceled(connection: Connection, task: TaskRequest) -> str:
    with connection.data() as client:
        client.submit_task(task)
        asked = False
        for event in client.stream_task(task.task_id):
            match event:
                case TokenEvent() if not asked:
                    client.cancel_task(task.task_id)
                    asked = True
                case ErrorEvent():
                    raise _Failed(f"{event.data.code}: {event.data.message}")
                case EndEvent():
                    if event.data.canceled is not True:
                        raise _Failed("the stream ended, but not by the cancel")
                    return f"ended after {event.data.tokens_out} tokens"
                case _:
                    pass
    raise _Failed("the stream had no end")


def _metrics(connection: Connection) -> str:
    endpoint = Endpoint(connection.url, connection.api_key)
    response = SyncTransport(endpoint, DEFAULT_TIMEOUT_S, None).send(Request("GET", "/metrics"))
    samples = [line for line in response.body.splitlines() if line and not line.startswith(b"#")]
    if not samples:
        raise _Failed("/metrics is empty")
    return f"{len(samples)} samples"


def register(app: typer.Typer) -> None:
    """Add `self-test` to the command line."""
    app.command("self-test", epilog=EPILOG)(self_test)
