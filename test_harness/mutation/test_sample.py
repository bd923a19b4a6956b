"""A share of the mutants in every run of the suite; all of them are `make mutation`'s."""

from __future__ import annotations

import re
import subprocess
import sys

from mutation.mutation_run import ROOT


def test_the_tests_notice_every_mutant_of_the_sample() -> None:
    command = [sys.executable, "-m", "mutation.mutation_run", "--sample"]

    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=110)

    assert run.returncode == 0, run.stdout + run.stderr
    counted = re.search(r"(\d+) of (\d+) noticed", run.stdout)
    assert counted is not None
    assert int(counted[2]) >= 5
    assert int(counted[1]) >= 0.85 * int(counted[2])
