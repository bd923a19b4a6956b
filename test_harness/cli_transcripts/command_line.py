"""Runs `llama-orch` as a person or a script does, and writes down what they see.

A transcript is the text that a snapshot holds: the command, what it printed (both streams
together on a terminal, each by itself in a pipe) and its exit status. Invariant: whatever differs
from run to run is replaced by one of `VOLATILE`, and by nothing else.
"""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import pyte

COLUMNS = 100
# So tall that nothing scrolls away: a snapshot shows all that was printed.
LINES = 200
TIMEOUT_S = 60.0
_PROGRAM = Path(sys.executable).with_name("llama-orch")

# (what differs from run to run, what stands there instead)
VOLATILE: tuple[tuple[str, str], ...] = (
    # ids: of tasks, sessions and requests; digests of what holds one of them or an address
    (r"\b[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}\b", "<uuid>"),
    (r"\b(sha256:)?[0-9a-f]{32,}\b", r"\1<digest>"),
    # times: what a stream took depends on when it was read
    (r"(?m)^(\d+ tokens)( · .*)?$", r"\1 · <figures>"),
    (r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d:\d\d(\.\d+)?(Z|\+00:00)?", "<time>"),
    (r'("[a-z0-9_.]*_ms(_remaining)?"): ?-?\d+(\.\d+)?', r"\1: <ms>"),
    (r"\b([a-z_]*_ms)=-?\d+(\.\d+)?", r"\1=<ms>"),
    (r"\b\d+ min( \d+ s)?", "<duration>"),
    (r"\b\d+(\.\d+)? m?s\b", "<duration>"),
    (r", <duration> from its first token to its end", ""),  # not said of less than a millisecond
    # ports and versions
    (r"\b127\.0\.0\.1:\d+", "127.0.0.1:<port>"),
    (r"\bllama-orch \d+\.\d+\.\d+\S*", "llama-orch <version>"),
)


@dataclass(frozen=True, slots=True)
class CommandLine:
    """A shell in the folder `home`, which is the user's home and holds nothing of the real one."""

    home: Path
    environment: Mapping[str, str] = field(default_factory=dict)

    def in_pipe(self, *words: str, stdin: str = "") -> str:
        """What a script sees: both streams by themselves."""
        done = subprocess.run(
            [_PROGRAM, *words],
            input=stdin.encode(),
            capture_output=True,
            timeout=TIMEOUT_S,
            env=self._environment(),
            cwd=self.home,
            check=False,
        )
        parts = [self._typed(words) + " | cat", done.stdout.decode()]
        if done.stderr:
            parts += ["-- stderr", done.stderr.decode()]
        return self._transcript(parts, done.returncode)

    def on_terminal(self, *words: str) -> str:
        """What a person sees at the end on a terminal of 100 columns, without colours."""
        written, status = self._written(words, {"NO_COLOR": "1"})
        screen = pyte.Screen(COLUMNS, LINES)
        pyte.ByteStream(screen).feed(written)
        text = "\n".join(line.rstrip() for line in screen.display).rstrip("\n")
        return self._transcript([self._typed(words), text], status)

    def in_colour(self, *words: str) -> str:
        """What is sent to a terminal that shows colours, with its escape sequences."""
        written, status = self._written(words, {})
        text = written.decode().replace("\r\n", "\n").replace("\x1b", "␛")
        return self._transcript([self._typed(words), text], status)

    def _written(self, words: tuple[str, ...], more: dict[str, str]) -> tuple[bytes, int]:
        """All that the command writes to its terminal, and its exit status."""
        leader, follower = pty.openpty()
        try:
            fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", LINES, COLUMNS, 0, 0))
            process = subprocess.Popen(
                [_PROGRAM, *words],
                stdin=follower,
                stdout=follower,
                stderr=follower,
                env=self._environment() | {"TERM": "xterm-256color"} | more,
                cwd=self.home,
                start_new_session=True,
            )
        finally:
            os.close(follower)
        seen = bytearray()
        with suppress(OSError):  # EIO: the last process on the terminal has gone
            while data := os.read(leader, 65536):
                seen += data
        os.close(leader)
        return bytes(seen), process.wait(TIMEOUT_S)

    @staticmethod
    def _typed(words: tuple[str, ...]) -> str:
        return f"$ {shlex.join(('llama-orch', *words))}"

    def _environment(self) -> dict[str, str]:
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.home),
            "XDG_CONFIG_HOME": str(self.home / ".config"),
            "XDG_DATA_HOME": str(self.home / ".local"),
            "LANG": "C.UTF-8",
            "TZ": "UTC",
            **self.environment,
        }

    def _transcript(self, parts: list[str], status: int) -> str:
        text = "\n".join(part.removesuffix("\n") for part in parts) + f"\n[exit {status}]\n"
        text = text.replace(str(self.home), "<home>")
        for pattern, instead in VOLATILE:
            text = re.sub(pattern, instead, text)
        return text
