"""What a launched engine prints: the end of it in memory, for causes, and a bounded log file.

Complete lines are looked at as they come for a failure of driver or GPU, so that an engine that
prints one and lives is not trusted any longer (ORCH-3038). Invariant: memory and disk stay bounded
however much an engine prints; the file turns over to `<name>.1` at its limit, so that at least one
limit's worth of history is kept.
Requirements: ORCH-3038, OC-POOL-3003, OC-POOL-3010.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import structlog

from pool_managerd.failure_classes import Failure, lasting_fault, may_tell

TAIL_BYTES = 64 * 1024
FILE_BYTES = 4 * 1024 * 1024
# A cause is shown to people and logged; an engine's last line can be a backtrace.
CAUSE_CHARS = 400
# A longer line is looked at in pieces.
LINE_BYTES = 4096

_log = structlog.get_logger(__name__)


class EngineOutput:
    """Collects the output of one replica's engine over all its starts, in the file at `path`."""

    def __init__(self, path: Path, *, tail_bytes: int = TAIL_BYTES, file_bytes: int = FILE_BYTES):
        self._path = path
        self._tail_bytes = tail_bytes
        self._file_bytes = file_bytes
        self._tail = bytearray()
        self._descriptor = -1
        self._written = 0
        self._refused = False
        self._line = b""  # begun, without its end yet
        # Called with the first lasting fault of a life, from `write`.
        self.on_fault: Callable[[Failure], None] | None = None
        self._fault_found = False

    def begin(self) -> None:
        """A new life: what the last one said is not this one's cause."""
        self._tail.clear()
        self._refused = False
        self._line = b""
        self._fault_found = False

    def write(self, output: bytes) -> None:
        """Keep what the engine printed; a disk that refuses costs the file, never the engine."""
        self._tail += output
        del self._tail[: -self._tail_bytes]
        try:
            if self._descriptor == -1 or self._written >= self._file_bytes:
                self._turn_over()
            self._written += os.write(self._descriptor, output)
        except OSError as error:
            if not self._refused:  # say it once in a life
                _log.warning("engine.log_failed", file=str(self._path), reason=error.strerror)
            self._refused = True
        if self.on_fault is not None and not self._fault_found:
            self._look(output)

    def tail(self) -> bytes:
        """The last bytes of this life, at most `tail_bytes`."""
        return bytes(self._tail)

    def close(self) -> None:
        """Close the file; it stays."""
        if self._descriptor != -1:
            os.close(self._descriptor)
            self._descriptor = -1

    def _look(self, output: bytes) -> None:
        *lines, rest = (self._line + output).split(b"\n")
        if len(rest) > LINE_BYTES:
            lines.append(rest)
            rest = b""
        self._line = rest
        if not may_tell(b"\n".join(lines)):
            return
        for line in lines:
            fault = lasting_fault(line)
            if fault is not None and self.on_fault is not None:
                self._fault_found = True
                self.on_fault(fault)
                return

    def _turn_over(self) -> None:
        self.close()
        if self._path.exists() and self._path.stat().st_size >= self._file_bytes:
            self._path.replace(self._path.with_name(self._path.name + ".1"))
        self._path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        # The owner's only: an engine may print prompts.
        self._descriptor = os.open(self._path, flags, 0o600)
        self._written = os.fstat(self._descriptor).st_size


def last_words(tail: bytes) -> str:
    """Why an engine ended, by its own account: our launcher's `failed` line, else its last line."""
    lines = [line.strip() for line in tail.decode(errors="replace").splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith('{"event": "failed"'):
            try:
                return str(json.loads(line)["message"])[:CAUSE_CHARS]
            except (ValueError, KeyError):
                break
    return lines[-1][:CAUSE_CHARS] if lines else "it printed nothing"
