"""The stage of the scenarios: one service process with its engines, kept while scenarios agree on
the configuration.

What a scenario may be told about it, whoever runs it, is its `Scenery`; `bdd.live_service` sets one
up with a service that somebody else runs.

Starting the service costs seconds, a scenario milliseconds; so the scenarios of a feature, whose
Background says what is configured, share one process. Invariants: at most one service runs; what a
scenario leaves behind is gone before the next one begins, or the stage is built anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import yaml

from harness_kit.gated_engine import GatedEngine
from harness_kit.http_probe import HttpProbe
from harness_kit.llamacpp_engine import MODEL, LlamaCppEngine
from harness_kit.model_files import gguf_bytes, llama_metadata
from harness_kit.service_process import (
    ALL_KEY,
    CONTROL_KEY,
    DATA_KEY,
    METRICS_KEY,
    OTHER_TENANT_KEY,
    ServiceProcess,
    external_pool,
    model_of,
)
from harness_kit.waiting import wait_until

# A loaded machine; nothing waits this long where all is well.
PATIENCE_S = 20.0
# Two tenants, a second client of the first one, those who look after the service, and two who
# have no business here.
KEYS = {
    "acme": DATA_KEY,
    "acme's colleague": ALL_KEY,
    "zeta": OTHER_TENANT_KEY,
    "the operator": CONTROL_KEY,
    "the scraper": METRICS_KEY,
    "a stranger": "no-such-key",
    "nobody": None,
}


class NeedsOwnService(Exception):
    """The scenario does what only the owner of the service can; it lacks the tag @own-service."""


@dataclass(frozen=True, slots=True)
class Model:
    """What a task has to name to be served."""

    engine: str
    ref: str


@dataclass(frozen=True, slots=True)
class PoolWanted:
    """A pool as a Background describes it; `settings` are its own keys of the configuration.

    With `any_model` it is whatever serves one: here a real llama.cpp that all such pools share.
    With `model_file` its engines name one that can be read, which says what a token's KV takes. A
    `broken` one never becomes Ready.
    """

    engines: int
    slots: int
    settings: Mapping[str, Any] = field(default_factory=dict)
    model_file: bool = False
    any_model: bool = False
    broken: bool = False

    @property
    def ready(self) -> int:
        """Replicas that come to be Ready, those included that the service launches itself."""
        launched: int = self.settings.get("launch", {}).get("count", 0)
        return 0 if self.broken else self.engines + launched + self.any_model


@dataclass(frozen=True, slots=True)
class Wanted:
    """All that the service is configured with: pools by id, and whole sections by name."""

    pools: dict[str, PoolWanted] = field(default_factory=dict)
    sections: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Scenery:
    """What stands on the stage: connections by person, models by pool, and, where the scenario owns
    them, the service and its engines by pool and replica id.
    """

    connect: Callable[[str], HttpProbe]
    models: Mapping[str, Model]
    service: ServiceProcess | None = None
    engines: Mapping[str, dict[str, GatedEngine]] = field(default_factory=dict)


class AnyStage(Protocol):
    """Where a journey plays."""

    def set(self, wanted: Wanted) -> Scenery:
        """What is wanted, up and ready."""

    def tidy(self) -> None:
        """After a scenario: leave nothing of it behind."""


class Stage:
    """Sets up what a scenario wants, unless it stands there already."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._built = 0
        self._stack = ExitStack()
        self._engine: LlamaCppEngine | None = None
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
        """Every task comes to its end.

        A stage that cannot be tidied is struck, and that is the failure of the scenario that left
        it. One whose configuration file was changed is struck as well.
        """
        if self._scenery is None:
            return
        service, engines = self._scenery.service, self._scenery.engines
        try:
            assert service is not None
            assert service.running, service.log_text()[-4000:]
            for replicas in engines.values():
                for engine in replicas.values():
                    engine.allow()
            wait_until(self._idle, PATIENCE_S, "no task is left and all replicas are Ready")
            if yaml.safe_load(service.config_path.read_text("utf-8")) != service.config:
                self.strike()
        except BaseException:
            self.strike()
            raise

    def strike(self) -> None:
        """Stop what runs."""
        self._scenery = None
        stack, self._stack = self._stack, ExitStack()
        stack.close()

    def close(self) -> None:
        """Stop everything, the real engine as well."""
        self.strike()
        if self._engine is not None:
            self._engine.__exit__()
            self._engine = None

    def _real_engine(self) -> LlamaCppEngine:
        """The one llama.cpp of all scenarios, from the first one on that wants it."""
        if self._engine is None:
            self._engine = LlamaCppEngine().__enter__()
        return self._engine

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
        models = {
            pool: MODEL if described.any_model else model_of(pool)
            for pool, described in wanted.pools.items()
        }
        urls = {
            pool: [each.url for each in replicas.values()] for pool, replicas in engines.items()
        }
        for pool, described in wanted.pools.items():
            if described.any_model:
                urls[pool].append(self._real_engine().url)
        pools = [
            external_pool(
                *urls[pool], pool_id=pool, **{"model": models[pool], **described.settings}
            )
            for pool, described in wanted.pools.items()
        ]
        self._built += 1
        service = ServiceProcess(self._directory / f"stage{self._built}", *pools, **wanted.sections)
        self._stack.enter_context(service)
        for pool, described in wanted.pools.items():
            service.wait_metric("replica_ready", described.ready, PATIENCE_S, pool_id=pool)
        return Scenery(
            lambda who: service.probe(KEYS[who]),
            {pool: Model("llamacpp", ref) for pool, ref in models.items()},
            service,
            engines,
        )

    def _idle(self) -> bool:
        assert self._scenery is not None
        assert self._scenery.service is not None
        values: dict[str, float] = {}
        for line in self._scenery.service.metrics().splitlines():
            name, _, rest = line.partition("{")
            if name in ("queue_depth", "tasks_running", "replica_ready"):
                values[name] = values.get(name, 0.0) + float(rest.rpartition(" ")[2])
        assert self._wanted is not None
        replicas = sum(wanted.ready for wanted in self._wanted.pools.values())
        return values == {"queue_depth": 0, "tasks_running": 0, "replica_ready": replicas}
