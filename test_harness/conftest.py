"""Run order and Hypothesis profiles of the whole suite.

Quick kinds of proof come first, so that a broken build is known in seconds; within a kind the order
stays random. `--hypothesis-profile=ci` looks longer for counterexamples.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from harness_kit import secret_scan
from harness_kit.nvml_library import SCRIPT_VARIABLE, ScriptedNvml, build
from harness_kit.report_files import report_file

HERE = Path(__file__).parent
KINDS = ("unit", "property", "conformance", "contract", "e2e")

# No deadline per example: CI machines stall for longer than any bound that would mean something.
settings.register_profile("dev", max_examples=50, deadline=None)
settings.register_profile("ci", max_examples=1000, deadline=None)
settings.load_profile("dev")


@pytest.fixture(scope="session")
def nvml_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The scripted NVML, built once per run."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def nvml(nvml_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ScriptedNvml:
    """A host whose GPUs the test invents, in this process and, by `environment`, in others."""
    scripted = ScriptedNvml(nvml_file, tmp_path / "gpus.txt")
    scripted.load()
    monkeypatch.setenv(SCRIPT_VARIABLE, str(scripted.script))
    return scripted


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort by kind of proof; a folder that is not listed comes last."""
    items.sort(key=_rank)


def _rank(item: pytest.Item) -> int:
    kind = item.path.relative_to(HERE).parts[0]
    return KINDS.index(kind) if kind in KINDS else len(KINDS)


def pytest_sessionfinish() -> None:
    """Say how much was searched for secrets."""
    report_file("secrets/scan.json").write_text(secret_scan.report(), encoding="utf-8")
