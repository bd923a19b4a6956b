"""What a launch profile is: from a pool's settings to one engine's command line and environment.

Off a task's path: used at each start of an engine and by `pools plan`. Invariants: a profile starts
nothing and reads nothing; what an engine cannot do is refused by name, never left out. "Strict"
below is what the service promises by default: the same task gives the same bytes, whatever else
runs beside it. Requirements: ORCH-3001, ORCH-3012, ORCH-3019, OC-POOL-3020, OC-POOL-3021.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from pool_managerd.memory_estimate import EngineMemory
from pool_managerd.settings import LaunchSettings, PoolSettings


class LaunchRefused(Exception):
    """The engine cannot be started as configured; names the key and what to do."""


@dataclass(frozen=True, slots=True)
class LaunchRequest:
    """One engine to be started. `model` and `draft_model` are as the engine takes them: a path or a
    repository's name. `slots` None leaves it to the engine; `kv_bytes_per_device` is the estimate
    of its KV, None where there is none; `second_port` is free too, for engines that need one."""

    pool: PoolSettings
    launch: LaunchSettings
    host: str
    port: int
    second_port: int
    model: str
    draft_model: str | None
    slots: int | None
    ctx: int
    kv_bytes_per_device: int | None = None

    @property
    def devices(self) -> int:
        return len(self.pool.devices)


@dataclass(frozen=True, slots=True)
class LaunchProfile:
    """One engine program. `install` says how to get it; `memory` is None where what the engine
    loads cannot be told from the pool's model; `on_cpu` runs on the CPU whatever the host has;
    `slots` is what null means, None for the engine's own default."""

    engine: str
    program: str
    install: str
    slots: int | None
    memory: EngineMemory | None
    command: Callable[[str, LaunchRequest], list[str]]
    environment: Callable[[LaunchRequest], dict[str, str]]
    on_cpu: bool = False


def even_split(request: LaunchRequest, engine: str) -> int:
    """How many devices share the tensors. Raises `LaunchRefused` for unequal ratios."""
    split = request.pool.tensor_split
    if split is not None and len(set(split)) > 1:
        raise LaunchRefused(
            f"tensor_split of pool {request.pool.id}: {engine} shares tensors evenly only; "
            "give equal ratios, or homogeneous: true without ratios"
        )
    return max(1, request.devices)
