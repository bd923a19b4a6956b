"""JSON log lines on standard error: structlog in front, msgspec behind, written in batches.

Fields of a task's line are named by ORCH-3027; secrets are replaced before a line leaves
(OC-CTRL-2041). A line waits in memory for at most `FLUSH_BYTES` or until the next `flush`, which
the service calls several times a second and at every exit.
"""

from __future__ import annotations

import atexit
import sys
import time
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO, Self

import msgspec
import structlog

from orchestrator_core.redaction import REDACTED

FLUSH_BYTES = 64 * 1024
# Names under which a key or token may be logged by mistake.
_SECRET_FIELDS = frozenset(
    {"api_key", "authorization", "key", "password", "secret", "token", "x-api-key"}
)
# Shorter secrets would redact ordinary words.
MIN_SECRET_CHARS = 6

_encoder = msgspec.json.Encoder(enc_hook=str)


class LineBuffer:
    """Collects lines and writes them in one go, with every known secret replaced."""

    def __init__(self, stream: BinaryIO, secrets: Iterable[str] = ()) -> None:
        self._stream = stream
        self._secrets: tuple[bytes, ...] = ()
        self.redact(secrets)
        self._lines: list[bytes] = []
        self._size = 0

    def redact(self, secrets: Iterable[str]) -> None:
        """Further secrets; those that are known stay so: they may still be in a message."""
        # As they stand in a line: a quote or a backslash is escaped there.
        self._secrets += tuple(
            _encoder.encode(s)[1:-1] for s in secrets if len(s) >= MIN_SECRET_CHARS
        )

    def write(self, line: bytes) -> None:
        """One more line, a JSON object."""
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
        for secret in self._secrets:  # all lines at once: a secret has no end of line in it
            if secret in data:
                data = data.replace(secret, REDACTED.encode())
        try:
            self._stream.write(data)
            self._stream.flush()
        except OSError:
            # A log nobody can read any more must not end the service.
            return


class LineLogger:
    """structlog's wrapper class for this process: a call becomes a line, without a chain.

    Structlog's generic chain costs five times as much.
    """

    def __init__(self, logger: LineBuffer, processors: Any, context: Mapping[str, Any]) -> None:
        self._buffer = logger
        self._context: Any = dict(context)

    def bind(self, **fields: Any) -> Self:
        return type(self)(self._buffer, None, {**self._context, **fields})

    def new(self, **fields: Any) -> Self:
        return type(self)(self._buffer, None, fields)

    def unbind(self, *names: str) -> Self:
        kept = {name: value for name, value in self._context.items() if name not in names}
        return type(self)(self._buffer, None, kept)

    def try_unbind(self, *names: str) -> Self:
        return self.unbind(*names)

    def _line(self, event: str, level: str, fields: dict[str, Any]) -> None:
        fields["event"] = event
        fields["level"] = level
        fields["at_ms"] = time.time_ns() // 1_000_000
        if self._context:
            fields = {**self._context, **fields}
        for name in _SECRET_FIELDS:
            if name in fields:
                fields[name] = REDACTED
        self._buffer.write(_encoder.encode(fields))

    def debug(self, event: str, **fields: Any) -> None:
        """Not written: this service logs from `info` on."""

    def info(self, event: str, **fields: Any) -> None:
        self._line(event, "info", fields)

    def warning(self, event: str, **fields: Any) -> None:
        self._line(event, "warning", fields)

    def error(self, event: str, **fields: Any) -> None:
        if fields.get("exc_info"):
            fields = dict(structlog.processors.format_exc_info(None, "error", fields))
        self._line(event, "error", fields)

    def exception(self, event: str, **fields: Any) -> None:
        self.error(event, **{"exc_info": True, **fields})


def configure_logging(secrets: Iterable[str] = (), stream: BinaryIO | None = None) -> LineBuffer:
    """Send every structlog line of this process to `stream` (standard error) as JSON."""
    buffer = LineBuffer(stream if stream is not None else sys.stderr.buffer, secrets)
    structlog.configure(
        processors=[],
        wrapper_class=LineLogger,
        logger_factory=lambda *_: buffer,
        cache_logger_on_first_use=True,
    )
    atexit.register(buffer.flush)
    return buffer
