"""What `submit` fills in when it is not told: engine, model and context from the service itself.

Sits before the call; asks for the capabilities only when something is missing. Invariant: what the
user gave is never changed.
"""

from __future__ import annotations

from dataclasses import dataclass

from orch_cli.exit_codes import CliError, ExitCode
from orchcontrol_v1.client import OrchControlClient
from orchcontrol_v1.types import EngineCapabilities, ReplicaSet

# Enough for a short question and its answer on any model.
DEFAULT_CTX = 2048
# A byte of text is at most one token; templates and begin-of-text add a few.
_TEMPLATE_TOKENS = 64


@dataclass(frozen=True, slots=True)
class Target:
    """Where a task goes and how much context it asks for."""

    engine: str
    model_ref: str
    ctx: int


def choose_target(
    client: OrchControlClient,
    *,
    engine: str | None,
    model: str | None,
    ctx: int | None,
    workload: str,
    text_bytes: int,
    max_tokens: int,
) -> Target:
    """Fill in what is missing, from an engine that is Ready where one is.

    Raises:
        CliError: nothing here serves such a task.
        OrchError: the service could not be asked.
    """
    if engine is not None and model is not None and ctx is not None:
        return Target(engine, model, ctx)
    offer = client.get_capabilities()
    fitting = [
        item
        for item in offer.engines
        if (engine is None or item.engine == engine)
        and (not item.supported_workloads or workload in item.supported_workloads)
        and (model is None or not item.model_refs or model in item.model_refs)
        and (model is not None or item.model_refs)
    ]
    if not fitting:
        wanted = " ".join(part for part in (engine, model, workload) if part)
        raise CliError(
            f"nothing here serves {wanted}",
            hint="`llama-orch capabilities` lists what can be asked for",
            exit_code=ExitCode.REFUSED,
        )
    chosen = fitting[0]
    if len(fitting) > 1:
        ready = _ready_engines(client.list_replicasets())
        chosen = next((item for item in fitting if item.engine in ready), chosen)
    return Target(
        engine or chosen.engine,
        model or (chosen.model_refs or [""])[0],
        ctx or _default_ctx(chosen, text_bytes, max_tokens),
    )


def _ready_engines(sets: list[ReplicaSet]) -> set[str]:
    return {
        item.engine
        for item in sets
        if any(replica.state == "Ready" for replica in item.replicas or [])
    }


def _default_ctx(engine: EngineCapabilities, text_bytes: int, max_tokens: int) -> int:
    wanted = max(DEFAULT_CTX, text_bytes + max_tokens + _TEMPLATE_TOKENS)
    return min(wanted, engine.ctx_max) if engine.ctx_max else wanted
