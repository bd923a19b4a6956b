"""schemathesis over both contracts against the running service: no case may break a contract.

It makes up valid and invalid requests for every operation, walks from the 202 along the contract's
links, and checks status, headers, body, missing authentication and wrong methods. Deterministic and
bounded (schemathesis.toml).
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness_kit.contract_files import CONTRACTS
from harness_kit.gated_engine import GatedEngine
from harness_kit.service_process import ALL_KEY, ServiceProcess, external_pool

HERE = Path(__file__).parent
# What the steered cases of fuzz_hooks.py ask for.
CTX = 2**31 - 1
MODEL = "builtin:smollm2"
LEAST_CASES = 400
TIMEOUT_S = 90.0


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServiceProcess]:
    """Nothing but the contract limits a request: room, turns and context are beyond any case."""
    with GatedEngine(slots=8, ctx=CTX, embeddings=True) as engine, GatedEngine() as other:
        pool = external_pool(
            engine.url,
            model=MODEL,
            ctx=CTX,
            queue={"capacity": 100_000, "full_policy": "reject"},
        )
        spare = external_pool(other.url, pool_id="spare", model="file:/models/spare.gguf")
        directory = tmp_path_factory.mktemp("fuzz")
        with ServiceProcess(directory, pool, spare, sessions={"max_turns": 100_000}) as running:
            yield running


@pytest.mark.req("ORCH-2006", "ORCH-2008", "OC-CTRL-2030")
@pytest.mark.req("ORCH-2002", partial="the events")
@pytest.mark.req("ORCH-3035", partial="what a wrong key opens")
@pytest.mark.parametrize("plane", ["data", "control"])
def test_no_generated_request_breaks_the_contract(
    service: ServiceProcess, tmp_path: Path, plane: str
) -> None:
    command = [
        str(Path(sys.executable).with_name("schemathesis")),
        *("--config-file", str(HERE / "schemathesis.toml")),
        *("run", str(CONTRACTS / "openapi" / f"{plane}.yaml")),
        *("--url", f"http://127.0.0.1:{service.port}"),
        *("--header", f"X-API-Key: {ALL_KEY}"),
    ]

    run = subprocess.run(
        command,
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(HERE), "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )

    assert run.returncode == 0, run.stdout[-8000:] + run.stderr[-2000:]
    generated = re.search(r"(\d+) generated, (\d+) passed", run.stdout)
    assert generated is not None
    assert int(generated[1]) == int(generated[2]) >= LEAST_CASES
    assert service.running
    assert [line for line in service.log_lines() if line["level"] == "error"] == []
