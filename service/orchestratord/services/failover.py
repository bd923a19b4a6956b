"""Byte-exact continuation of a stream on another replica (ORCH-3201).

A strict task whose worker died is decoded again from its first token with the same seed. What the
client has is compared with what comes, byte by byte rather than token by token (a replica may cut
the same text elsewhere), and suppressed; the stream goes on where the log ends.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class PrefixCheck:
    """The escaped text that the client already has, and how much of it came again."""

    expected: bytes
    seen_bytes: int = 0

    @property
    def complete(self) -> bool:
        return self.seen_bytes >= len(self.expected)

    def accept(self, pieces: list[bytes]) -> list[bytes] | None:
        """What of these pieces is new; None when they differ from what was sent.

        A piece that straddles the end of the known text is cut there: both sides consist of whole
        escapes of whole characters, since equal text has equal escapes.
        """
        expected = self.expected
        fresh: list[bytes] = []
        for piece in pieces:
            left = len(expected) - self.seen_bytes
            if left <= 0:
                fresh.append(piece)
            elif len(piece) <= left:
                if not expected.startswith(piece, self.seen_bytes):
                    return None
                self.seen_bytes += len(piece)
            else:
                if expected[self.seen_bytes :] != piece[:left]:
                    return None
                self.seen_bytes = len(expected)
                fresh.append(piece[left:])
        return fresh
