"""The stage of the metrics: one for all tests of this folder, after everything has happened."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from harness_kit.nvml_library import ScriptedNvml
from metrics_contract.deeds import DEEDS, DEEDS_ALONE
from metrics_contract.stage import Stage, load, standing


@pytest.fixture(scope="session")
def stage(nvml_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    directory = tmp_path_factory.mktemp("metrics-contract")
    nvml = ScriptedNvml(nvml_file, directory / "gpus.txt")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in nvml.environment.items():
            patch.setenv(name, value)
        with standing(directory, nvml) as built:
            with load(built.service):
                built.perform(DEEDS)
                built.ended_s = time.time()
            built.perform(DEEDS_ALONE)
            yield built
