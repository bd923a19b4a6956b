"""The event log of one task: what a client may have seen, and the only source of every stream.

On the token path: dispatch appends the pieces of one read, listening readers are called, and each
asks for the bytes from its own place. A batch is encoded once and shared by all readers that
stand at the same place. Invariants: the id of an event is a function of its place (started 1,
token i is i+2, the terminal event tokens+2; ORCH-3202); nothing follows the terminal event.
Pieces are JSON-escaped UTF-8 without quotes, so they hold no raw newline: a sealed log is the
pieces joined by newlines, eight bytes a token cheaper than a list.
"""

from __future__ import annotations

from collections.abc import Callable

STARTED_ID = 1
FIRST_TOKEN_ID = 2

Listener = Callable[[], None]


class TaskLog:
    """Append-only, then sealed. `started` and `terminal` hold ready-made `data:` payloads."""

    __slots__ = (
        "_batch",
        "_batch_from",
        "_batch_to",
        "_listeners",
        "_pieces",
        "_replay",
        "_sealed",
        "started",
        "terminal",
        "text_bytes",
        "tokens",
        "truncated",
    )

    def __init__(self) -> None:
        self.started: bytes | None = None
        self.terminal: tuple[str, bytes] | None = None
        self.tokens = 0
        self.text_bytes = 0
        # After a crash a task may end before its tokens were decoded again (a best_effort task
        # always, any other when cancelled or failed): its terminal event goes to every reader,
        # whatever id that one has reached.
        self.truncated = False
        self._pieces: list[bytes] | None = []
        self._sealed = b""
        self._replay: list[bytes] | None = None
        self._listeners: list[Listener] = []
        self._batch = b""
        self._batch_from = self._batch_to = 0

    @property
    def last_id(self) -> int:
        """The id of the newest event, 0 when there is none."""
        if self.terminal is not None:
            return self.tokens + FIRST_TOKEN_ID
        return self.tokens + 1 if self.started is not None else 0

    def listen(self, listener: Listener) -> None:
        """Call `listener()` after every change, until `unlisten`."""
        self._listeners.append(listener)

    def unlisten(self, listener: Listener) -> None:
        """Call it no more; idempotent."""
        if listener in self._listeners:
            self._listeners.remove(listener)
            if not self._listeners:
                self._replay = None

    @property
    def listened(self) -> bool:
        return bool(self._listeners)

    def start(self, data: bytes) -> None:
        """Decoding begins. A second start (failover, recovery) changes nothing."""
        if self.started is None:
            self.started = data
            self._tell()

    def append(self, pieces: list[bytes]) -> None:
        """The tokens of one read, in order."""
        assert self._pieces is not None, "append to a sealed log"
        self._pieces += pieces
        self.tokens += len(pieces)
        for piece in pieces:
            self.text_bytes += len(piece)
        for listener in self._listeners:
            listener()

    def end(self, event: str, data: bytes) -> None:
        """The terminal event becomes visible; the log is sealed."""
        assert self.terminal is None, "a task ends once"
        self.terminal = (event, data)
        self.seal()
        self._tell()

    def _tell(self) -> None:
        for listener in tuple(self._listeners):
            listener()

    def seal(self) -> bytes:
        """Stop taking tokens and return the compact text. Idempotent."""
        if self._pieces is not None:
            self._sealed = b"\n".join(self._pieces)
            self._pieces = None
            self._batch = b""
            self._batch_to = 0
        return self._sealed

    def pieces(self) -> list[bytes]:
        """All tokens so far. A sealed log is split once for a replay in several steps, and the
        pieces are given up at its end."""
        if self._pieces is not None:
            return self._pieces
        if self._replay is None:
            self._replay = self._sealed.split(b"\n") if self.tokens else []
        return self._replay

    def text(self) -> bytes:
        """The escaped text so far, without borders between tokens."""
        text = b"".join(self.pieces())
        self._replay = None
        return text

    @classmethod
    def restored(cls, sealed: bytes, tokens: int) -> TaskLog:
        """A finished log from the journal, without its terminal event yet."""
        log = cls()
        log._pieces = None
        log._sealed = sealed
        log.tokens = tokens
        log.text_bytes = len(sealed) - max(0, tokens - 1)
        return log

    def encode(self, next_id: int, limit_tokens: int = 4096) -> tuple[bytes, int]:
        """Events from id `next_id` on as SSE bytes, and the id to go on from.

        At most `limit_tokens` tokens, so that a replay costs a bounded buffer; ask again until the
        bytes are empty. The returned id is past the terminal event once that was included.
        """
        if next_id == self._batch_from and self._batch_to == self.last_id + 1:
            return self._batch, self._batch_to
        parts: list[bytes] = []
        at = next_id
        if at <= STARTED_ID:
            if self.started is not None:
                parts.append(b"event: started\nid: 1\ndata: %b\n\n" % self.started)
                at = FIRST_TOKEN_ID
            elif self.terminal is None:
                return b"", next_id
            else:
                at = FIRST_TOKEN_ID
        first = at - FIRST_TOKEN_ID
        if first < self.tokens:
            last = min(self.tokens, first + limit_tokens)
            index = first
            for piece in self.pieces()[first:last]:
                parts.append(
                    b'event: token\nid: %d\ndata: {"t":"%b","i":%d}\n\n'
                    % (index + FIRST_TOKEN_ID, piece, index)
                )
                index += 1
            at = last + FIRST_TOKEN_ID
            if last == self.tokens:
                self._replay = None
        if self.terminal is not None and at >= self.tokens + FIRST_TOKEN_ID:
            event, data = self.terminal
            end_id = self.tokens + FIRST_TOKEN_ID
            if self.truncated:
                end_id = max(end_id, next_id)
            if at <= end_id:
                parts.append(b"event: %b\nid: %d\ndata: %b\n\n" % (event.encode(), end_id, data))
                at = end_id + 1
        batch = parts[0] if len(parts) == 1 else b"".join(parts)
        if self.terminal is None and batch:
            self._batch, self._batch_from, self._batch_to = batch, next_id, at
        return batch, at
