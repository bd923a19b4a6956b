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


@dataclass(slots=True)
class TakeOvers:
    """What one replica made of tasks that others had begun."""

    failovers: int = 0  # tasks that went on there
    mismatches: int = 0  # tasks that it decoded to other bytes


class TakeOverHistory:
    """Counts per replica since the start, for pool health; bounded by the replicas there are."""

    def __init__(self) -> None:
        self._of: dict[tuple[str, str], TakeOvers] = {}

    def of(self, pool_id: str, replica_id: str) -> TakeOvers:
        """The replica's own counts, to be read and added to."""
        return self._of.setdefault((pool_id, replica_id), TakeOvers())
