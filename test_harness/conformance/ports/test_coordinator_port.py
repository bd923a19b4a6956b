"""What every coordinator promises (ports.coordinator)."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from orchestratord.ports.coordinator import Coordinator, Lease, LeaseHeld, LeaseLost

NewCoordinator = Callable[[], Coordinator]


def test_a_held_lease_is_refused_to_everybody_else(new_coordinator: NewCoordinator) -> None:
    async def scenario() -> Lease:
        ours, theirs = new_coordinator(), new_coordinator()
        await ours.acquire("state", "a")
        try:
            return await theirs.acquire("state", "b")
        finally:
            await ours.close()
            await theirs.close()

    with pytest.raises(LeaseHeld, match="state"):
        asyncio.run(scenario())


def test_a_held_lease_is_refused_to_its_own_holder(new_coordinator: NewCoordinator) -> None:
    async def scenario() -> Lease:
        ours = new_coordinator()
        await ours.acquire("state", "a")
        try:
            return await ours.acquire("state", "a")
        finally:
            await ours.close()

    with pytest.raises(LeaseHeld, match="state"):
        asyncio.run(scenario())


def test_a_released_lease_can_be_taken_and_its_revision_grows(
    new_coordinator: NewCoordinator,
) -> None:
    async def scenario() -> list[Lease]:
        ours, theirs = new_coordinator(), new_coordinator()
        first = await ours.acquire("state", "a")
        await ours.release(first)
        second = await theirs.acquire("state", "b")
        await theirs.close()
        third = await ours.acquire("state", "a")
        await ours.close()
        return [first, second, third]

    leases = asyncio.run(scenario())

    assert [(lease.name, lease.owner) for lease in leases] == [
        ("state", "a"),
        ("state", "b"),
        ("state", "a"),
    ]
    assert leases[0].revision < leases[1].revision < leases[2].revision


def test_names_are_independent(new_coordinator: NewCoordinator) -> None:
    async def scenario() -> list[str]:
        ours, theirs = new_coordinator(), new_coordinator()
        leases = [await ours.acquire("pool/a", "a"), await theirs.acquire("pool/b", "b")]
        await ours.close()
        await theirs.close()
        return [lease.name for lease in leases]

    assert asyncio.run(scenario()) == ["pool/a", "pool/b"]


def test_renewing_keeps_the_revision(new_coordinator: NewCoordinator) -> None:
    async def scenario() -> tuple[Lease, Lease, bool]:
        ours = new_coordinator()
        lease = await ours.acquire("state", "a")
        renewed = await ours.renew(lease)
        lost = ours.lost(lease).is_set()
        await ours.close()
        return lease, renewed, lost

    lease, renewed, lost = asyncio.run(scenario())

    assert renewed == lease
    assert not lost


def test_a_former_lease_cannot_be_renewed_and_its_release_hurts_nobody(
    new_coordinator: NewCoordinator,
) -> None:
    async def scenario() -> tuple[bool, bool]:
        ours, theirs = new_coordinator(), new_coordinator()
        former = await ours.acquire("state", "a")
        await ours.release(former)
        present = await ours.acquire("state", "a")
        with pytest.raises(LeaseLost):
            await ours.renew(former)
        await ours.release(former)
        with pytest.raises(LeaseHeld):
            await theirs.acquire("state", "b")
        lost = ours.lost(former).is_set(), ours.lost(present).is_set()
        await ours.close()
        return lost

    assert asyncio.run(scenario()) == (True, False)


def test_closing_gives_every_lease_up_and_may_be_done_twice(
    new_coordinator: NewCoordinator,
) -> None:
    async def scenario() -> Lease:
        ours, theirs = new_coordinator(), new_coordinator()
        await ours.acquire("state", "a")
        await ours.close()
        await ours.close()
        lease = await theirs.acquire("state", "b")
        await theirs.close()
        return lease

    assert asyncio.run(scenario()).owner == "b"
