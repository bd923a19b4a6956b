"""What counts as a GPU."""

from __future__ import annotations

from pathlib import Path

import pytest

from pool_managerd.gpu_presence import gpu_present

pytestmark = pytest.mark.req("ORCH-1101", partial="all but the part of pool_managerd")


@pytest.mark.parametrize(
    ("nodes", "present"),
    [
        ([], False),
        (["nvidiactl", "nvidia-uvm", "nvidia-modeset"], False),
        (["nvidia0"], True),
        (["nvidiactl", "nvidia3"], True),
    ],
)
def test_only_a_gpus_own_device_node_counts(
    tmp_path: Path, nodes: list[str], present: bool
) -> None:
    for node in nodes:
        (tmp_path / node).touch()

    assert gpu_present(tmp_path) is present
