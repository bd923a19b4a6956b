"""What is shown of a stream while it runs, and at its end."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator

import pytest
from rich.console import Console

from orch_cli.output import Output
from orch_cli.stream_view import Progress, TerminalView, show_stream
from orchqueue_v1.sse import EndEvent, MetricsEvent, StartedEvent, StreamEvent, TokenEvent
from orchqueue_v1.types import AdmissionResponse, StreamEnd, StreamStarted, StreamToken

pytestmark = pytest.mark.req("OC-CLI-8002")

PROMISE = AdmissionResponse(
    task_id="5f0c8a52-8d0b-4f4e-9a59-0d5f2f0a7c11",
    queue_position=2,
    predicted_start_ms=1500,
    backoff_ms=0,
)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def token(index: int, text: str) -> TokenEvent:
    return TokenEvent(index + 2, StreamToken(t=text, i=index))


def terminal(width: int = 20) -> tuple[Output, io.StringIO]:
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=width, height=30, soft_wrap=True)
    return Output(console, Console(file=io.StringIO(), force_terminal=False)), screen


def printed_rows(screen: io.StringIO) -> list[str]:
    """What a terminal shows in the end: breaks, returns, cursor up and erase are obeyed."""
    rows, row, column = [""], 0, 0
    for code, character in re.findall(
        r"\x1b\[([0-9;?]*[A-Za-z])|(.)", screen.getvalue(), re.DOTALL
    ):
        if code.endswith("A"):
            row -= int(code[:-1] or "1")
        elif code == "2K":
            rows[row] = ""
        elif character == "\r":
            column = 0
        elif character == "\n":
            row, column = row + 1, 0
            if row == len(rows):
                rows.append("")
        elif character:
            rows[row] = rows[row].ljust(column)[:column] + character + rows[row][column + 1 :]
            column += 1
    return rows


def test_rate_and_time_to_the_first_token_are_measured_from_the_tokens() -> None:
    clock = Clock()
    progress = Progress(PROMISE, clock)

    clock.now_s = 0.5
    progress.take(token(0, "a"))
    for index in range(1, 11):
        clock.now_s = 0.5 + index * 0.1
        progress.take(token(index, "a"))

    assert progress.first_token_ms == 500
    assert progress.tokens_per_s == pytest.approx(10.0)
    assert progress.rate_line() == "11 tokens · 10.0 tok/s · first token after 500 ms"


def test_a_replay_shows_no_rate_since_its_times_are_not_the_engines() -> None:
    clock = Clock()
    progress = Progress(None, clock)
    for index in range(24):
        clock.now_s += 0.0001
        progress.take(token(index, "a"))
    progress.take(EndEvent(26, StreamEnd(tokens_out=24, decode_ms=1200)))

    assert progress.rate_line() == "24 tokens"


def test_a_stream_that_was_read_while_it_was_decoded_keeps_its_rate_at_the_end() -> None:
    clock = Clock()
    progress = Progress(None, clock)
    for index in range(11):
        clock.now_s = 0.5 + index * 0.1
        progress.take(token(index, "a"))
    progress.take(EndEvent(13, StreamEnd(tokens_out=11, decode_ms=1510)))

    assert progress.rate_line() == "11 tokens · 10.0 tok/s · first token after 500 ms"


def test_one_token_has_no_rate() -> None:
    clock = Clock()
    progress = Progress(None, clock)
    clock.now_s = 2.0
    progress.take(token(0, "a"))

    assert progress.rate_line() == "1 token · first token after 2 s"


def test_what_metrics_tell_is_shown_beside_the_rate() -> None:
    progress = Progress(None, Clock())
    progress.take(MetricsEvent({"on_time_probability": 0.97, "failovers": 1, "preempted": True}))

    assert progress.rate_line() == "0 tokens · on time 97% · 1 failover · preempted"


def test_a_waiting_task_shows_its_place_and_its_prediction() -> None:
    clock = Clock()
    progress = Progress(PROMISE, clock)
    clock.now_s = 0.25

    assert progress.waiting_line() == (
        "2 in the queue before it · start predicted after 1.5 s · waiting 250 ms"
    )
    progress.take(StartedEvent(1, StreamStarted(queue_position=2, predicted_start_ms=1500)))
    assert progress.waiting_line() == "waiting for the first token · 250 ms"


def events(*texts: str) -> Iterator[StreamEvent]:
    yield StartedEvent(1, StreamStarted(queue_position=2, predicted_start_ms=1500))
    for index, text in enumerate(texts):
        yield token(index, text)
    yield EndEvent(len(texts) + 2, StreamEnd(tokens_out=len(texts), decode_ms=1234))


def test_a_terminal_keeps_the_text_and_one_line_of_figures() -> None:
    output, screen = terminal(width=60)

    status = show_stream(output, Progress(PROMISE, Clock()), events("Hello", " wor", "ld\nnext"))

    rows = printed_rows(screen)
    assert status == 0
    assert "Hello world" in rows
    assert "next" in rows
    assert any(row.startswith("3 tokens") and "decoded in 1.23 s" in row for row in rows)


def test_long_lines_are_cut_where_the_terminal_ends_also_for_wide_characters() -> None:
    output, screen = terminal(width=20)
    view = TerminalView(output, Progress(None, Clock()))

    with view:
        view.show(token(0, "0123456789" * 3))
        view.show(token(1, "漢字" * 6))

    rows = [row for row in printed_rows(screen) if row and "token" not in row]
    assert rows[0] == "0123456789" * 2
    assert "".join(rows) == "0123456789" * 3 + "漢字" * 6
    assert max(sum(2 if c > "\u2e80" else 1 for c in row) for row in rows) <= 20


def test_model_text_cannot_drive_the_terminal() -> None:
    output, screen = terminal(width=60)

    show_stream(output, Progress(None, Clock()), events("\x1b]0;owned\x07[red]x[/red]\u202e"))

    assert "\x1b]0;" not in screen.getvalue()
    assert "\u202e" not in screen.getvalue()
    assert any("[red]x[/red]" in row for row in printed_rows(screen))
