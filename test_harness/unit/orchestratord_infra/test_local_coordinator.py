"""What only the file-based coordinator can get wrong."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from orchestratord.infra.local_coordinator import LeaseFileDamaged, LocalCoordinator
from orchestratord.ports.coordinator import Lease, LeaseHeld, LeaseLost


async def take(state_dir: Path, name: str = "state") -> Lease:
    coordinator = LocalCoordinator(state_dir)
    try:
        return await coordinator.acquire(name, "orchestrator")
    finally:
        await coordinator.close()


def test_a_refusal_names_the_holders_process(tmp_path: Path) -> None:
    async def scenario() -> None:
        holder = LocalCoordinator(tmp_path)
        await holder.acquire("state", "orchestrator-1")
        try:
            await take(tmp_path)
        finally:
            await holder.close()

    with pytest.raises(LeaseHeld, match=rf"held by pid {os.getpid()} \(orchestrator-1\)"):
        asyncio.run(scenario())


def test_revisions_go_on_after_a_restart(tmp_path: Path) -> None:
    revisions = [asyncio.run(take(tmp_path)).revision for _ in range(12)]

    assert revisions == list(range(1, 13))


def test_a_name_with_slashes_stays_inside_the_state_directory(tmp_path: Path) -> None:
    asyncio.run(take(tmp_path / "state", "../outside/pool"))

    assert [path.name for path in tmp_path.iterdir()] == ["state"]
    assert len(list((tmp_path / "state").iterdir())) == 1


def test_a_damaged_file_is_refused_since_its_revision_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "state.lease").write_bytes(b'{"pid":1,"own')

    with pytest.raises(LeaseFileDamaged, match=r"state\.lease cannot be read"):
        asyncio.run(take(tmp_path))


def test_a_lease_whose_file_was_removed_is_lost(tmp_path: Path) -> None:
    async def scenario() -> bool:
        holder = LocalCoordinator(tmp_path)
        lease = await holder.acquire("state", "a")
        lost = holder.lost(lease)
        (tmp_path / "state.lease").unlink()
        with pytest.raises(LeaseLost, match="removed or replaced"):
            await holder.renew(lease)
        await holder.close()
        return lost.is_set()

    assert asyncio.run(scenario())
