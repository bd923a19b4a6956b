"""How large the model store is, as a gauge: measured now and then, off the event loop.

Off every request's path: the store may lie on a disk of the network, so a scrape renders what was
measured last. Invariants: one measurement runs at a time; a size that is not known is shown as NaN,
never as an old one. Requirements: ORCH-3042.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable

import structlog
from prometheus_client import Gauge

PERIOD_S = 15.0  # a usual time between two scrapes

_log = structlog.get_logger(__name__)


class ModelStoreSize:
    """`measure` gives bytes, None for a store that cannot be read; called in a thread."""

    def __init__(self, measure: Callable[[], int | None], gauge: Gauge) -> None:
        self._measure = measure
        self._gauge = gauge
        gauge.set(math.nan)

    async def run(self) -> None:
        """Measure until cancelled."""
        while True:
            await self.look()
            await asyncio.sleep(PERIOD_S)

    async def look(self) -> None:
        """Measure once."""
        try:
            size_bytes = await asyncio.to_thread(self._measure)
        except Exception:  # noqa: BLE001 - one failure does not end it
            _log.exception("model_store.not_measured")
            size_bytes = None
        self._gauge.set(math.nan if size_bytes is None else size_bytes)
