"""`run.py` as a program: what it prints, what it writes, how it ends."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

RUN = Path(__file__).resolve().parents[2] / "bench" / "run.py"


def test_the_core_is_measured_without_any_peer(tmp_path: Path) -> None:
    file = tmp_path / "bench.json"
    command = [sys.executable, str(RUN), "--only", "core", "--waiting", "20,40", "--reps", "2"]

    ended = subprocess.run(
        [*command, "--json", str(file)], capture_output=True, text=True, timeout=60, check=False
    )
    document = json.loads(file.read_text())

    assert ended.returncode == 0, ended.stderr
    assert "one enqueue + dispatch" in ended.stdout
    assert [cost["waiting"] for cost in document["core"]] == [20, 20, 40, 40]
    assert all(cost["cycle_ns"] > 0 for cost in document["core"])
    assert document["failures"] == []


def test_an_unknown_measure_is_refused_by_name() -> None:
    command = [sys.executable, str(RUN), "--only", "core,speed"]

    ended = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    assert ended.returncode == 2
    assert "unknown measures speed" in ended.stderr
