"""What the configuration says of a pool's replicas, as far as keeping them alive needs it.

Built by the composition root from the checked configuration, before any task. Invariant: one
pool is one model on one device mask (ORCH-3001); nothing here changes while the service runs.
Requirements: ORCH-3001, OC-POOL-3020.
"""

from __future__ import annotations

from dataclasses import dataclass


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

    `command` None is our llama.cpp launcher. `args` are appended to the command. In both,
    `{host} {port} {model} {ctx} {quant} {pool_id} {replica_id}` are filled in; a literal brace is
    written twice (see `launch_command`).
    """

    count: int = 1
    command: tuple[str, ...] | None = None
    args: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True, slots=True)
class PoolSettings:
    """One pool. `ctx` counts tokens per task; `devices` is the device mask (GPU index or UUID).

    With `preload` False its engines start after those of all pools that preload.
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
