"""What the haiku gate asks for, and what it takes for an answer.

The minute of Amsterdam in English words and a random nonce go into the last message; the examples
before it use other words and other nonces, drawn anew for each poem. Nothing constrains the answer:
no grammar, no beginning of it, no list of words. Invariant: no text here holds a minute or a nonce
that a poem is asked for. Requirements: OC-E2E-9001, OC-E2E-9002.
"""

from __future__ import annotations

import random
import re
import string
from dataclasses import dataclass
from datetime import datetime
from zoneinfo import ZoneInfo

from orchqueue_v1.types import Message

AMSTERDAM = ZoneInfo("Europe/Amsterdam")
# Letter and digit in turn, 4.6e9 nonces: each is a token of its own, which a small model copies
# more reliably than a run of letters that its vocabulary cuts in odd places (measured).
NONCE_PAIRS = 4
LINES_MIN = 3

# fmt: off
_ONES = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven",
    "twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen",
)
# fmt: on
_TENS = ("twenty", "thirty", "forty", "fifty")

_SYSTEM = "You are a careful poet. You copy required words exactly, character by character."
_REQUEST = (
    'Write a haiku (3 lines). Include this exact English minute phrase: "minute {minute}". '
    'Also include this nonce verbatim: "{nonce}". Output only the poem.'
)
# A model of 135 million parameters copies reliably what examples put on a line of its own.
_EXAMPLE = "minute {minute}\n{line}\n{nonce}"
# One more than there are lines: the minute that is asked for is never in an example.
_EXAMPLE_MINUTES = ("nineteen", "fifty-one", "seven", "thirty-four", "sixteen")
_EXAMPLE_LINES = (
    "soft rain on the roof",
    "leaves fall on the still pond",
    "snow drifts past the gate",
    "a crow calls at dusk",
)


def minute_in_words(minute: int) -> str:
    """A minute of an hour, 0 to 59, as "seven", "forty" or "forty-two"."""
    if minute < len(_ONES):
        return _ONES[minute]
    tens, ones = divmod(minute, 10)
    return _TENS[tens - 2] + (f"-{_ONES[ones]}" if ones else "")


def minute_of(instant: datetime) -> int:
    """The minute, 0 to 59, that a clock in Amsterdam shows at `instant`."""
    return instant.astimezone(AMSTERDAM).minute


@dataclass(frozen=True, slots=True)
class Assignment:
    """What one poem must hold."""

    minute: str
    nonce: str

    @classmethod
    def at(cls, instant: datetime, draw: random.Random) -> Assignment:
        """The minute that `instant` has in Amsterdam, and a nonce."""
        return cls(minute_in_words(minute_of(instant)), _nonce(draw))

    def messages(self, draw: random.Random) -> list[Message]:
        """The conversation: examples with other words, then the request."""
        others = [word for word in _EXAMPLE_MINUTES if word != self.minute]
        conversation = [Message("system", _SYSTEM)]
        for minute, line in zip(others, _EXAMPLE_LINES, strict=False):
            nonce = _nonce(draw)
            conversation += [
                Message("user", _REQUEST.format(minute=minute, nonce=nonce)),
                Message("assistant", _EXAMPLE.format(minute=minute, line=line, nonce=nonce)),
            ]
        request = _REQUEST.format(minute=self.minute, nonce=self.nonce)
        return [*conversation, Message("user", request)]

    def fault_of(self, text: str) -> str | None:
        """Why `text` is not the poem; None where it is.

        The minute counts as a whole word: "two" is not in "forty-two".
        """
        lines = [line for line in text.splitlines() if line.strip()]
        if len(lines) < LINES_MIN:
            return f"{len(lines)} lines, not {LINES_MIN}"
        if not re.search(rf"(?<![\w-]){re.escape(self.minute)}(?![\w-])", text):
            return "the minute is missing"
        if self.nonce not in text:
            return "the nonce is missing"
        if "nonce" in text or "haiku" in text:
            return "the request itself, not the poem alone"
        return None


def _nonce(draw: random.Random) -> str:
    return "".join(
        draw.choice(string.ascii_lowercase) + draw.choice(string.digits) for _ in range(NONCE_PAIRS)
    )
