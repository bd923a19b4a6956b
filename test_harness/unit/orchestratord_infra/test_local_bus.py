"""What only the in-process bus can get wrong: its bound."""

from __future__ import annotations

import asyncio

from orchestratord.infra.local_bus import LocalBus


def test_beyond_its_bound_a_subscriber_misses_messages_and_hears_again_later() -> None:
    async def scenario() -> tuple[list[bytes], int]:
        bus = LocalBus(waiting_messages=2)
        heard: list[bytes] = []
        done = asyncio.Event()

        def listen(subject: str, payload: bytes) -> None:
            heard.append(payload)
            if payload == b"later":
                done.set()

        bus.subscribe("a", listen)
        for number in range(5):
            bus.publish("a", b"%d" % number)
        delivered = asyncio.Event()
        asyncio.get_running_loop().call_soon(delivered.set)
        await delivered.wait()
        bus.publish("a", b"later")
        async with asyncio.timeout(5):
            await done.wait()
        await bus.close()
        return heard, bus.dropped_messages

    assert asyncio.run(scenario()) == ([b"0", b"1", b"later"], 3)
