"""What this machine can run: the engine adapters that are installed, model files and GPUs.

Used by the composition root and by whoever checks a configuration for it. Invariant: an adapter is
imported when a pool needs it and not before, so that a broken one cannot stop a service without
such a pool (ORCH-3030, ORCH-3037).
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from importlib.util import find_spec

from gpu_telemetry.nvml import NvmlReader, NvmlUnavailable
from gpu_telemetry.snapshot import HostGpus
from gpu_telemetry.topology import device_of, known_names, overlap
from orchestratord.configuration import Host, config_schema
from pool_managerd.model_files import ModelMissing, ModelUnavailable, find_model
from worker_adapters.adapter_api.types import EngineAdapter

ADAPTER_GROUP = "llama_orch.engine_adapters"
# A driver that sleeps takes seconds to wake; a start waits no longer for one that hangs.
LOOK_S = 30.0
# What `orchestratord.infra.tracing` imports.
_TRACING_PACKAGES = ("opentelemetry.sdk.trace", "opentelemetry.exporter.otlp.proto.http")


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
    # Asked for once, and only where a pool names devices.
    gpus = cache(_gpus)
    return Host(
        frozenset(InstalledAdapters()),
        _model_problem,
        lambda device: _device_problem(device, gpus()),
        lambda one, other: overlap(one, other, gpus()),
        can_trace=_has_tracing(),
    )


def _has_tracing() -> bool:
    try:
        return all(find_spec(name) for name in _TRACING_PACKAGES)
    except ModuleNotFoundError:  # of a parent package
        return False


def _device_problem(name: str, host: HostGpus) -> str | None:
    # A GPU that does not answer now may be any that we do not know: it shall not stop a start.
    if not host.devices or any(device.lost for device in host.devices):
        return None
    if device_of(name, host) is not None:
        return None
    return f"no such device, or several; this host has {', '.join(known_names(host))}"


def _gpus() -> HostGpus:
    """One look; nothing where there is no driver, or where it does not answer in time."""
    seen: list[HostGpus] = []

    def look() -> None:
        reader = NvmlReader()
        try:
            seen.append(reader.look())
        except NvmlUnavailable:
            return
        finally:
            reader.close()

    looker = threading.Thread(target=look, name="nvml", daemon=True)
    looker.start()
    looker.join(LOOK_S)
    return seen[0] if seen else HostGpus()


def _model_problem(model: str) -> str | None:
    try:
        find_model(model)
    except ModelMissing as error:
        return str(error)
    except ModelUnavailable:
        # May still come, by a package or a catalog; the pool's health tells when it is launched.
        return None
    return None
