"""What this machine can run: the engine adapters that are installed, the model files that are here.

Used by the composition root and by whoever checks a configuration for it. Invariant: an adapter is
imported when a pool needs it and not before, so that a broken one cannot stop a service without
such a pool (ORCH-3030, ORCH-3037).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from importlib.metadata import EntryPoint, entry_points

from orchestratord.configuration import Host, config_schema
from pool_managerd.model_files import ModelMissing, ModelUnavailable, find_model
from worker_adapters.adapter_api.types import EngineAdapter

ADAPTER_GROUP = "llama_orch.engine_adapters"


class InstalledAdapters(Mapping[str, EngineAdapter]):
    """The installed adapters of engines that a configuration can name; each is loaded on demand."""

    def __init__(self) -> None:
        pool = config_schema()["$defs"]["Pool"]["properties"]
        engines = frozenset(pool["engine"]["enum"])
        self._points: dict[str, EntryPoint] = {
            point.name: point
            for point in entry_points(group=ADAPTER_GROUP)
            if point.name in engines
        }

    def __getitem__(self, engine: str) -> EngineAdapter:
        adapter: EngineAdapter = self._points[engine].load()
        return adapter

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)


def this_host() -> Host:
    """Return what a configuration can count on here."""
    return Host(frozenset(InstalledAdapters()), _model_problem)


def _model_problem(model: str) -> str | None:
    try:
        find_model(model)
    except ModelMissing as error:
        return str(error)
    except ModelUnavailable:
        # May still come, by a package or a catalog; the pool's health tells when it is launched.
        return None
    return None
