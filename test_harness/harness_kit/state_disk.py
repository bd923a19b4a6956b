"""A disk for a service's state that a test can fill up and make room on again.

A small tmpfs where this process may mount one, and then the kernel says ENOSPC as a full disk does;
elsewhere the service's process may write no file any more (RLIMIT_FSIZE), its log included.
Invariant: the disk is gone when the block is left.
"""

from __future__ import annotations

import os
import resource
import subprocess
from contextlib import suppress
from pathlib import Path
from typing import Self

SIZE_MIB = 64
PIECE_BYTES = 64 * 1024


class StateDisk:
    """`with StateDisk(folder) as disk`: the folder is made, and is the disk."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"
        self._mounted = False

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        if os.geteuid() == 0:
            options = f"size={SIZE_MIB}m,mode=0700"
            command = ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(self.folder)]
            self._mounted = subprocess.run(command, capture_output=True).returncode == 0
        return self

    def __exit__(self, *_: object) -> None:
        if self._mounted:
            subprocess.run(["umount", "--lazy", str(self.folder)], check=True)

    @property
    def kind(self) -> str:
        """What a full disk is here, for the report."""
        return "tmpfs" if self._mounted else "file-size limit"

    def fill(self, pid: int) -> None:
        """No room is left for the process `pid`."""
        if not self._mounted:
            self._limit(pid, 0)
            return
        with suppress(OSError), self._filler.open("wb", buffering=0) as filler:
            while True:  # until ENOSPC
                filler.write(bytes(PIECE_BYTES))
        with suppress(OSError), self._filler.open("ab", buffering=0) as filler:
            while True:  # the last pages too
                filler.write(bytes(1))

    def free(self, pid: int | None) -> None:
        """There is room again; None where that process is no more."""
        if self._mounted:
            self._filler.unlink()
        elif pid is not None:
            self._limit(pid, resource.prlimit(pid, resource.RLIMIT_FSIZE)[1])

    @staticmethod
    def _limit(pid: int, size_bytes: int) -> None:
        _, hard = resource.prlimit(pid, resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (size_bytes, hard))
