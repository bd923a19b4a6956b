"""Wake-ups and soft state between the parts of a deployment: at most once, no history.

Nothing that must survive travels here; the journal is for that.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

Subscriber = Callable[[str, bytes], None]


class Bus(Protocol):
    def publish(self, subject: str, payload: bytes) -> None:
        """Tell all present subscribers of `subject`, later in this or another process."""
        ...

    def subscribe(self, subject: str, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber(subject, payload)` from the event loop; `prefix.>` matches all below.
        Returns what ends the subscription. An exception of a subscriber reaches nobody else."""
        ...

    async def close(self) -> None: ...
