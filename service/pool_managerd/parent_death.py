"""An engine must not outlive whoever started it, however that one dies.

PR_SET_PDEATHSIG (prctl(2)) makes the kernel send SIGKILL when the parent's starting thread ends;
it survives exec. Invariant: after `die_with_parent` returns, the parent was alive after the
kernel knew, so no death goes unnoticed in between. Imported by the launchers only: no third-party
imports here, they cost start-up time.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent `parent_pid` dies; end it (exit 1) if that
    happened already. Raises OSError where the kernel refuses."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        errno = ctypes.get_errno()
        raise OSError(errno, f"prctl(PR_SET_PDEATHSIG): {os.strerror(errno)}")
    if os.getppid() != parent_pid:
        sys.exit(1)
