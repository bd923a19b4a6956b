"""The bus within one process: publish now, delivered in a later turn of the event loop.

Beside a task's path: wake-ups and soft state between services. Invariants: delivery keeps the order
of publishing per subscriber; a subscriber that raises is logged and hurts nobody else; what waits
per subscriber is bounded, beyond it messages are dropped and counted (at most once, ports.bus).
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

import structlog

from orchestratord.ports.bus import Subscriber

# Soft state is re-read anyway; a subscriber this far behind does not need the rest.
WAITING_MESSAGES = 1024

_log = structlog.get_logger(__name__)


class LocalBus:
    """`Bus` over `loop.call_soon`. All methods are called from the event loop."""

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop | None = None,
        *,
        waiting_messages: int = WAITING_MESSAGES,
    ) -> None:
        self._loop = loop if loop is not None else asyncio.get_running_loop()
        self._waiting_messages = waiting_messages
        self._by_subject: dict[str, list[_Subscription]] = {}
        self._by_prefix: dict[str, list[_Subscription]] = {}
        self._closed = False
        self.dropped_messages = 0

    def publish(self, subject: str, payload: bytes) -> None:
        """Tell all present subscribers of `subject` in a later turn of the loop. After `close`
        nobody hears it. Raises ValueError for a wildcard or an empty part in the subject."""
        _check(subject, subject.split("."))
        for subscription in self._by_subject.get(subject, ()):
            self._send(subscription, subject, payload)
        if self._by_prefix:
            end = subject.rfind(".")
            while end != -1:
                for subscription in self._by_prefix.get(subject[: end + 1], ()):
                    self._send(subscription, subject, payload)
                end = subject.rfind(".", 0, end)
            for subscription in self._by_prefix.get("", ()):
                self._send(subscription, subject, payload)

    def subscribe(self, subject: str, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` for `subject`, or for all below `prefix` with `prefix.>` (`>` alone is
        everything); what is returned ends it, idempotently, and drops what still waits.
        Raises ValueError for a malformed subject and RuntimeError after `close`."""
        if self._closed:
            raise RuntimeError("the bus is closed")
        parts = subject.split(".")
        wildcard = parts[-1] == ">"
        _check(subject, parts[:-1] if wildcard else parts)
        table = self._by_prefix if wildcard else self._by_subject
        key = subject[:-1] if wildcard else subject
        subscription = _Subscription(subscriber)
        table.setdefault(key, []).append(subscription)

        def end() -> None:
            subscription.ended = True
            subscription.waiting.clear()
            present = table.get(key, [])
            if subscription in present:
                present.remove(subscription)
            if not present:
                table.pop(key, None)

        return end

    async def close(self) -> None:
        """End all subscriptions; what waits is dropped. Idempotent."""
        self._closed = True
        for table in (self._by_subject, self._by_prefix):
            for subscriptions in table.values():
                for subscription in subscriptions:
                    subscription.ended = True
                    subscription.waiting.clear()
            table.clear()

    def _send(self, subscription: _Subscription, subject: str, payload: bytes) -> None:
        if len(subscription.waiting) >= self._waiting_messages:
            self.dropped_messages += 1
            if not subscription.behind:
                subscription.behind = True
                _log.warning("bus.subscriber_behind", subject=subject)
            return
        if not subscription.waiting:
            self._loop.call_soon(subscription.deliver)
        subscription.waiting.append((subject, payload))


class _Subscription:
    """One subscriber and what it has not heard yet."""

    __slots__ = ("behind", "ended", "subscriber", "waiting")

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.waiting: deque[tuple[str, bytes]] = deque()
        self.ended = False
        self.behind = False

    def deliver(self) -> None:
        """Hand over what waits now; what is published meanwhile gets a turn of its own."""
        batch, self.waiting = self.waiting, deque()
        self.behind = False
        for subject, payload in batch:
            if self.ended:
                return
            try:
                self.subscriber(subject, payload)
            except Exception:  # noqa: BLE001 - the port: an exception reaches nobody else
                _log.exception("bus.subscriber_failed", subject=subject)


def _check(subject: str, parts: list[str]) -> None:
    for part in parts:
        if not part or part in ("*", ">") or any(character.isspace() for character in part):
            raise ValueError(f"malformed subject {subject!r}")
