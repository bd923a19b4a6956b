"""Runs any command so that it dies with its parent: `python -m pool_managerd.exec_with_parent
--parent-pid PID [--cpus 0-3,8] -- COMMAND ARG…`.

Wrapped around a configured `launch.command`; with `--cpus` it stays on these (ORCH-3013). The
process becomes the command (exec), so its pid, output and exit status are the command's own. A
command that cannot be run exits 127 with one line that says why.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence

from pool_managerd.cpu_affinity import cpus_in, stay_near
from pool_managerd.parent_death import die_with_parent

EXIT_NO_COMMAND = 127  # as a shell does


def main(arguments: Sequence[str]) -> None:
    """Become the command after `--`; returns never."""
    match arguments:
        case ["--parent-pid", parent, "--", _, *_]:
            command = list(arguments[3:])
        case ["--parent-pid", parent, "--cpus", cpus, "--", _, *_]:
            command = list(arguments[5:])
            stay_near(cpus_in(cpus))
        case _:
            sys.exit("usage: exec_with_parent --parent-pid PID [--cpus LIST] -- COMMAND [ARG…]")
    die_with_parent(int(parent))
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)
        sys.exit(EXIT_NO_COMMAND)


if __name__ == "__main__":
    main(sys.argv[1:])
