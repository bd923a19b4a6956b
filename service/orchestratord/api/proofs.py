"""Domain to wire for determinism records: a `Proof` becomes a `DeterminismReport` (ORCH-3206)."""

from __future__ import annotations

from typing import Any

import msgspec

from orchestratord.services.determinism import Proof
from orchestratord.services.records import TaskAdmitted

_encoder = msgspec.json.Encoder()


def report_body(proof: Proof) -> bytes:
    """The body of the 200."""
    record, admitted = proof.record, proof.admitted
    return _encoder.encode(
        {
            "task_id": admitted.task_id,
            "key": record.key,
            "seed": record.seed,
            "sampler_profile_version": record.sampler_profile_version,
            "engine_version": record.engine_version,
            "model_digest": record.model_digest,
            "sha256": record.sha256,
            "tokens_out": proof.tokens_out,
            "request": _request(admitted, record.seed),
        }
    )


def _request(admitted: TaskAdmitted, seed: int) -> dict[str, Any]:
    """What was decoded, as a request: nothing is left to a default that may change."""
    sampling = admitted.sampling
    params: dict[str, Any] = {
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "min_p": sampling.min_p,
        "repeat_penalty": sampling.repeat_penalty,
    }
    if sampling.stop:
        params["stop"] = list(sampling.stop)
    return {
        "task_id": admitted.task_id,
        "session_id": admitted.session_id,
        "workload": admitted.workload,
        "model_ref": admitted.model_ref,
        "engine": admitted.engine,
        "ctx": admitted.ctx,
        "priority": admitted.priority,
        "max_tokens": admitted.max_tokens,
        "deadline_ms": admitted.deadline_at_ms - admitted.arrived_ms,
        "determinism": admitted.determinism,
        "seed": seed,
        "sampler_profile_version": admitted.sampler_profile_version,
        "prompt": admitted.prompt,
        "sampling": params,
    }
