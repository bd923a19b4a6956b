"""OrchQueue v1: one handler per operation of the generated route table.

On a task's path: between the gate (key, correlation id) and the services. A handler decodes, calls
one service and encodes; what is wrong with a request is raised as `HttpError` and answered by the
gate. Submitting and streaming answer from callbacks; the rest may be coroutines.
"""

from __future__ import annotations

import msgspec
import structlog

from orchestrator_core.errors import Code, Refusal
from orchestrator_core.sessions.session_table import SessionView
from orchestratord.api.errors import HttpError, error_response, invalid, refusal_response
from orchestratord.api.http_server import Headers
from orchestratord.api.proofs import report_body
from orchestratord.api.stream import stream_response
from orchestratord.api.tasks import (
    admission_body,
    asked_tenant,
    budget_headers,
    decode_task,
    draft_of,
    known_id,
    last_event_id,
    queue_headers,
)
from orchestratord.api.types import Exchange, Handler
from orchestratord.ports.journal import JournalError
from orchestratord.services.admission import AdmissionService, IdConflict, Outcome
from orchestratord.services.cancellation import CancellationService
from orchestratord.services.determinism import DeterminismService, NoProof
from orchestratord.services.explanations import ExplanationService
from orchestratord.services.jobs import Job, JobTable
from orchestratord.services.sessions import SessionService, remaining_budgets
from orchestratord.services.streams import ReaderHub

log = structlog.get_logger("orchestratord.api")

JSON_TYPE = (b"content-type", b"application/json")
# Who has it may ask about the tasks of every tenant.
CONTROL_ROLE = "control"


class DataPlane:
    """The handlers, by operation id."""

    def __init__(
        self,
        jobs: JobTable,
        admission: AdmissionService,
        cancellation: CancellationService,
        sessions: SessionService,
        hub: ReaderHub,
        determinism: DeterminismService,
        explanations: ExplanationService,
    ) -> None:
        self._jobs = jobs
        self._admission = admission
        self._cancellation = cancellation
        self._sessions = sessions
        self._hub = hub
        self._determinism = determinism
        self._explanations = explanations
        self.handlers: dict[str, Handler] = {
            "submit_task": self.submit_task,
            "stream_task": self.stream_task,
            "cancel_task": self.cancel_task,
            "explain_task": self.explain_task,
            "get_determinism": self.get_determinism,
            "get_session": self.get_session,
            "delete_session": self.delete_session,
        }

    def submit_task(self, exchange: Exchange) -> None:
        headers = exchange.request.headers
        media_type = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        if media_type != b"application/json":
            raise invalid(
                f"Content-Type: expected application/json, got {media_type.decode('latin1')!r}",
                status=415,
            )
        request = decode_task(exchange.request.body)
        draft = draft_of(
            request,
            exchange.principal,
            exchange.correlation_id,
            headers.get(b"traceparent", b"").decode("latin-1"),
        )

        def answer(outcome: Outcome) -> None:
            self._answer(exchange, outcome)

        self._admission.submit(draft, answer)

    def _answer(self, exchange: Exchange, outcome: Outcome) -> None:
        if isinstance(outcome, Job):
            headers = [JSON_TYPE, *queue_headers(outcome), *self._budgets(exchange, outcome)]
            exchange.finish(202, headers, admission_body(outcome))
        elif isinstance(outcome, Refusal):
            refused = refusal_response(outcome)
            exchange.finish(refused.status, [JSON_TYPE, *refused.headers], refused.body)
        else:
            assert isinstance(outcome, IdConflict)
            message = f"task_id: {outcome.task_id} is already used with another body"
            refused = error_response(invalid(message, status=409))
            exchange.finish(refused.status, [JSON_TYPE, *refused.headers], refused.body)

    def stream_task(self, exchange: Exchange) -> None:
        job = self._job(exchange)
        after = last_event_id(exchange.request.headers.get(b"last-event-id"))
        if self._hub.full:
            raise HttpError(
                503, Code.REPLICA_EXHAUSTED, "too many open streams; read it later", retriable=True
            )
        stream_response(exchange, self._hub, job, after, self._budgets(exchange, job))

    async def cancel_task(self, exchange: Exchange) -> None:
        job = self._job(exchange)
        try:
            await self._cancellation.cancel(job)
        except JournalError as error:
            raise _not_durable(error) from None
        exchange.finish(204, [])

    def explain_task(self, exchange: Exchange) -> None:
        who = exchange.principal
        task_id, tenant = known_id(exchange.path_id), asked_tenant(exchange.request.query)
        tenant = who.tenant if tenant is None else tenant
        may_ask = tenant == who.tenant or CONTROL_ROLE in who.roles
        found = self._explanations.explain(tenant, task_id) if may_ask else None
        if found is None:
            raise invalid("id: no such task", status=404)
        exchange.finish(200, [JSON_TYPE], msgspec.json.encode(found))

    async def get_determinism(self, exchange: Exchange) -> None:
        try:
            proof = await self._determinism.proof(self._job(exchange))
        except JournalError as error:
            raise _not_durable(error) from None
        if isinstance(proof, NoProof):
            raise invalid(proof.message, status=409)
        exchange.finish(200, [JSON_TYPE], report_body(proof))

    def get_session(self, exchange: Exchange) -> None:
        session = self._session(exchange, known_id(exchange.path_id))
        if session is None:
            raise invalid("id: no such session", status=404)
        body = msgspec.json.encode(
            {
                "ttl_ms_remaining": session.ttl_ms_remaining,
                "turns": session.turns,
                "kv_bytes": session.kv_bytes,
                "kv_warmth": session.kv_warmth,
                **remaining_budgets(session),
            }
        )
        exchange.finish(200, [JSON_TYPE], body)

    async def delete_session(self, exchange: Exchange) -> None:
        session_id = known_id(exchange.path_id)
        try:
            known = await self._sessions.forget(exchange.principal.tenant, session_id)
        except JournalError as error:
            raise _not_durable(error) from None
        if not known:
            raise invalid("id: no such session", status=404)
        exchange.finish(204, [])

    def _budgets(self, exchange: Exchange, job: Job) -> Headers:
        return budget_headers(self._sessions.budgets(exchange.principal.tenant, job.session_id))

    def _session(self, exchange: Exchange, session_id: str) -> SessionView | None:
        return self._sessions.get(exchange.principal.tenant, session_id)

    def _job(self, exchange: Exchange) -> Job:
        """The task of the path. Raises `HttpError` 404, also for another tenant's."""
        task_id = known_id(exchange.path_id)
        job = self._jobs.get(f"{exchange.principal.tenant}/{task_id}")
        if job is None:
            raise invalid("id: no such task", status=404)
        return job


def _not_durable(error: JournalError) -> HttpError:
    """What the client may know; the log has the file and the reason."""
    log.error("request.not_durable", cause=str(error))
    message = "the journal cannot be written at the moment; try again"
    return HttpError(500, Code.INTERNAL, message, retriable=True)
