"""Steps about the configuration file: changed under a running service, or looked at before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import yaml
from pytest_bdd import parsers, then, when

from bdd.journey import Journey

TIMEOUT_S = 60.0


@when(parsers.parse('the configuration file says of "{pool}"'))
def file_says(journey: Journey, pool: str, docstring: str) -> None:
    """Keys of the pool; nobody reads the file before a reload. The stage is built anew then."""
    service = journey.service
    said = yaml.safe_load(docstring)
    pools = [each | said if each["id"] == pool else each for each in service.config["pools"]]
    document = service.config | {"pools": pools}
    service.config_path.write_text(yaml.safe_dump(document), encoding="utf-8")


@when("the operator asks whether the service would start with", target_fixture="validation")
def validates(journey: Journey, tmp_path: Path, docstring: str) -> subprocess.CompletedProcess[str]:
    """`config validate` of the running service's file, but for its keys, with this merged in."""
    document: dict[str, Any] = journey.service.config | {"auth": {"enabled": False}}
    for section, said in yaml.safe_load(docstring).items():
        document[section] = document.get(section, {}) | said if isinstance(said, dict) else said
    path = tmp_path / "looked-at.yaml"
    path.write_text(yaml.safe_dump(document), encoding="utf-8")
    return subprocess.run(
        [sys.executable, "-m", "orch_cli.main", "config", "validate", str(path)],
        capture_output=True,
        text=True,
        check=False,
        timeout=TIMEOUT_S,
    )


@then(parsers.re(r'(?P<verdict>it would|it would not), and "(?P<words>[^"]+)" is named'))
def the_verdict_is(validation: subprocess.CompletedProcess[str], verdict: str, words: str) -> None:
    assert (validation.returncode == 0) == (verdict == "it would"), validation
    assert words in validation.stdout + validation.stderr, validation
