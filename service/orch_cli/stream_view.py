"""How a task's stream looks: live on a terminal, bare text in a pipe, events for programs
(OC-CLI-8002).

Sits at the very end of a task's path. Invariant: in a pipe stdout carries the model's text and
nothing else, byte for byte, so that two runs can be compared with `cmp`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Any, Protocol, Self

import msgspec
from rich.cells import cell_len
from rich.console import Group
from rich.live import Live
from rich.text import Text

from orch_cli.exit_codes import ExitCode
from orch_cli.output import Output, visible
from orchestrator_core.units import counted, duration
from orchqueue_v1.sse import (
    EndEvent,
    ErrorEvent,
    MetricsEvent,
    StartedEvent,
    StreamEvent,
    TokenEvent,
)
from orchqueue_v1.types import AdmissionResponse

# Often enough to look alive, seldom enough to cost nothing over a slow line.
_REFRESH_PER_S = 8
# A reader that was there from the start reads for as long as the engine decodes, measured by two
# clocks.
_LIVE_RATIO = 0.8
_KINDS = {
    StartedEvent: "started",
    TokenEvent: "token",
    MetricsEvent: "metrics",
    EndEvent: "end",
    ErrorEvent: "error",
}


class StreamView(Protocol):
    """Shows one task's events, used as a context manager around the reading."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    def show(self, event: StreamEvent) -> None:
        """Show one event."""


