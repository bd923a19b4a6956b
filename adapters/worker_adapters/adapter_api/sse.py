"""Incremental reader of server-sent events: bytes of any chunking in, data payloads out.

Second step of a token's path: connection → **events** → tokens. It works on bytes, so a character
or a line that is split between two reads is whole again before anyone decodes it. Invariants: the
payloads do not depend on how the bytes were cut; memory is bounded by `event_max_bytes`; an event
that the end of the stream cut off is never returned. Requirements: ORCH-3054, OC-ADAPT-5001.
"""

from __future__ import annotations

from worker_adapters.adapter_api.faults import malformed

EVENT_MAX_BYTES = 1 << 20  # a token's event has about 150 bytes; a megabyte is no token


class SseDecoder:
    """Reads `data` fields of one stream; other fields and comments are ignored.

    Source: WHATWG HTML, section 9.2.6, "Interpreting an event stream". Lines end in LF, CRLF or
    CR; several data lines of one event are joined with LF; an event without data is no event.
    """

    __slots__ = ("_data", "_data_bytes", "_event_max_bytes", "_skip_lf", "_tail")

    def __init__(self, event_max_bytes: int = EVENT_MAX_BYTES) -> None:
        self._event_max_bytes = event_max_bytes
        self._tail = bytearray()  # an unfinished line
        self._data: list[bytes] = []  # data lines of an unfinished event
        self._data_bytes = 0
        self._skip_lf = False  # the last line ended in CR at the end of a read

    def feed(self, chunk: bytes) -> list[bytes]:
        """Payloads of the events that `chunk` completes, in order; O(len(chunk)) amortised.

        Raises:
            EngineError: MALFORMED when a line or an event outgrows the bound.
        """
        if (
            chunk.startswith(b"data: ")
            and chunk.endswith(b"\n\n")
            and chunk.find(b"\n") == len(chunk) - 2
            and 13 not in chunk  # CR; the number is found six times as fast as b"\r"
            and not (self._tail or self._data or self._skip_lf)
            and len(chunk) <= self._event_max_bytes
        ):
            return [chunk[6:-2]]  # one whole event: what an engine at serving pace sends
        return self._feed_lines(chunk)

    def _feed_lines(self, chunk: bytes) -> list[bytes]:
        if self._skip_lf and chunk:
            self._skip_lf = False
            if chunk.startswith(b"\n"):
                chunk = chunk[1:]
        lines = chunk.splitlines(keepends=True)  # on bytes: LF, CR and CRLF only
        if not lines:
            return []
        unfinished = b"" if lines[-1].endswith((b"\n", b"\r")) else lines.pop()
        if lines and self._tail:
            lines[0] = bytes(self._tail) + lines[0]
            self._tail.clear()
        if lines and lines[-1].endswith(b"\r"):
            self._skip_lf = True
        payloads: list[bytes] = []
        for line in lines:
            self._take_line(line.rstrip(b"\r\n"), payloads)
        self._tail += unfinished
        if len(self._tail) + self._data_bytes > self._event_max_bytes:
            raise malformed(f"an event of more than {self._event_max_bytes} bytes")
        return payloads

    def _take_line(self, line: bytes, payloads: list[bytes]) -> None:
        if not line:
            if self._data:
                payloads.append(b"\n".join(self._data))
                self._data = []
                self._data_bytes = 0
            return
        name, _, value = line.partition(b":")
        if name != b"data":
            return
        self._data_bytes += len(line)
        if self._data_bytes > self._event_max_bytes:
            raise malformed(f"an event of more than {self._event_max_bytes} bytes")
        self._data.append(value.removeprefix(b" "))
