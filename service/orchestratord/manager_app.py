"""The composition root of `llama-orch pool-managerd`: configuration in, a running pool manager out.

Beside `app`, which runs the same pool host within `serve`. Takes the same configuration file and of
it the pools with `launch`, `platform`, the model store and `server.state_dir` and `shutdown_ms`;
keys and everything else are the orchestrator's. Invariant: one pool manager per state directory,
in a folder of its own there, so that it never takes an orchestrator's engines for leftovers.
Requirements: ORCH-3001, ORCH-3002, OC-POOL-3001.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import re
import secrets
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import structlog
import uvloop

from orch_config import Config
from orchestratord.app import LOG_FLUSH_S, wall_clock_ms
from orchestratord.configuration import AnyEnvironment, load_config
from orchestratord.infra.local_coordinator import LocalCoordinator
from orchestratord.infra.logging import LineBuffer, configure_logging
from orchestratord.installation import InstalledAdapters, this_host
from orchestratord.settings import model_store, pool_settings, secret_values
from pool_managerd.gpu_watch import GpuWatch
from pool_managerd.manager_process import Transitions, manage
from pool_managerd.pool_host import PoolHost
from pool_managerd.registration import Registrar
from pool_managerd.settings import PoolSettings

log = structlog.get_logger("pool_managerd.process")

FOLDER = "pool-managerd"
OWNER_LEASE = "pool-manager"
# The contract's `PoolManagerId`.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")


class CannotManage(Exception):
    """Nothing to run, or a name that is none; names the key or option."""


def run_manager(
    config_path: Path,
    *,
    url: str,
    api_key: str | None,
    manager_id: str,
    advertise_host: str,
    lease_ms: int,
) -> None:
    """Run engines until SIGTERM, registered as `manager_id` with the orchestrator at `url`.

    Raises `ConfigError`, `CannotManage`, `LeaseHeld` when another pool manager owns the state
    directory, `Refused` when the orchestrator will not have it, OSError for the state directory.
    """
    if not _ID.fullmatch(manager_id):
        raise CannotManage(f"--id = {manager_id}: 1 to 63 of A-Z a-z 0-9 . _ -, a letter first")
    # Whose keys open the orchestrator is the orchestrator's affair.
    loaded = load_config(config_path, environ=AnyEnvironment(), host=this_host())
    pools = [
        replace(pool_settings(pool), external=(), host=advertise_host)
        for pool in loaded.config.pools
        if pool.launch is not None
    ]
    if not pools:
        raise CannotManage(f"{config_path}: no pool has launch, so there is nothing to run")
    known = [*secret_values(loaded.config), *([] if api_key is None else [api_key])]
    logs = configure_logging(known, sys.stderr.buffer)
    registrar = Registrar(url, api_key, manager_id)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_run(loaded.config, pools, registrar, manager_id, url, lease_ms, logs))


async def _run(
    config: Config,
    pools: Sequence[PoolSettings],
    registrar: Registrar,
    manager_id: str,
    url: str,
    lease_ms: int,
    logs: LineBuffer,
) -> None:
    run_dir = Path(config.server.state_dir) / FOLDER
    coordinator = LocalCoordinator(run_dir)
    lease = await coordinator.acquire(OWNER_LEASE, f"pid {os.getpid()}")
    transitions = Transitions()
    host = PoolHost(
        pools,
        InstalledAdapters(),
        transitions,
        cpu_carve_out=config.platform.cpu_carve_out,
        run_dir=run_dir,
        clock=wall_clock_ms,
        jitter=random.random,
        gpus=GpuWatch(config.platform.gpu_telemetry_ms),
        models=model_store(config),
    )
    flushes = asyncio.create_task(_flush(logs))

    def announce(answer: dict[str, Any]) -> None:
        line = {
            "event": "managing",
            "id": manager_id,
            "url": url,
            "pools": [pool.id for pool in pools],
            "unknown_pools": answer.get("unknown_pools", []),
            "pid": os.getpid(),
        }
        print(json.dumps(line), flush=True)
        log.info("manager.managing", **{k: v for k, v in line.items() if k != "event"})

    try:
        await manage(
            host,
            transitions,
            [pool.id for pool in pools],
            registrar,
            epoch=secrets.token_hex(8),
            lease_ms=lease_ms,
            shutdown_s=config.server.shutdown_ms / 1000,
            jitter=random.random,
            on_registered=announce,
        )
    finally:
        flushes.cancel()
        with suppress(asyncio.CancelledError):
            await flushes
        await coordinator.release(lease)
        await coordinator.close()
        logs.flush()


async def _flush(logs: LineBuffer) -> None:
    while True:
        await asyncio.sleep(LOG_FLUSH_S)
        logs.flush()
