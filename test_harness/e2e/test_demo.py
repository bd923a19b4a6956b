"""`make demo` as a user runs it: real service, real engines, real model."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

# Twenty seconds on a quiet machine with two cores; the model is loaded twice.
DEMO_TIMEOUT_S = 240


def marked_processes() -> set[str]:
    """Pids of processes that any demo has left."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if b"LLAMA_ORCH_DEMO_MARK=" in environment:
                found.add(entry.name)
    return found


@pytest.mark.req("OC-CLI-8001")
@pytest.mark.req("ORCH-3045", "ORCH-3201", "ORCH-3049", partial="all but one run of the demo")
@pytest.mark.timeout(DEMO_TIMEOUT_S + 30)
def test_the_demo_proves_its_claims_and_leaves_nothing_behind() -> None:
    before = marked_processes()

    result = subprocess.run(
        [sys.executable, "-m", "orch_cli.demo"],
        capture_output=True,
        text=True,
        timeout=DEMO_TIMEOUT_S,
        env={**os.environ, "PYTHONWARNINGS": "error"},
        check=False,
    )

    assert result.returncode == 0, result.stdout + result.stderr
    proved = [line for line in result.stdout.splitlines() if line.startswith("✓")]
    for claim in (
        "byte-identical",
        "canceled=true",
        "400 INVALID_PARAMS",
        "429 with a time to come back",
        "the text equals that of the undisturbed run",
        "'failovers': 1",
        "the service exited with 0",
        "no process is left behind",
    ):
        assert any(claim in line for line in proved), claim
    assert marked_processes() <= before