class Progress:
    """What is known of a running stream: counted here once, shown by every view alike."""

    def __init__(
        self, promise: AdmissionResponse | None, clock_s: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock_s = clock_s
        self._begun_s = clock_s()
        self._first_s: float | None = None
        self._last_s = self._begun_s
        self.promise = promise
        self.tokens = 0
        self.started = False
        self.metrics: dict[str, Any] = {}
        self.decode_ms: int | None = None
        self.last_event_id: int | None = None

    def take(self, event: StreamEvent) -> None:
        """Count one event."""
        if event.id is not None:
            self.last_event_id = event.id
        match event:
            case StartedEvent():
                self.started = True
            case TokenEvent():
                self._last_s = self._clock_s()
                if self._first_s is None:
                    self._first_s = self._last_s
                self.tokens += 1
            case MetricsEvent():
                self.metrics.update(event.data)
            case EndEvent():
                self.decode_ms = event.data.decode_ms
            case _:
                pass

    @property
    def is_replayed(self) -> bool:
        """Whether the reading was shorter than the decoding: then its times say nothing."""
        if self.decode_ms is None:
            return False
        return (self._last_s - self._begun_s) * 1000 < _LIVE_RATIO * self.decode_ms

    @property
    def first_token_ms(self) -> float | None:
        """Milliseconds from the beginning of the reading to the first token; None in a replay."""
        if self._first_s is None or self.is_replayed:
            return None
        return (self._first_s - self._begun_s) * 1000

    @property
    def tokens_per_s(self) -> float | None:
        """Tokens after the first over the time they took; None before there are two, and in a
        replay."""
        if self._first_s is None or self.tokens < 2 or self._last_s <= self._first_s:
            return None
        if self.is_replayed:
            return None
        return (self.tokens - 1) / (self._last_s - self._first_s)

    def waiting_line(self) -> str:
        """Return what to say while nothing is decoded yet."""
        waited = duration((self._clock_s() - self._begun_s) * 1000)
        if self.started or self.promise is None:
            return f"waiting for the first token · {waited}"
        ahead = self.promise.queue_position
        place = "next in the queue" if ahead == 0 else f"{ahead} in the queue before it"
        predicted = duration(self.promise.predicted_start_ms)
        return f"{place} · start predicted after {predicted} · waiting {waited}"

    def rate_line(self) -> str:
        """Return tokens, rate and time to the first token, as far as they are known."""
        parts = [counted(self.tokens, "token")]
        if self.tokens_per_s is not None:
            parts.append(f"{self.tokens_per_s:.1f} tok/s")
        if self.first_token_ms is not None:
            parts.append(f"first token after {duration(self.first_token_ms)}")
        on_time = self.metrics.get("on_time_probability")
        if isinstance(on_time, int | float):
            parts.append(f"on time {on_time:.0%}")
        failovers = self.metrics.get("failovers")
        if isinstance(failovers, int) and failovers:
            parts.append(counted(failovers, "failover"))
        if self.metrics.get("preempted") is True:
            parts.append("preempted")
        return " · ".join(parts)


class _View:
    """What all views do alike."""

    def __init__(self, output: Output, progress: Progress) -> None:
        self.output = output
        self.progress = progress

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the screen as it is."""


class JsonView(_View):
    """One JSON object a line: event, id where there is one, data."""

    def show(self, event: StreamEvent) -> None:
        """Write the event; only then it counts as seen."""
        self.output.json(event_document(event))
        self.progress.take(event)


class PlainView(_View):
    """The text alone."""

    _is_mid_line = False

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Leave the text as it is; what comes on stderr begins on a line of its own."""
        if self._is_mid_line:
            self.output.break_line()

    def show(self, event: StreamEvent) -> None:
        """Write a token's text; a result is one line of JSON. Only then the event is seen."""
        match event:
            case TokenEvent():
                self.output.raw(event.data.t)
                if event.data.t:
                    self._is_mid_line = not event.data.t.endswith("\n")
            case EndEvent() if event.data.result:
                self.output.json(event.data.result)
            case _:
                pass
        self.progress.take(event)


class TerminalView(_View):
    """Text as it comes, with a line below it that tells place, rate and time to the first token.

    Whole rows are printed for good; the last, growing row and the line below it are drawn again.
    Rows are cut where the terminal would have cut them.
    """

    def __init__(self, output: Output, progress: Progress) -> None:
        super().__init__(output, progress)
        self._row = ""
        self._live = Live(
            get_renderable=self._draw,
            console=output.console,
            refresh_per_second=_REFRESH_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
        )

    def __enter__(self) -> Self:
        self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._live.stop()
        if self._row:
            self._print(self._row)
            self._row = ""

    def show(self, event: StreamEvent) -> None:
        """Draw the event."""
        self.progress.take(event)
        match event:
            case TokenEvent():
                self._append(visible(event.data.t).expandtabs(4))
            case EndEvent():
                if self._row:
                    self._finish_row()
                if event.data.result:
                    self._print(msgspec.json.encode(event.data.result).decode())
                line = f"{self.progress.rate_line()} · decoded in {duration(event.data.decode_ms)}"
                self.output.console.print(Text(line, style="dim"))
            case _:
                pass

    def _draw(self) -> Group:
        if self.progress.tokens == 0:
            return Group(Text(self.progress.waiting_line(), style="dim"))
        return Group(Text(self._row, no_wrap=True), Text(self.progress.rate_line(), style="dim"))

    def _append(self, text: str) -> None:
        *rows, rest = (self._row + text).split("\n")
        for row in rows:
            self._print(row)
        width = self.output.console.width
        while cell_len(rest) > width:
            cut = _fit(rest, width)
            self._print(rest[:cut])
            rest = rest[cut:]
        self._row = rest

    def _finish_row(self) -> None:
        self._print(self._row)
        self._row = ""

    def _print(self, row: str) -> None:
        self.output.console.print(Text(row), soft_wrap=True)


def _fit(text: str, width: int) -> int:
    """Return how many characters fill at most `width` cells, at least one."""
    used = 0
    for index, character in enumerate(text):
        used += cell_len(character)
        if used > width:
            return max(index, 1)
    return len(text)


def event_document(event: StreamEvent) -> dict[str, Any]:
    """Return an event as the JSON object that programs read."""
    number = {} if event.id is None else {"id": event.id}
    return {"event": _KINDS[type(event)], **number, "data": msgspec.to_builtins(event.data)}


def view_for(output: Output, progress: Progress) -> StreamView:
    """Return the view that fits where stdout goes."""
    if output.as_json:
        return JsonView(output, progress)
    return TerminalView(output, progress) if output.is_rich else PlainView(output, progress)


def show_stream(output: Output, progress: Progress, events: Iterable[StreamEvent]) -> ExitCode:
    """Show a stream to its end and return the exit status its terminal event stands for.

    Raises:
        OrchError: the stream was refused, or broke for good.
        KeyboardInterrupt: the user has seen enough; the view is closed.
    """
    last: StreamEvent | None = None
    with view_for(output, progress) as view:
        for event in events:
            view.show(event)
            last = event
    match last:
        case EndEvent() if last.data.canceled is True:
            output.note("the task was canceled", "yellow")
            return ExitCode.TASK_FAILED
        case ErrorEvent():
            again = "; worth another try with a new task id" if last.data.retriable is True else ""
            output.note(f"error: {last.data.code}: {last.data.message}{again}", "bold red")
            return ExitCode.TASK_FAILED
        case EndEvent():
            if not output.as_json and not output.is_rich:
                output.note(progress.rate_line())
            return ExitCode.OK
        case _:
            output.note("nothing comes after that event: the stream has ended", "yellow")
            return ExitCode.OK
