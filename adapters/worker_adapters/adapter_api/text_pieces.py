"""From an engine's text to pieces: JSON-escaped UTF-8 that never cuts a character.

Third step of a token's path: events → **pieces** → sink. `escape` is the whole fast path.
`CharacterJoiner` is for engines that send a character in halves, as a surrogate pair split between
two events or as UTF-8 bytes split inside the JSON string: it holds the first half until the other
comes. Invariant: what leaves here is whole characters; a half without its other half becomes
U+FFFD. Requirements: ORCH-3058, ORCH-3054.
"""

from __future__ import annotations

import codecs

import msgspec

_encode = msgspec.json.Encoder().encode


def escape(text: str) -> bytes:
    """`text` as the inside of a JSON string, in UTF-8 and without the quotes.

    Raises:
        UnicodeEncodeError: `text` holds a lone surrogate (see `CharacterJoiner`).
    """
    return _encode(text)[1:-1]


class CharacterJoiner:
    """Joins characters whose halves arrive in different texts."""

    __slots__ = ("_utf8", "_utf16")

    def __init__(self) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._utf16 = codecs.getincrementaldecoder("utf-16-le")("replace")

    def join_surrogates(self, text: str) -> str:
        """Whole characters of `text`, which may hold lone surrogates (halves of a pair)."""
        half = self._utf8.decode(b"", final=True)
        self._utf8.reset()
        return half + self._utf16.decode(text.encode("utf-16-le", "surrogatepass"))

    def join_bytes(self, raw: bytes) -> str:
        """Whole characters of `raw`, UTF-8 that may begin or end inside a character."""
        half = self._utf16.decode(b"", final=True)
        self._utf16.reset()
        return half + self._utf8.decode(raw)

    def flush(self) -> str:
        """What a text's end leaves of a half: U+FFFD, or nothing."""
        rest = self._utf8.decode(b"", final=True) + self._utf16.decode(b"", final=True)
        self._utf8.reset()
        self._utf16.reset()
        return rest
