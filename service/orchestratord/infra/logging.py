"""JSON log lines on standard error: structlog in front, msgspec behind, written in batches.

Fields of a task's line are named by ORCH-3027; secrets are replaced before a line is rendered
(OC-CTRL-2041). A line waits in memory for at most `FLUSH_BYTES` or until the next `flush`, which
the service calls several times a second and at every exit.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Iterable, MutableMapping
from typing import Any, BinaryIO

import msgspec
import structlog

FLUSH_BYTES = 64 * 1024
REDACTED = "[redacted]"
# Names under which a key or token may be logged by mistake.
_SECRET_FIELDS = frozenset(
    {"api_key", "authorization", "key", "password", "secret", "token", "x-api-key"}
)
# Shorter secrets would redact ordinary words.
MIN_SECRET_CHARS = 6

_encoder = msgspec.json.Encoder(enc_hook=str)


class LineBuffer:
    """Collects lines and writes them in one go."""

    def __init__(self, stream: BinaryIO) -> None:
        self._stream = stream
        self._lines: list[bytes] = []
        self._size = 0

    def write(self, line: bytes) -> None:
        self._lines.append(line)
        self._size += len(line)
        if self._size >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._lines:
            return
        data = b"\n".join(self._lines) + b"\n"
        self._lines.clear()
        self._size = 0
        try:
            self._stream.write(data)
            self._stream.flush()
        except OSError:
            # A log nobody can read any more must not end the service.
            return


class _BufferLogger:
    """The end of the structlog chain: every level writes a rendered line."""

    def __init__(self, buffer: LineBuffer) -> None:
        self._buffer = buffer

    def msg(self, line: bytes) -> None:
        self._buffer.write(line)

    debug = info = warning = error = critical = exception = msg


class LineRenderer:
    """The last step of the chain: time, JSON, and every known secret replaced."""

    def __init__(self, secrets: Iterable[str]) -> None:
        self._secrets = tuple(s.encode() for s in secrets if len(s) >= MIN_SECRET_CHARS)

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> bytes:
        if "exc_info" in event:
            structlog.processors.format_exc_info(_logger, method, event)
        event["level"] = "error" if method == "exception" else method
        event["at_ms"] = time.time_ns() // 1_000_000
        if not _SECRET_FIELDS.isdisjoint(event):
            for name in _SECRET_FIELDS.intersection(event):
                event[name] = REDACTED
        line = _encoder.encode(event)
        for secret in self._secrets:
            if secret in line:
                line = line.replace(secret, REDACTED.encode())
        return line


def configure_logging(secrets: Iterable[str] = (), stream: BinaryIO | None = None) -> LineBuffer:
    """Send every structlog line of this process to `stream` (standard error) as JSON."""
    buffer = LineBuffer(stream if stream is not None else sys.stderr.buffer)
    structlog.configure(
        # One step instead of a chain: two lines a task are on the hot path.
        processors=[LineRenderer(secrets)],
        wrapper_class=structlog.make_filtering_bound_logger("info"),
        logger_factory=lambda *_: _BufferLogger(buffer),
        cache_logger_on_first_use=True,
    )
    atexit.register(buffer.flush)
    return buffer
