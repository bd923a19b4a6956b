"""One reload of one pool: from which model to which, how far it is, and with whose replicas.

On no task's path. The invariant: the phases are those of `ReloadStatus` of the contract.
Requirements: ORCH-2102, OC-CTRL-2002.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any


class ReloadPhase(StrEnum):
    """Where the last reload of a pool stands (`ReloadStatus` of the contract)."""

    PRELOADING = "preloading"
    CANARY = "canary"
    SWITCHING = "switching"
    DONE = "done"
    FAILED = "failed"
    ROLLING_BACK = "rolling_back"
    ROLLED_BACK = "rolled_back"


OVER = frozenset({ReloadPhase.DONE, ReloadPhase.FAILED, ReloadPhase.ROLLED_BACK})


@dataclass(slots=True, eq=False)
class Rollout:
    """The last reload of one pool; `old` and `new` are replicas of the pool host's."""

    pool_id: str
    old_model: str
    new_model: str
    deadline_ms: int
    percent: int = 0
    tenants: frozenset[str] = frozenset()
    phase: ReloadPhase = ReloadPhase.PRELOADING
    message: str = ""
    at_ms: int = 0
    old: tuple[str, ...] = ()
    new: tuple[str, ...] = ()
    # What `rolled_back` stands for at its end, in place of `done`.
    backwards: bool = False
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    work: asyncio.Task[None] | None = None

    @property
    def under_way(self) -> bool:
        return self.phase not in OVER

    @property
    def is_canary(self) -> bool:
        return self.percent > 0 or bool(self.tenants)

    @property
    def canary_id(self) -> str:
        return f"{self.pool_id}.canary"

    @property
    def names(self) -> dict[str, str]:
        """What every log line of it says."""
        return {
            "pool_id": self.pool_id,
            "old_model_ref": self.old_model,
            "new_model_ref": self.new_model,
        }

    def status(self) -> dict[str, Any]:
        """`ReloadStatus` of the contract."""
        shown: dict[str, Any] = {
            "phase": self.phase.value,
            "old_model_ref": self.old_model,
            "new_model_ref": self.new_model,
            "at_ms": self.at_ms,
        }
        if self.phase is ReloadPhase.CANARY:
            shown["canary_percent"] = self.percent
        if self.message:
            shown["message"] = self.message
        return shown
