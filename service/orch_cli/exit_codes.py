"""Exit statuses of `llama-orch`, one meaning each, and the error that carries one.

Scripts rely on these numbers; they stand in every `--help` and in the README (OC-CLI-8001).
"""

from __future__ import annotations

from enum import IntEnum

from orchestrator_core.units import duration
from orchqueue_v1.transport import BAD_RESPONSE, STREAM_GAP, UNREACHABLE, OrchError


class ExitCode(IntEnum):
    """What a command's exit status says."""

    OK = 0
    TASK_FAILED = 1
    USAGE = 2
    REFUSED_RETRIABLE = 3
    REFUSED = 4
    UNREACHABLE = 5
    INTERRUPTED = 130  # 128 + SIGINT, as shells have it


EPILOG = (
    "Exit status: 0 done, 1 the task or a check failed, 2 wrong usage or configuration, "
    "3 refused but worth another try, 4 refused, 5 service not reachable, 130 interrupted."
)


class CliError(Exception):
    """An expected failure: `message` says what is wrong, `hint` what to do about it."""

    def __init__(
        self, message: str, *, hint: str | None = None, exit_code: ExitCode = ExitCode.USAGE
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.exit_code = exit_code


def exit_code_of(error: OrchError) -> ExitCode:
    """Return the exit status of a call that failed."""
    if error.code == UNREACHABLE:
        return ExitCode.UNREACHABLE
    if error.code in {STREAM_GAP, BAD_RESPONSE} and not error.retriable:
        return ExitCode.TASK_FAILED
    return ExitCode.REFUSED_RETRIABLE if error.retriable else ExitCode.REFUSED


def hint_of(error: OrchError) -> str | None:
    """Return what a person can do about a failed call, or None where the message says it all."""
    if error.code == UNREACHABLE:
        return (
            "is the service running there? `--url`, LLAMA_ORCH_URL or a profile says where it is; "
            "`--retry N` waits for it on submit"
        )
    if error.status == 401:
        return "put the key into LLAMA_ORCH_API_KEY or into a profile"
    if error.status == 403:
        return "the key is unknown here, or lacks the role for this command"
    if error.retriable and error.retry_after_ms is not None:
        return (
            f"try again in {duration(error.retry_after_ms)}; `--retry N` does it for you on submit"
        )
    if error.retriable:
        return "try again; `--retry N` does it for you on submit"
    if error.code == "DEADLINE_UNMET":
        return "give it more time with --deadline-ms, or fewer tokens with --max-tokens"
    if error.code == "POOL_UNAVAILABLE":
        return "`llama-orch capabilities` lists what can be asked for here"
    if error.policy_label == "budget":
        return "the session's budget is spent; begin another session (leave --session out)"
    return None
