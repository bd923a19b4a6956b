"""A busy service in virtual time writes the same transcript under every hash seed, byte by byte.

The core's own transcript is in `property/test_determinism_of_decisions.py`; here everything around
it takes part as well: admission, dispatch, streams, failover, the journal, a crash and its replay.
"""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from harness_kit.core_builders import make_pool
from harness_kit.service_clients import StreamClient, draft
from harness_kit.service_world import PROFILE, ServiceWorld, Setup, run_world
from orchestrator_core.pool import FullPolicy, TenantPolicy
from orchestrator_core.task import Determinism, Priority
from worker_adapters.mock.script import MockScript

TENANTS = ("acme", "umbra", "zeta")
SETUP = Setup(
    engines={name: MockScript(slots_total=2, token_delay_ms=7) for name in ("r0", "r1", "r2")},
    pool=make_pool(
        sampler_profile_version=PROFILE,
        capacity=3,
        policy=FullPolicy.DROP_LRU,
        tenants=tuple(TenantPolicy(name, weight=n + 1) for n, name in enumerate(TENANTS)),
    ),
)


def transcript() -> str:
    """Answers, decodes, journal and streams of 40 tasks of three tenants, in order."""
    lines = list[str]()
    clients = list[StreamClient]()

    async def scenario(world: ServiceWorld) -> None:
        for number in range(40):
            fields: dict[str, Any] = {
                "tenant": TENANTS[number % 3],
                "priority": Priority.BATCH if number % 4 else Priority.INTERACTIVE,
                "determinism": Determinism.BEST_EFFORT if number % 5 == 4 else Determinism.STRICT,
                "max_tokens": 3 + number % 7,
                "seed": number,
            }
            submission = world.submit(draft(number, **fields))
            await world.settle()
            lines.append(f"{number} {submission.promise} {submission.admitted}")
            if submission.admitted:
                clients.append(world.read(submission.draft))
            if number == 15:
                world.kill("r1")
            if number == 25:
                world.cancel(submission.draft)
            if number == 30:
                world.crash()
                world.restart()
                for client in clients:
                    client.connect()
            await world.advance(0.01)
        await world.advance(5)
        lines.extend(f"decode {key}" for key in world.decodes)
        lines.extend(f"disk {record}" for record in world.disk_records())

    run_world(scenario, SETUP)
    lines.extend(client.raw.decode() for client in clients)
    return "\n".join(lines)


@pytest.mark.req("ORCH-3045", partial="what engines decode")
def test_the_service_s_transcript_does_not_depend_on_the_hash_seed() -> None:
    code = (
        "import sys; from determinism_suite.test_service_transcript import transcript;"
        "sys.stdout.write(transcript())"
    )

    transcripts = [
        subprocess.run(
            [sys.executable, "-c", code],
            env=os.environ | {"PYTHONHASHSEED": seed, "PYTHONPATH": os.pathsep.join(sys.path)},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("0", "4242")
    ]

    assert transcripts[0] == transcripts[1]
    assert transcripts[0].count("event: end") >= 15
    assert '"canceled":true' in transcripts[0]
    assert "QUEUE_FULL_DROP_LRU" in transcripts[0]
    decodes = [line for line in transcripts[0].splitlines() if line.startswith("decode ")]
    assert len(set(decodes)) < len(decodes), "nothing was decoded again"
