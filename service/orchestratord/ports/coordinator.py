"""Who owns what: leases with fencing revisions.

The embedded coordinator guards one state directory; the NATS one (ORCH-3204) guards pools over many
orchestrators. A lease's `revision` is monotone per name: by it, shared state can tell a former
owner's late write from the owner's. The embedded journal needs none: its lock dies with its owner.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Lease:
    name: str
    owner: str
    revision: int


class LeaseHeld(Exception):
    """Somebody else holds the lease; names the lease and the holder."""


class LeaseLost(Exception):
    """A lease that was ours is not any more; stop writing under its revision."""


class Coordinator(Protocol):
    async def acquire(self, name: str, owner: str) -> Lease:
        """Take a free lease. Raises `LeaseHeld`."""
        ...

    async def renew(self, lease: Lease) -> Lease:
        """Keep it; the revision stays. Raises `LeaseLost`."""
        ...

    async def release(self, lease: Lease) -> None:
        """Give it up; a lease that is not ours any more is left alone."""
        ...

    def lost(self, lease: Lease) -> asyncio.Event:
        """Set when the lease is gone without our doing."""
        ...

    async def close(self) -> None: ...
