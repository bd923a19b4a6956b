"""What would be started, with which memory: `llama-orch pools plan`, without starting anything.

Asked from the command line, on the machine that shall run the pools or on another one. Invariants:
the commands are those that the supervisors would run (ports aside, which are chosen at the start);
a value that came with `launch.env` is never shown; replicas are planned one after the other, each
finding taken what those before it need. Requirements: ORCH-3001, ORCH-3003, ORCH-3012, ORCH-3020.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from orchestrator_core.redaction import shown_words
from pool_managerd.device_masks import DeviceGone, taken_by
from pool_managerd.launch_command import (
    MARKER_VARIABLE,
    engine_environment,
    engine_words,
    missing_program,
    profile_environment,
)
from pool_managerd.launch_profiles import LaunchRefused, runs_on_cpu
from pool_managerd.memory_fit import Shortfall
from pool_managerd.model_files import ModelUnavailable, find_model
from pool_managerd.model_store import ModelStore
from pool_managerd.model_use import show_models
from pool_managerd.preload_check import LaunchPlan, PreloadCheck
from pool_managerd.settings import LaunchSettings, PoolSettings

_MASK = frozenset(("CUDA_DEVICE_ORDER", "CUDA_VISIBLE_DEVICES"))


@dataclass(frozen=True, slots=True)
class ReplicaPreview:
    """One engine that would be started. `environment` has None for values that came with
    `launch.env`; `refused` says why it would not be started, `notes` what could not be known."""

    pool_id: str
    replica_id: str
    command: tuple[str, ...] = ()
    environment: Mapping[str, str | None] = field(default_factory=dict)
    plan: LaunchPlan | None = None
    refused: str | None = None
    notes: tuple[str, ...] = ()


def preview_pools(
    pools: Iterable[PoolSettings], check: PreloadCheck, models: ModelStore | None = None
) -> Iterator[ReplicaPreview]:
    """Every replica that the pools launch, in the order of the configuration."""
    before: list[PoolSettings] = []
    for pool in pools:
        if pool.launch is not None:
            taken = taken_by(pool, before, check.gpus())
            for number in range(pool.launch.count):
                preview = _preview(pool, pool.launch, f"{pool.id}-{number}", check, models)
                yield preview if taken is None else replace(preview, refused=taken)
            before.append(pool)


def _preview(
    pool: PoolSettings,
    launch: LaunchSettings,
    replica_id: str,
    check: PreloadCheck,
    models: ModelStore | None,
) -> ReplicaPreview:
    plan: LaunchPlan | None = None
    try:
        pool, launch = show_models(pool, launch, models)
        plan = check.preview(pool, launch)
        words = engine_words(pool, launch, replica_id, 0, plan, verify=False)
        masked = replace(pool, devices=plan.mask)
        environment = engine_environment(
            masked, launch, "", {}, profile_environment(pool, launch, plan)
        )
        missing = None if launch.command is not None else missing_program(pool, launch)
    except (DeviceGone, LaunchRefused, ModelUnavailable) as error:
        return ReplicaPreview(pool.id, replica_id, plan=plan, refused=str(error))
    ours = _MASK if pool.devices else frozenset()
    given = {name for name, _ in launch.env} - ours
    shown = {
        name: None if name in given else value
        for name, value in sorted(environment.items())
        if name != MARKER_VARIABLE
    }
    refused = None if launch.command is not None else _absent(pool, launch)
    if isinstance(plan.result, Shortfall) and pool.memory.check:
        refused = str(plan.result)
    notes = [
        note for note in (missing, plan.unchecked and f"not checked: {plan.unchecked}") if note
    ]
    return ReplicaPreview(
        pool.id,
        replica_id,
        tuple(shown_words(words)),
        shown,
        plan,
        refused,
        tuple(notes),
    )


def _absent(pool: PoolSettings, launch: LaunchSettings) -> str | None:
    """Why the model's file cannot be loaded from here; None for one that an engine fetches."""
    if pool.model.startswith("repo:") and not runs_on_cpu(pool, launch):
        return None
    try:
        find_model(pool.model)
    except ModelUnavailable as error:
        return str(error)
    return None
