"""Hot reload: another configuration for a running service, all of it or nothing.

Off every task's path: SIGHUP, `POST /v1/config/reload` and `…/revert` end here. A reload reads and
proves the whole file, compares it with what is in force, and refuses where a key needs a restart or
a pool is still busy with the last change; else `Changes` applies it in one step of the event loop,
and engines that have to be replaced are drained and replaced behind it. The invariants: what is
refused changes nothing; what is in force can be told (`state`) and taken back (`revert`); no secret
is shown. Requirements: ORCH-3030, ORCH-3031.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import structlog

from orch_config import Config
from orchestratord.configuration import ConfigError, LoadedConfig, ReloadRefused
from orchestratord.configuration.differences import ABSENT, Difference, Effect, differences
from orchestratord.configuration.public_view import public_value, public_view

log = structlog.get_logger("orchestratord.config")


class Changes(Protocol):
    """What applies differences to the running service; see `Reconfiguration`."""

    def conflict(self, changes: Sequence[Difference]) -> str | None:
        """Why these cannot be applied at the moment, None where they can."""
        ...

    def apply(self, config: Config, changes: Sequence[Difference]) -> None:
        """Make `config` the one in force; engines follow behind. Must not fail."""
        ...


class HotReload:
    """The configuration in force, the one before it, and the way to another."""

    def __init__(
        self,
        loaded: LoadedConfig,
        load: Callable[[], LoadedConfig],
        changes: Changes,
        count: Callable[[str], None],
    ) -> None:
        """`load` reads and proves the file (in a thread; raises `ConfigError`); `count` counts an
        outcome."""
        self._loaded = loaded
        self._former: LoadedConfig | None = None
        self._load = load
        self._changes = changes
        self._count = count
        self._revision = 1
        self._busy = asyncio.Lock()

    def state(self) -> dict[str, Any]:
        """`ConfigState` of the contract."""
        text = msgspec.json.encode(self._loaded.config, order="sorted")
        return {
            "revision": self._revision,
            "digest": f"sha256:{hashlib.sha256(text).hexdigest()}",
            "config": public_view(self._loaded.config),
        }

    async def reload(self, *, dry_run: bool = False) -> dict[str, Any]:
        """`ConfigChange` of the contract, for the file as it is now. Raises `ReloadRefused`."""
        async with self._busy:
            try:
                loaded = await asyncio.to_thread(self._load)
            except ConfigError as error:
                self._refuse([str(problem) for problem in error.problems])
                raise ReloadRefused(str(error), invalid=True) from None
            return self._take(loaded, "reload", dry_run=dry_run)

    async def revert(self) -> dict[str, Any]:
        """`ConfigChange` of the contract, for the configuration before the last reload. Raises
        `ReloadRefused`."""
        async with self._busy:
            if self._former is None:
                raise ReloadRefused("nothing was reloaded since the service started")
            return self._take(self._former, "revert", dry_run=False)

    def _take(self, loaded: LoadedConfig, order: str, *, dry_run: bool) -> dict[str, Any]:
        changes = differences(self._loaded.config, loaded.config)
        hindrance = self._hindrance(changes)
        applied = bool(changes) and not dry_run
        if applied:
            if hindrance is not None:
                self._refuse([hindrance])
                fixed = any(change.effect is Effect.RESTART for change in changes)
                raise ReloadRefused(hindrance, passing=not fixed)
            self._changes.apply(loaded.config, changes)
            self._former, self._loaded = self._loaded, loaded
            self._revision += 1
        if not dry_run:
            self._tell(order, loaded, changes)
        hints = [f"it would be refused: {hindrance}"] if hindrance is not None else []
        return {
            "applied": applied,
            "revision": self._revision,
            "changes": [_shown(change) for change in changes],
            "warnings": [*hints, *loaded.warnings],
        }

    def _tell(self, order: str, loaded: LoadedConfig, changes: Sequence[Difference]) -> None:
        outcome = "reverted" if order == "revert" else "applied" if changes else "unchanged"
        self._count(outcome)
        log.info(
            f"config.{outcome}",
            revision=self._revision,
            changes=[f"{change.key} ({change.effect})" for change in changes],
        )
        for warning in loaded.warnings if changes else ():
            log.warning("config.warning", message=warning)

    def _hindrance(self, changes: Sequence[Difference]) -> str | None:
        """Why these cannot be applied, or not now."""
        fixed = [change.key for change in changes if change.effect is Effect.RESTART]
        if fixed:
            return f"{', '.join(fixed)}: needs a restart of the service; nothing was applied"
        return self._changes.conflict(changes)

    def _refuse(self, problems: list[str]) -> None:
        self._count("rejected")
        log.error("config.rejected", revision=self._revision, problems=problems)


def _shown(change: Difference) -> dict[str, Any]:
    """`ConfigDifference` of the contract."""
    shown: dict[str, Any] = {"key": change.key, "effect": change.effect.value}
    if change.before is not ABSENT:
        shown["before"] = public_value(change.key, change.before)
    if change.after is not ABSENT:
        shown["after"] = public_value(change.key, change.after)
    return shown
