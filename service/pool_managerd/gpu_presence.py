"""Whether this host may run inference at all (ORCH-1101): it has an NVIDIA GPU that we can open.

Only device nodes count. A container on a GPU host sees the driver under /proc without having been
given a GPU, and must not infer on its CPU because of that.
"""

from __future__ import annotations

from pathlib import Path


def gpu_present(devices: Path = Path("/dev")) -> bool:
    """True when at least one NVIDIA GPU's device node exists (`/dev/nvidia0` and on)."""
    return any(devices.glob("nvidia[0-9]*"))
