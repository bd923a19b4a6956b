"""Reading and forgetting sessions; the core keeps them (ORCH-2004, ORCH-2005)."""

from __future__ import annotations

import asyncio

from orchestrator_core.events import SessionForgotten
from orchestrator_core.sessions.session_table import SessionView
from orchestratord.ports.journal import Journal
from orchestratord.services import records
from orchestratord.services.jobs import JobTable
from orchestratord.services.scheduling import SchedulingService


def remaining_budgets(session: SessionView) -> dict[str, int | float]:
    """The budgets that are set, by the names of the contract."""
    budgets: dict[str, int | float | None] = {
        "tokens_budget_remaining": session.tokens_budget_remaining,
        "time_budget_remaining_ms": session.time_budget_remaining_ms,
        "cost_budget_remaining": session.cost_budget_remaining,
    }
    return {name: value for name, value in budgets.items() if value is not None}


class SessionService:
    def __init__(
        self,
        scheduling: SchedulingService,
        jobs: JobTable,
        journal: Journal,
        ttl_ms: int,
        *,
        budgeted: bool,
    ) -> None:
        self._scheduling = scheduling
        self._jobs = jobs
        self._journal = journal
        self._ttl_ms = ttl_ms
        self._budgeted = budgeted

    def reconfigure(self, ttl_ms: int, *, budgeted: bool) -> None:
        """Other limits from now on."""
        self._ttl_ms, self._budgeted = ttl_ms, budgeted

    def budgets(self, tenant: str, session_id: str) -> dict[str, int | float]:
        """What is left of the session's budgets; empty where the deployment sets none."""
        if not self._budgeted:
            return {}
        session = self.get(tenant, session_id)
        return {} if session is None else remaining_budgets(session)

    def get(self, tenant: str, session_id: str) -> SessionView | None:
        """The session as it is now; None where this tenant has none of that id."""
        now_ms = self._scheduling.clock_ms()
        return self._scheduling.scheduler.session(f"{tenant}/{session_id}", now_ms)

    async def forget(self, tenant: str, session_id: str) -> bool:
        """Forget it durably; False where there is none. Raises `JournalError`."""
        if self.get(tenant, session_id) is None:
            return False
        self._scheduling.step(SessionForgotten(f"{tenant}/{session_id}"))
        at_ms = self._scheduling.clock_ms()
        record = records.SessionForgotten(tenant, session_id, at_ms)
        row = await asyncio.shield(self._journal.append(records.encode(record)))
        self._jobs.hold_row(row, at_ms + self._ttl_ms)
        return True
