"""Where a launched engine listens: a port that is free when we look.

Off a task's path: at each start of an engine. Somebody may be quicker to take the port, which is no
failure of the engine's: it is started again on another one. Requirements: ORCH-3001.
"""

from __future__ import annotations

import re
import socket

from pool_managerd.launch_command import HOST

PORT_ATTEMPTS = 3
_PORT_TAKEN = re.compile(rb"address already in use|couldn't bind|failed to bind", re.IGNORECASE)


def free_port() -> int:
    """A TCP port on 127.0.0.1 that nobody listens on right now; the kernel seldom gives the same
    one twice in a row."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def says_port_taken(output: bytes) -> bool:
    """Whether an engine's last words are that somebody else has its port."""
    return _PORT_TAKEN.search(output) is not None
