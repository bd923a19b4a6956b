"""What commands print: rich on a terminal, plain text in a pipe, JSON for programs (OC-CLI-8002).

Results go to stdout and everything else to stderr, so that a pipe carries nothing but the result.
Invariant: text that came from a model or a service is never read as markup, and on a terminal it
cannot move the cursor or change colours.
"""

from __future__ import annotations

import contextlib
import errno
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
from rich.console import Console
from rich.table import Table
from rich.text import Text

from orch_cli.exit_codes import CliError, ExitCode, exit_code_of, hint_of
from orchqueue_v1.transport import OrchError


class OutputFailed(CliError):
    """Stdout takes no more: a full disk, for one. What runs in the service goes on."""


@dataclass(slots=True)
class Output:
    """Where a command prints, and how: `as_json`, else rich when stdout is a terminal."""

    console: Console
    errors: Console
    as_json: bool = False

    @classmethod
    def of_process(cls, *, as_json: bool = False) -> Output:
        """Return the output of this process; made per command, since tests replace the streams."""
        return cls(
            Console(file=sys.stdout, highlight=False, soft_wrap=True),
            Console(file=sys.stderr, highlight=False, soft_wrap=True, stderr=True),
            as_json,
        )

    @property
    def is_rich(self) -> bool:
        """Whether a person looks at stdout."""
        return self.console.is_terminal and not self.as_json

    def raw(self, text: str) -> None:
        """Write exactly `text` to stdout, now. Raises `OutputFailed`."""
        try:
            self.console.file.write(text)
            self.console.file.flush()
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # `| head` has seen enough: the command ends without a word
            raise OutputFailed(
                f"stdout cannot be written: {error.strerror}", exit_code=ExitCode.TASK_FAILED
            ) from None

    def json(self, value: Any) -> None:
        """Write one JSON document on one line."""
        self.raw(json_line(value))

    def note(self, text: str, style: str = "dim") -> None:
        """Tell a person something beside the result; JSON mode has no such lines."""
        if self.as_json:
            return
        # A stderr that takes nothing must not cost the result.
        with contextlib.suppress(OSError):
            self.errors.print(Text(visible(text), style=style if self.errors.is_terminal else ""))

    def break_line(self) -> None:
        """Begin a new line on stderr, which often shares its screen with an unfinished stdout."""
        with contextlib.suppress(OSError):
            self.errors.file.write("\n")
            self.errors.file.flush()

    def table(self, title: str, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
        """Print rows: a drawn table on a terminal, tab-separated with a heading in a pipe."""
        cells = [[visible(str(cell)) for cell in row] for row in rows]
        if not self.is_rich:
            for line in [[column.upper() for column in columns], *cells]:
                self.raw("\t".join(line) + "\n")
            return
        drawn = Table(title=title, title_justify="left", title_style="bold", header_style="bold")
        for column in columns:
            drawn.add_column(column)
        for row in cells:
            drawn.add_row(*(Text(cell, style=_STYLES.get(cell, "")) for cell in row))
        self.console.print(drawn, soft_wrap=False)

    def failure(self, error: OrchError | CliError, **subject: str) -> ExitCode:
        """Explain an expected failure on stderr and return its exit status.

        `subject` says which of several things it is about, as in `task_id=ID`.
        """
        if isinstance(error, CliError):
            code, message, hint, exit_code = "", error.message, error.hint, error.exit_code
            document: dict[str, Any] = {"message": message}
        else:
            code, message, hint = error.code, error.message, hint_of(error)
            exit_code = exit_code_of(error)
            document = error_document(error)
        with contextlib.suppress(OSError):
            self._explain(error, subject | document, code, message, hint, subject)
        return exit_code

    def _explain(
        self,
        error: OrchError | CliError,
        document: dict[str, Any],
        code: str,
        message: str,
        hint: str | None,
        subject: dict[str, str],
    ) -> None:
        if self.as_json:
            self.errors.file.write(
                json_line({"error": document | ({"hint": hint} if hint else {})})
            )
            self.errors.file.flush()
            return
        line = Text("error: ", style="bold red")
        for name in subject.values():
            line.append(f"{visible(name)}: ", style="not bold default")
        if code:
            line.append(code, style="bold").append(": ", style="")
        line.append(visible(message), style="not bold default")
        details = [f"{name} {value}" for name, value in _details(error) if value]
        if details:
            line.append(f" ({', '.join(details)})", style="not bold dim")
        self.errors.print(line)
        if hint:
            self.errors.print(Text(f"hint: {hint}", style="cyan"))


_STYLES = {"Ready": "green", "yes": "green", "ok": "green", "Unready": "red", "FAILED": "red"}


def _details(error: OrchError | CliError) -> list[tuple[str, str | None]]:
    if isinstance(error, CliError):
        return []
    return [
        ("pool", error.pool_id),
        ("policy", error.policy_label),
        ("correlation id", error.correlation_id),
    ]


def error_document(error: OrchError) -> dict[str, Any]:
    """Return the error as the envelope's fields, without those that are absent."""
    fields = {
        "code": error.code,
        "message": error.message,
        "status": error.status or None,
        "engine": error.engine,
        "pool_id": error.pool_id,
        "retriable": error.retriable,
        "retry_after_ms": error.retry_after_ms,
        "policy_label": error.policy_label,
        "correlation_id": error.correlation_id,
    }
    return {name: value for name, value in fields.items() if value is not None}


def json_line(value: Any) -> str:
    """Return `value` as one line of JSON; Structs become objects without their absent fields."""
    return json.dumps(msgspec.to_builtins(value), ensure_ascii=False) + "\n"


def visible(text: str) -> str:
    """Replace what a terminal would obey: control characters other than line break and tab."""
    return "".join(
        c if c in "\n\t" or not _is_control(c) else "\N{REPLACEMENT CHARACTER}" for c in text
    )


def _is_control(character: str) -> bool:
    point = ord(character)
    # C0, DEL and C1; then the bidirectional overrides, which can make a line read backwards.
    return (
        point < 0x20
        or 0x7F <= point < 0xA0
        or 0x202A <= point <= 0x202E
        or 0x2066 <= point <= 0x2069
    )
