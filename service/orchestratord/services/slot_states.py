"""What each engine shows of its slots: asked now and then, never for a task.

On no task's path: a periodic look asks a few Ready replicas for their slots, sets
`kv_cache_usage_ratio`, and tells the core which of them are busy: those that are not ours are not
offered. Invariants: at most `MAX_ASKED` questions per look, each replica in turn, and none to a
replica that has not answered the last one; an engine that does not tell keeps none of its slots
from us. Requirements: ORCH-3019, ORCH-3022, ORCH-3028.
"""

from __future__ import annotations

import asyncio

import structlog

from orchestrator_core.events import SlotsObserved
from orchestratord.services.replicas import Replica, ReplicaDirectory
from orchestratord.services.scheduling import SchedulingService
from orchestratord.services.telemetry import Telemetry
from worker_adapters.adapter_api.types import EngineError, SlotState

log = structlog.get_logger("orchestratord.slot_states")

# With PERIOD_S: a replica is asked once a second, and a service of many asks 16 of them a second.
PERIOD_S = 1.0
MAX_ASKED = 16


def usage_ratio(slots: list[SlotState], kv_tokens_max: int) -> float:
    """Tokens held over tokens there is room for, 0..1; 0 where the room is not known."""
    held = sum(slot.kv_tokens for slot in slots)
    return min(held / kv_tokens_max, 1.0) if kv_tokens_max > 0 else 0.0


class SlotStates:
    """Owns the questions that are under way."""

    def __init__(
        self, scheduling: SchedulingService, replicas: ReplicaDirectory, telemetry: Telemetry
    ) -> None:
        self._scheduling = scheduling
        self._replicas = replicas
        self._telemetry = telemetry
        self._asking: dict[tuple[str, str], asyncio.Task[None]] = {}
        self._turn = 0

    def look(self) -> None:
        """Ask the next replicas in turn; their answers arrive later."""
        scheduler, ready = self._scheduling.scheduler, list(self._replicas.ready())
        first = self._turn % len(ready) if ready else 0
        self._turn = first + MAX_ASKED
        for replica in (ready[first:] + ready[:first])[:MAX_ASKED]:
            key = (replica.pool_id, replica.id)
            if key not in self._asking:
                question = self._ask(replica, scheduler.leased(*key))
                self._asking[key] = asyncio.get_running_loop().create_task(question)

    async def _ask(self, replica: Replica, leased_before: int) -> None:
        try:
            await self._read(replica, leased_before)
        finally:
            del self._asking[replica.pool_id, replica.id]

    async def _read(self, replica: Replica, leased_before: int) -> None:
        slots: list[SlotState] | None = None
        try:
            slots = await replica.client.slots()
        except EngineError as error:
            # Its health is the pool host's business; an engine may also not offer slots at all.
            log.debug(
                "slot_states.no_answer",
                pool_id=replica.pool_id,
                replica_id=replica.id,
                cause=error.message,
            )
        if self._replicas.get(replica.pool_id, replica.id) is not replica:
            return
        self._report_busy(replica, sum(slot.busy for slot in slots or ()), leased_before)
        if slots is not None:
            room = replica.properties.slots_total * replica.properties.ctx_max
            self._telemetry.kv_usage(replica, usage_ratio(slots, room))

    def _report_busy(self, replica: Replica, busy: int, leased_before: int) -> None:
        scheduler, of = self._scheduling.scheduler, (replica.pool_id, replica.id)
        before = scheduler.foreign(*of)
        self._scheduling.step(SlotsObserved(*of, busy, leased_before))
        if (foreign := scheduler.foreign(*of)) != before:
            log.info(
                "slot_states.foreign",
                pool_id=replica.pool_id,
                replica_id=replica.id,
                slots=foreign,
                slots_total=replica.properties.slots_total,
            )
