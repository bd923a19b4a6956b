"""A `TokenSink` that writes down what it hears and lets a test wait for it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable

from worker_adapters.adapter_api.types import DecodeEnd, DecodeRequest, EngineClient, EngineError

WAIT_S = 30.0  # a bound for a busy machine, not an expectation


class RecordingSink:
    """Everything in order; `reads` has one list per `on_tokens` call."""

    def __init__(self, on_first_tokens: Callable[[], None] | None = None) -> None:
        self.calls: list[str] = []
        self.prefill: list[tuple[int, int]] = []
        self.reads: list[list[bytes]] = []
        self.end: DecodeEnd | None = None
        self.error: EngineError | None = None
        self._on_first_tokens = on_first_tokens
        self._heard = asyncio.Event()

    @property
    def pieces(self) -> list[bytes]:
        return [piece for read in self.reads for piece in read]

    @property
    def text(self) -> str:
        """The tokens as a reader of JSON sees them, decoded one by one."""
        return "".join(json.loads(b'"' + piece + b'"') for piece in self.pieces)

    @property
    def is_over(self) -> bool:
        return self.end is not None or self.error is not None

    def on_prefill(self, processed_tokens: int, total_tokens: int) -> None:
        self._note("prefill")
        self.prefill.append((processed_tokens, total_tokens))

    def on_tokens(self, pieces: list[bytes]) -> None:
        self._note("tokens")
        self.reads.append(list(pieces))
        if len(self.reads) == 1 and self._on_first_tokens is not None:
            self._on_first_tokens()

    def on_end(self, end: DecodeEnd) -> None:
        self._note("end")
        self.end = end

    def on_error(self, error: EngineError) -> None:
        self._note("error")
        self.error = error

    async def until(self, condition: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Wait for `condition`, looked at after each call; AssertionError after `timeout_s`."""
        try:
            async with asyncio.timeout(timeout_s):
                while not condition():
                    self._heard.clear()
                    await self._heard.wait()
        except TimeoutError:
            heard = self.calls[-10:]
            raise AssertionError(f"did not come true; the last calls were {heard}") from None

    async def until_over(self) -> None:
        await self.until(lambda: self.is_over)

    async def until_tokens(self, count: int = 1) -> None:
        await self.until(lambda: len(self.pieces) >= count or self.is_over)

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self._heard.set()


async def decoded(client: EngineClient, request: DecodeRequest) -> RecordingSink:
    """What was heard of `request`, decoded to its end."""
    sink = RecordingSink()
    client.decode(request, sink)
    await sink.until_over()
    return sink
