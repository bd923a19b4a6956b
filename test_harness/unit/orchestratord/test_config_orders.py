"""The configuration's orders over HTTP: which refusals are the file's, and which pass."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import Any

import pytest

from orchestratord.api.config_orders import ConfigOrders
from orchestratord.api.errors import HttpError
from orchestratord.configuration import ReloadRefused


@dataclass
class Live:
    """A configuration that refuses where it is told to."""

    refusal: ReloadRefused | None = None
    dry_runs: list[bool] = field(default_factory=list)

    def state(self) -> dict[str, Any]:
        return {"revision": 1}

    async def reload(self, *, dry_run: bool = False) -> dict[str, Any]:
        self.dry_runs.append(dry_run)
        return self._answered()

    async def revert(self) -> dict[str, Any]:
        return self._answered()

    def _answered(self) -> dict[str, Any]:
        if self.refusal is not None:
            raise self.refusal
        return {"revision": 2}


def test_a_reload_is_real_unless_the_body_says_dry_run() -> None:
    live = Live()
    orders = ConfigOrders(live)

    answers = [asyncio.run(orders.reload_config(body)) for body in ({}, {"dry_run": True})]

    assert answers == [({"revision": 2}, 200)] * 2
    assert live.dry_runs == [False, True]
    assert asyncio.run(orders.get_config()) == ({"revision": 1}, 200)


@pytest.mark.parametrize("operation", ["reload_config", "revert_config"])
@pytest.mark.parametrize(
    ("invalid", "passing", "status"), [(True, False, 400), (False, False, 409), (False, True, 409)]
)
def test_what_the_file_says_wrong_is_400_and_what_cannot_be_now_is_409(
    operation: str, invalid: bool, passing: bool, status: int
) -> None:
    live = Live(ReloadRefused("pools[a]: drained", invalid=invalid, passing=passing))
    orders = ConfigOrders(live)
    arguments: list[dict[str, Any]] = [{}] if operation == "reload_config" else []

    with pytest.raises(HttpError) as caught:
        asyncio.run(orders.handlers[operation](*arguments))

    assert (caught.value.status, caught.value.retriable) == (status, passing)
    assert "pools[a]: drained" in str(caught.value)
