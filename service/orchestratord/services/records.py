"""What the journal holds: one tagged msgpack value per fact that a restart must know (ORCH-3203).

Tokens are not among them: a strict task is decoded again to the same bytes. A record is written
before its fact is shown wherever the fact cannot be computed again.
"""

from __future__ import annotations

import msgspec

from orchestrator_core.pool import SetKey
from worker_adapters.adapter_api.types import Sampling


class _Record(msgspec.Struct, frozen=True, array_like=True):
    pass


class TaskAdmitted(_Record, frozen=True, tag="admitted"):
    """A task that was, or is about to be, answered 202. Times are wall-clock milliseconds."""

    tenant: str
    task_id: str
    session_id: str
    client_id: str
    correlation_id: str
    pool_id: str
    engine: str
    model_ref: str
    workload: str
    priority: str
    determinism: str
    ctx: int
    max_tokens: int
    prompt_tokens: int
    cost_tokens: int
    arrived_ms: int
    deadline_at_ms: int
    kv_hint: str | None
    sampler_profile_version: str
    seed: int
    prompt: str
    inputs: tuple[str, ...]
    sampling: Sampling
    body_digest: bytes
    queue_position: int
    predicted_start_ms: int
    backoff_ms: int
    session_created_ms: int
    session_turns: int
    admitted_ms: int = 0  # 0: an older version wrote it; later than `arrived_ms`


class TaskStarted(_Record, frozen=True, tag="started"):
    """It got a slot, which its flow was charged for; after a restart it goes before what waited, to
    the same replica set, and is told once more when it gets a slot again."""

    tenant: str
    task_id: str
    set_key: SetKey


class DeterminismRecord(_Record, frozen=True, tag="determinism"):
    """What a strict stream can be replayed and proved with (ORCH-3206)."""

    key: str
    seed: int
    sampler_profile_version: str
    engine_version: str
    model_digest: str
    sha256: str


class TaskEnded(_Record, frozen=True, tag="ended"):
    """A terminal event with the text before it: readable until its retention ends."""

    tenant: str
    task_id: str
    event: str
    data: bytes
    sealed: bytes
    tokens_out: int
    started: bool
    ended_ms: int
    truncated: bool = False
    determinism: DeterminismRecord | None = None
    gave_way: bool = False  # removed from the queue for a more urgent task
    # How explanations tell it (`decisions.Ended`); empty: an older version wrote it.
    outcome: str = ""
    reason: str = ""


class Probe(_Record, frozen=True, tag="probe"):
    """Means nothing: whether the journal can be written again."""


class SessionForgotten(_Record, frozen=True, tag="session-forgotten"):
    """What it had until `at_ms` is not brought back; needed for one session lifetime from then."""

    tenant: str
    session_id: str
    at_ms: int = 0  # 0: an older version wrote it, and did not say when


Record = TaskAdmitted | TaskStarted | TaskEnded | SessionForgotten | Probe

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[Record] = msgspec.msgpack.Decoder(Record)


def encode(record: Record) -> bytes:
    return _encoder.encode(record)


def decode(data: bytes) -> Record:
    """Raises `msgspec.DecodeError` on bytes that are no record of this version."""
    return _decoder.decode(data)
