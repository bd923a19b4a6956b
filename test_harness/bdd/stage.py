"""The stage of the scenarios: one service process with its engines, kept while scenarios agree on
the configuration.

Starting the service costs seconds, a scenario milliseconds; so the scenarios of a feature, whose
Background says what is configured, share one process. Invariants: at most one service runs; what a
scenario leaves behind is gone before the next one begins, or the stage is built anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness_kit.gated_engine import GatedEngine
from harness_kit.model_files import gguf_bytes, llama_metadata
from harness_kit.service_process import ServiceProcess, external_pool
from harness_kit.waiting import wait_until

# A loaded machine; nothing waits this long where all is well.
PATIENCE_S = 20.0


def model_of(pool: str) -> str:
    """The model that only this pool serves."""
    return f"file:/models/{pool}.gguf"


@dataclass(frozen=True, slots=True)
class PoolWanted:
    """A pool as a Background describes it; `settings` are its own keys of the configuration.

    With `model_file` its engines name one that can be read, which says what a token's KV takes.
    """

    engines: int
    slots: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    model_file: bool = False

    @property
    def launched(self) -> int:
        """Engines that the service launches itself."""
        count: int = self.settings.get("launch", {}).get("count", 0)
        return count


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that the service is configured with: pools by id, and whole sections by name."""

    pools: dict[str, PoolWanted] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenery:
    """What stands on the stage; engines by pool and replica id."""

    service: ServiceProcess
    engines: dict[str, dict[str, GatedEngine]]


class Stage:
    """Sets up what a scenario wants, unless it stands there already."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._built = 0
        self._stack = ExitStack()
        self._wanted: Wanted | None = None
        self._scenery: Scenery | None = None

    def set(self, wanted: Wanted) -> Scenery:
        """A running service of that configuration, with all its replicas Ready."""
        if self._scenery is None or wanted != self._wanted:
            self.strike()
            self._scenery = self._build(wanted)
            self._wanted = Wanted(dict(wanted.pools), dict(wanted.sections))
        return self._scenery

    def tidy(self) -> None:
        """Every task comes to its end; a stage that cannot be tidied is
        struck, and that is the failure of the scenario that left it.
        """
        if self._scenery is None:
            return
        service, engines = self._scenery.service, self._scenery.engines
        try:
            assert service.running, service.log_text()[-4000:]
            for replicas in engines.values():
                for engine in replicas.values():
                    engine.allow()
            wait_until(self._idle, PATIENCE_S, "no task is left and all replicas are Ready")
        except BaseException:
            self.strike()
            raise

    def strike(self) -> None:
        """Stop what runs."""
        self._scenery = None
        stack, self._stack = self._stack, ExitStack()
        stack.close()

    def _build(self, wanted: Wanted) -> Scenery:
        model_file = self._directory / "small.gguf"
        model_file.write_bytes(gguf_bytes(llama_metadata()))
        paths = {True: str(model_file), False: "gated.gguf"}
        engines = {
            pool: {
                f"r{number}": self._stack.enter_context(
                    GatedEngine(slots=described.slots, model_path=paths[described.model_file])
                )
                for number in range(described.engines)
            }
            for pool, described in wanted.pools.items()
        }
        pools = [
            external_pool(
                *(engine.url for engine in engines[pool].values()),
                pool_id=pool,
                **{"model": model_of(pool), **described.settings},
            )
            for pool, described in wanted.pools.items()
        ]
        self._built += 1
        service = ServiceProcess(self._directory / f"stage{self._built}", *pools, **wanted.sections)
        self._stack.enter_context(service)
        for pool, replicas in engines.items():
            count = len(replicas) + wanted.pools[pool].launched
            service.wait_metric("replica_ready", count, PATIENCE_S, pool_id=pool)
        return Scenery(service, engines)

    def _idle(self) -> bool:
        assert self._scenery is not None
        values: dict[str, float] = {}
        for line in self._scenery.service.metrics().splitlines():
            name, _, rest = line.partition("{")
            if name in ("queue_depth", "tasks_running", "replica_ready"):
                values[name] = values.get(name, 0.0) + float(rest.rpartition(" ")[2])
        replicas = sum(len(each) for each in self._scenery.engines.values())
        assert self._wanted is not None
        replicas += sum(wanted.launched for wanted in self._wanted.pools.values())
        return values == {"queue_depth": 0, "tasks_running": 0, "replica_ready": replicas}
