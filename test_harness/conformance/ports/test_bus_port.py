"""What every bus promises (ports.bus)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from orchestratord.ports.bus import Bus

NewBus = Callable[[], Bus]


class Ear:
    """A subscriber that remembers, and can be waited for."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []
        self._more = asyncio.Event()

    def __call__(self, subject: str, payload: bytes) -> None:
        self.heard.append((subject, payload))
        self._more.set()

    async def hears(self, messages: int) -> None:
        async with asyncio.timeout(5):
            while len(self.heard) < messages:
                self._more.clear()
                await self._more.wait()


def test_every_subscriber_hears_in_order_and_never_during_publish(new_bus: NewBus) -> None:
    async def scenario() -> tuple[int, list[Ear]]:
        bus = new_bus()
        ears = [Ear(), Ear()]
        for ear in ears:
            bus.subscribe("pool.ready", ear)
        for number in range(3):
            bus.publish("pool.ready", b"%d" % number)
        at_once = len(ears[0].heard)
        for ear in ears:
            await ear.hears(3)
        await bus.close()
        return at_once, ears

    at_once, ears = asyncio.run(scenario())

    assert at_once == 0
    for ear in ears:
        assert ear.heard == [("pool.ready", b"0"), ("pool.ready", b"1"), ("pool.ready", b"2")]


@pytest.mark.parametrize(
    ("pattern", "heard"),
    [
        ("pool.a", ["pool.a"]),
        ("pool.>", ["pool.a", "pool.a.ready", "pool.b"]),
        ("pool.a.>", ["pool.a.ready"]),
        (">", ["pool", "pool.a", "pool.a.ready", "pool.b", "pools.a"]),
    ],
)
def test_a_pattern_hears_exactly_what_it_matches(
    new_bus: NewBus, pattern: str, heard: list[str]
) -> None:
    async def scenario() -> list[str]:
        bus = new_bus()
        ear, last = Ear(), Ear()
        bus.subscribe(pattern, ear)
        bus.subscribe("done", last)
        for subject in ("pool", "pool.a", "pool.a.ready", "pool.b", "pools.a", "done"):
            bus.publish(subject, b"")
        await last.hears(1)
        await ear.hears(len(heard))
        await bus.close()
        return [subject for subject, _ in ear.heard if subject != "done"]

    assert asyncio.run(scenario()) == heard


def test_an_ended_subscription_hears_nothing_more_not_even_what_was_on_its_way(
    new_bus: NewBus,
) -> None:
    async def scenario() -> list[tuple[str, bytes]]:
        bus = new_bus()
        ear, last = Ear(), Ear()
        end = bus.subscribe("a", ear)
        bus.subscribe("a", last)
        bus.publish("a", b"1")
        end()
        end()
        bus.publish("a", b"2")
        await last.hears(2)
        await bus.close()
        return ear.heard

    assert asyncio.run(scenario()) == []


def test_a_failing_subscriber_hurts_neither_the_publisher_nor_the_others(new_bus: NewBus) -> None:
    async def scenario() -> list[tuple[str, bytes]]:
        bus = new_bus()

        def fails(subject: str, payload: bytes) -> None:
            raise RuntimeError("subscriber is broken")

        ear = Ear()
        bus.subscribe("a", fails)
        bus.subscribe("a", ear)
        bus.publish("a", b"1")
        bus.publish("a", b"2")
        await ear.hears(2)
        await bus.close()
        return ear.heard

    assert asyncio.run(scenario()) == [("a", b"1"), ("a", b"2")]


@pytest.mark.parametrize("subject", ["", "a..b", ".a", "a.", "a b", "a.*", "a.>.b"])
def test_a_malformed_subject_is_refused(new_bus: NewBus, subject: str) -> None:
    async def scenario() -> None:
        bus = new_bus()
        with pytest.raises(ValueError, match="malformed subject"):
            bus.publish(subject, b"")
        with pytest.raises(ValueError, match="malformed subject"):
            bus.subscribe(subject, Ear())
        await bus.close()

    asyncio.run(scenario())


def test_a_closed_bus_delivers_nothing_more(new_bus: NewBus) -> None:
    async def scenario() -> list[tuple[str, bytes]]:
        bus = new_bus()
        ear = Ear()
        bus.subscribe("a", ear)
        bus.publish("a", b"1")
        await bus.close()
        await bus.close()
        bus.publish("a", b"2")
        with pytest.raises(RuntimeError, match="closed"):
            bus.subscribe("a", ear)
        turns_over = asyncio.Event()
        asyncio.get_running_loop().call_soon(turns_over.set)
        await turns_over.wait()
        return ear.heard

    assert asyncio.run(scenario()) == []
