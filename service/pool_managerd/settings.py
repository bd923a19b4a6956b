"""What the configuration says of a pool's replicas, as far as keeping them alive needs it.

Built by the composition root from the checked configuration, before any task. Invariant: one
pool is one model on one device mask (ORCH-3001); nothing here changes while the service runs.
Requirements: ORCH-3001, ORCH-3012, OC-POOL-3020.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class ExternalReplica:
    """An engine that somebody else runs; `model_digest` is what the configuration claims."""

    id: str
    url: str
    model_digest: str | None = None
    labels: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class LaunchSettings:
    """`count` engines that we run.

    `command` None is the engine's launch profile, whose program `program` replaces. `args` are
    appended to either. In `command` and `args`, `{host} {port} {model} {ctx} {quant} {pool_id}
    {replica_id}` are filled in; a literal brace is written twice (see `launch_command`). `slots`
    None is the profile's own number; `draft_model` is a reference as the pool's `model` is one.
    """

    count: int = 1
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    program: str | None = None
    slots: int | None = None
    draft_model: str | None = None
    prefix_cache_bytes: int = 0


@dataclass(frozen=True, slots=True)
class MemorySettings:
    """What is checked before a launch: `headroom_ratio` of a memory's total stays free; with too
    little, slots and context shrink down to their minima where those are given (ORCH-3039)."""

    check: bool = True
    headroom_ratio: float = 0.05
    slots_min: int | None = None
    ctx_min: int | None = None


@dataclass(frozen=True, slots=True)
class RestartSettings:
    """After `max_failures` within `window_s` a replica rests for `broken_s` (ORCH-3053)."""

    max_failures: int = 8
    window_s: int = 300
    broken_s: int = 120


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """One pool. `ctx` counts tokens per task; `devices` is the device mask (GPU index or UUID).

    With `preload` False its engines start after those of all pools that preload. `tensor_split`
    has one ratio per device, None splits evenly over `homogeneous` ones. `preload_ms` is the time
    from an engine's start to Ready; `host` is where launched engines listen.
    """

    id: str
    engine: str
    model: str
    quant: str = ""
    ctx: int = 2048
    devices: tuple[str, ...] = ()
    sampler_profile_version: str = ""
    same_engine_version: bool = True
    deterministic_prefix_cache: bool = False
    preload: bool = True
    external: tuple[ExternalReplica, ...] = ()
    launch: LaunchSettings | None = None
    tensor_split: tuple[float, ...] | None = None
    homogeneous: bool = False
    shared_devices: bool = False
    self_test: Literal["auto", "always", "never"] = "auto"
    memory: MemorySettings = MemorySettings()
    restarts: RestartSettings = RestartSettings()
    preload_ms: int = 120_000
    host: str = "127.0.0.1"
