"""The configuration over HTTP: what is in force, reload, dry run, revert (ORCH-3030, ORCH-3031).

A file with findings is 400 and names them all; what cannot be applied now, or not without a
restart, is 409. Either changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from orchestrator_core.errors import Code
from orchestratord.api.errors import HttpError
from orchestratord.configuration import ReloadRefused

Answer = tuple[Any, int]


class LiveConfig(Protocol):
    """The configuration in force and the ways to another; each order may raise
    `ReloadRefused`."""

    def state(self) -> dict[str, Any]: ...

    async def reload(self, *, dry_run: bool = False) -> dict[str, Any]: ...

    async def revert(self) -> dict[str, Any]: ...


class ConfigOrders:
    """The handlers, by operation id."""

    def __init__(self, config: LiveConfig) -> None:
        self._config = config
        self.handlers: dict[str, Callable[..., Any]] = {
            "get_config": self.get_config,
            "reload_config": self.reload_config,
            "revert_config": self.revert_config,
        }

    async def get_config(self) -> Answer:
        return self._config.state(), 200

    async def reload_config(self, body: dict[str, Any]) -> Answer:
        try:
            return await self._config.reload(dry_run=body.get("dry_run", False)), 200
        except ReloadRefused as error:
            raise _refused(error) from None

    async def revert_config(self) -> Answer:
        try:
            return await self._config.revert(), 200
        except ReloadRefused as error:
            raise _refused(error) from None


def _refused(error: ReloadRefused) -> HttpError:
    return HttpError(
        400 if error.invalid else 409,
        Code.INVALID_PARAMS,
        str(error),
        retriable=error.passing,
    )
