"""Engine failures in one vocabulary: HTTP statuses and socket errors become `EngineError`.

Every adapter's error path goes through here, so that the same failure carries the same
`EngineFault` whichever engine it came from; dispatch maps a fault to a public code once.
Invariant: a message is one line of printable text and at most `MESSAGE_MAX_CHARS` long, because
it may be shown to a client. Requirements: ORCH-3058, ORCH-3054.
"""

from __future__ import annotations

import os

from worker_adapters.adapter_api.types import EngineError, EngineFault

MESSAGE_MAX_CHARS = 300  # enough for an engine's sentence; an error body may be megabytes


def one_line(text: str) -> str:
    """`text` as one printable line of at most `MESSAGE_MAX_CHARS` characters."""
    kept = "".join(char if char.isprintable() else " " for char in text[: 2 * MESSAGE_MAX_CHARS])
    return " ".join(kept.split())[:MESSAGE_MAX_CHARS]


def fault_of_status(status: int) -> EngineFault:
    """The fault of an HTTP status other than 2xx."""
    if status in (429, 503):
        return EngineFault.UNAVAILABLE
    if status in (404, 405, 501):
        # An engine that lacks a route does not offer the workload behind it.
        return EngineFault.UNSUPPORTED
    if 400 <= status < 500:
        return EngineFault.INVALID
    return EngineFault.INTERNAL


def reset(cause: BaseException | str | None) -> EngineError:
    """The connection to the engine could not be opened, or broke.

    Of a socket error only the error number's text is kept: its own text names the engine's
    address, which is no client's business.
    """
    if isinstance(cause, OSError) and cause.errno is not None:
        text = os.strerror(cause.errno)
    elif isinstance(cause, str):
        text = cause
    else:
        text = "it was closed"
    return EngineError(EngineFault.RESET, one_line(f"connection to the engine: {text}"))


def malformed(what: str) -> EngineError:
    """The engine broke its own protocol; `what` says where."""
    return EngineError(EngineFault.MALFORMED, one_line(f"the engine sent {what}"))
