"""Generation as a developer runs it, on a copy of the tree."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("contracts", "service", "adapters", "test_harness", "requirements")


def regen(root: Path, hash_seed: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "orch_tools", "regen"],
        cwd=root,
        env=os.environ | {"PYTHONPATH": str(root / "test_harness"), "PYTHONHASHSEED": hash_seed},
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )


@pytest.mark.req("OC-CONFIG-6010")
def test_a_second_generation_under_another_hash_seed_writes_nothing(tmp_path: Path) -> None:
    for name in SOURCES:
        shutil.copytree(
            ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__", ".venv")
        )
    left_over = tmp_path / "generated" / "left_over.py"
    left_over.parent.mkdir()
    left_over.write_text("")

    first = regen(tmp_path, hash_seed="1")
    second = regen(tmp_path, hash_seed="2")

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert "stale: generated/left_over.py" in first.stdout
    assert not left_over.exists()
    assert second.stdout.endswith(" files, 0 written\n")
