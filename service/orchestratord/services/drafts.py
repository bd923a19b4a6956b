"""A request before it is admitted: well-formed, in our own words, and promised nothing yet.

On a task's path: the api makes a `Draft` of what came over the wire, admission reads it. Invariant:
a draft says what the client said and no more; defaults of pool and profile are for admission.
Requirements: ORCH-2001, ORCH-3014.
"""

from __future__ import annotations

from typing import TypeVar

from orchestrator_core.task import Determinism, Priority, Workload
from orchestrator_core.value import Value
from worker_adapters.adapter_api.types import Sampling

T = TypeVar("T")


class Message(Value, frozen=True):
    """One turn of a conversation, oldest first."""

    role: str
    content: str


class SamplingOverride(Value, frozen=True):
    """What the request says of sampling; None takes the profile's value."""

    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    repeat_penalty: float | None = None
    stop: tuple[str, ...] | None = None

    def over(self, profile: Sampling) -> Sampling:
        """The profile with what the request says of its own."""
        if self is NO_OVERRIDE:
            return profile
        return Sampling(
            temperature=_first(self.temperature, profile.temperature),
            top_p=_first(self.top_p, profile.top_p),
            top_k=_first(self.top_k, profile.top_k),
            min_p=_first(self.min_p, profile.min_p),
            repeat_penalty=_first(self.repeat_penalty, profile.repeat_penalty),
            stop=_first(self.stop, profile.stop),
        )


NO_OVERRIDE = SamplingOverride()


def _first(value: T | None, default: T) -> T:
    return default if value is None else value


class Draft(Value, frozen=True):
    """A well-formed request, in our own words. Times and token counts as in the contract."""

    tenant: str
    client_id: str
    correlation_id: str
    body_digest: bytes
    task_id: str
    session_id: str
    workload: Workload
    model_ref: str
    engine: str
    ctx: int
    priority: Priority
    max_tokens: int
    deadline_ms: int
    determinism: Determinism
    seed: int | None = None
    sampler_profile_version: str | None = None
    traceparent: str = ""
    prompt: str | None = None
    messages: tuple[Message, ...] = ()
    inputs: tuple[str, ...] = ()
    expected_tokens: int | None = None
    kv_hint: str | None = None
    sampling: SamplingOverride = NO_OVERRIDE

    @property
    def key(self) -> str:
        return f"{self.tenant}/{self.task_id}"

    @property
    def session_key(self) -> str:
        return f"{self.tenant}/{self.session_id}"

    def log_fields(self) -> dict[str, object]:
        """What a refused task's line says of it (ORCH-3027, ORCH-3094)."""
        return {
            "job_id": self.task_id,
            "session_id": self.session_id,
            "client_id": self.client_id,
            "tenant_id": self.tenant,
            "correlation_id": self.correlation_id,
            "model_id": self.model_ref,
            "priority": self.priority.value,
            "deadline_ms": self.deadline_ms,
        }
