"""An incremental reader of HTTP/1.1 responses for the load client.

Client end of the bench. Invariant: one response at a time on a connection (no pipelining), and
body bytes come out in order, whatever the cuts between reads. Written by hand, because the
client shares two cores with what it measures: per read it costs a few finds, no callbacks.
"""

from __future__ import annotations


class MalformedResponse(Exception):
    """The peer sent something that is not an HTTP/1.1 response."""


class ResponseReader:
    """Reads one response after another; call `reset` before each."""

    __slots__ = ("_chunked", "_left", "_pending", "closes", "complete", "status")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Expect a new response."""
        self.status = 0  # 0 until the head is here
        self.complete = False
        self.closes = False
        self._pending = b""
        self._chunked = False
        self._left = 0

    def feed(self, data: bytes) -> bytes:
        """Take what one read gave; return the body bytes in it (maybe none).

        Raises:
            MalformedResponse: the framing is broken.
        """
        if self._pending:
            data = self._pending + data
        if not self.status:
            end = data.find(b"\r\n\r\n")
            if end < 0:
                self._pending = data
                return b""
            self._read_head(data[:end].lower())
            data = data[end + 4 :]
        if self._chunked:
            return self._dechunk(data)
        self._pending = b""
        body = data[: self._left]
        self._left -= len(body)
        self.complete = self._left == 0
        return body

    def _read_head(self, head: bytes) -> None:
        if not head.startswith(b"http/1.1 "):
            raise MalformedResponse(repr(head[:40]))
        self.status = int(head[9:12])
        self.closes = b"\r\nconnection: close" in head
        self._chunked = b"\r\ntransfer-encoding: chunked" in head
        field = head.find(b"\r\ncontent-length:")
        if field >= 0:
            self._left = int(head[field + 17 :].split(b"\r\n", 1)[0])

    def _dechunk(self, data: bytes) -> bytes:
        position, length = 0, len(data)
        parts: list[bytes] = []
        while position < length:
            line_end = data.find(b"\r\n", position)
            if line_end < 0:
                break
            try:
                size = int(data[position:line_end], 16)
            except ValueError:
                raise MalformedResponse(repr(data[position : line_end + 2][:40])) from None
            end = line_end + 2 + size
            if length < end + 2:
                break
            position = end + 2
            if size == 0:
                self.complete = True
                break
            parts.append(data[line_end + 2 : end])
        self._pending = data[position:]
        return parts[0] if len(parts) == 1 else b"".join(parts)
