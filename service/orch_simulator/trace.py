"""Recorded arrivals: one JSON object a line, read and written as a stream.

Before a simulated task's path. The invariant: what `write_trace` wrote, `read_trace` gives back
unchanged; a line that is not an arrival stops the reading with its number and what is wrong.
Requirements: ORCH-3075.

    {"at_ms": 0, "tenant": "acme", "priority": "batch", "prompt_tokens": 128, "max_tokens": 256,
     "expected_tokens": 100, "tokens_out": 93, "deadline_ms": 60000}

`expected_tokens`, `tokens_out` (else expected_tokens, else max_tokens), `model_ref` and `session`
may be left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Annotated

import msgspec

from orch_simulator.workload import Arrival
from orchestrator_core.task import Priority

_Count = Annotated[int, msgspec.Meta(ge=0)]
_Positive = Annotated[int, msgspec.Meta(ge=1)]


class TraceError(Exception):
    """A trace that cannot be read: file, line and what is wrong with it."""


class _Line(msgspec.Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    at_ms: _Count
    tenant: str
    priority: Priority
    prompt_tokens: _Count
    max_tokens: _Positive
    expected_tokens: _Positive | None = None
    tokens_out: _Count | None = None
    deadline_ms: _Positive
    model_ref: str | None = None
    session: str | None = None


def read_trace(path: Path) -> Iterator[Arrival]:
    """The arrivals of a JSONL file, in its order; blank lines are skipped.

    Raises TraceError for a line that is no arrival or goes back in time; OSError as `open` does.
    """
    decoder = msgspec.json.Decoder(_Line)
    before_ms = 0
    with path.open("rb") as lines:
        for number, text in enumerate(lines, 1):
            if not text.strip():
                continue
            try:
                line = decoder.decode(text)
            except msgspec.DecodeError as error:  # ValidationError is one of them
                raise TraceError(f"{path}, line {number}: {error}") from None
            if line.at_ms < before_ms:
                raise TraceError(
                    f"{path}, line {number}: at_ms {line.at_ms} is before the line above it "
                    f"({before_ms}); sort the file by at_ms"
                )
            before_ms = line.at_ms
            yield _arrival(line)


def write_trace(path: Path, arrivals: Iterable[Arrival]) -> Iterator[Arrival]:
    """Pass the arrivals on, each one written to `path` first; the file is whole when they end."""
    encoder = msgspec.json.Encoder()
    with path.open("wb") as lines:
        for arrival in arrivals:
            lines.write(encoder.encode(_line(arrival)) + b"\n")
            yield arrival


def _arrival(line: _Line) -> Arrival:
    tokens_out = line.tokens_out
    if tokens_out is None:
        tokens_out = line.max_tokens if line.expected_tokens is None else line.expected_tokens
    return Arrival(
        at_ms=line.at_ms,
        tenant=line.tenant,
        priority=line.priority,
        prompt_tokens=line.prompt_tokens,
        max_tokens=line.max_tokens,
        tokens_out=min(tokens_out, line.max_tokens),
        deadline_ms=line.deadline_ms,
        expected_tokens=line.expected_tokens,
        model_ref=line.model_ref,
        session=line.session,
    )


def _line(arrival: Arrival) -> _Line:
    return _Line(**{name: getattr(arrival, name) for name in _Line.__struct_fields__})
