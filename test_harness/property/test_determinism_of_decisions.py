"""The same events give the same decisions, in this process and under other hash seeds."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from harness_kit.core_builders import T0_MS, finished, make_pool, make_replica, make_task
from orchestrator_core.events import PoolAdded, ReplicaLost, ReplicaReady, Submit, Tick, WorkerLost
from orchestrator_core.pool import FullPolicy, TenantPolicy
from orchestrator_core.scheduler import Scheduler
from orchestrator_core.task import Priority


def transcript() -> str:
    """A busy hour in small: two pools, four tenants, evictions, a failover, time passing."""
    scheduler, lines = Scheduler(), list[str]()

    def step(event: object, now_ms: int) -> None:
        effects = scheduler.step(event, now_ms)  # type: ignore[arg-type]
        lines.extend(f"{now_ms - T0_MS} {effect}" for effect in effects)

    for pool_id in ("p", "q"):
        tenants = tuple(TenantPolicy(f"t{i}", weight=i + 1, max_concurrent=2) for i in range(3))
        spec = make_pool(pool_id, capacity=4, policy=FullPolicy.DROP_LRU, tenants=tenants)
        step(PoolAdded(spec), T0_MS)
        for name in ("r0", "r1"):
            step(ReplicaReady(make_replica(name, pool_id, slots=2)), T0_MS)
    for i in range(80):
        now_ms = T0_MS + 10 * i
        priority = Priority.BATCH if i % 3 else Priority.INTERACTIVE
        changes = {"tenant": f"t{i % 4}", "priority": priority, "cost_tokens": 50 + i % 7 * 20}
        due_ms = now_ms + (300 if i < 12 else 30_000) + i * 37 % 900
        step(Submit(make_task(str(i), deadline_at_ms=due_ms, **changes)), now_ms)
        if i % 12 == 11:
            for pool_id in ("p", "q"):
                for key in scheduler.running(pool_id)[:1]:
                    step(finished(key), now_ms)
        if i == 40:
            step(ReplicaLost("p", "r0"), now_ms)
            for key in scheduler.running("p")[:1]:
                step(WorkerLost(key, resume=True), now_ms)
        if i % 10 == 9:
            step(Tick(), now_ms)
            lines.append(scheduler.describe())
    return "\n".join(lines)


@pytest.mark.req("ORCH-3075", partial="all but reproducible decisions")
def test_decisions_do_not_depend_on_the_hash_seed() -> None:
    here = Path(__file__)
    code = (
        "import importlib.util as u, sys;"
        f"s = u.spec_from_file_location('t', {str(here)!r}); m = u.module_from_spec(s);"
        "s.loader.exec_module(m); sys.stdout.write(m.transcript())"
    )

    transcripts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]

    assert transcripts[0] == transcripts[1] == transcript()
    assert "Dispatch" in transcripts[0]
    assert "Ended" in transcripts[0]
