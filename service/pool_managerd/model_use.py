"""A launch's models from the store: held while its engine lives, proved before it loads.

Between an engine's supervisor and the model store, at each start of an engine. Invariant: what
follows (estimate, command line, launcher) sees plain files with their digests, and needs no store.
Requirements: ORCH-3037, ORCH-3042.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from pool_managerd.model_files import ModelFile, find_model
from pool_managerd.model_store import ModelStore, ModelUse
from pool_managerd.settings import LaunchSettings, PoolSettings

STORED = "sha256:"


def use_models(
    pool: PoolSettings, launch: LaunchSettings, store: ModelStore | None
) -> tuple[PoolSettings, LaunchSettings, tuple[ModelUse, ...]]:
    """Pool and launch with files for models of the store, and what holds these. Reads the files
    whole, to verify them. Raises `ModelMissing`, `DigestMismatch`, `ModelUnavailable`."""
    uses: list[ModelUse] = []

    def hold(model: str) -> ModelFile:
        if store is None:
            return find_model(model)
        use = store.use(model)
        uses.append(use)
        store.verify(model)
        return use.file

    try:
        settled = _settled(pool, launch, hold)
    except BaseException:
        for use in uses:
            use.release()
        raise
    return *settled, tuple(uses)


def show_models(
    pool: PoolSettings, launch: LaunchSettings, store: ModelStore | None
) -> tuple[PoolSettings, LaunchSettings]:
    """As `use_models`, for a look: nothing is held and nothing is verified."""
    return _settled(pool, launch, lambda model: find_model(model, store))


def _settled(
    pool: PoolSettings, launch: LaunchSettings, file_of: Callable[[str], ModelFile]
) -> tuple[PoolSettings, LaunchSettings]:
    named = (*(launch.command or ()), *launch.args)
    # An engine that is told no model by us fetches its own.
    loads = launch.command is None or any("{model}" in word for word in named)
    if loads and pool.model.startswith(STORED):
        pool = replace(pool, model=_reference(file_of(pool.model)))
    if launch.command is None and (launch.draft_model or "").startswith(STORED):
        assert launch.draft_model is not None
        launch = replace(launch, draft_model=_reference(file_of(launch.draft_model)))
    return pool, launch


def _reference(file: ModelFile) -> str:
    return f"file:{file.path}@sha256:{file.sha256}"
