"""Where pact's verifier asks for provider states: a local HTTP server in front of a function.

pact-python brings one of its own, which leaves its socket open. Invariant: a state that cannot be
set up fails its interaction, and the reason is what the test shows.
"""

from __future__ import annotations

import json
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

# (state, "setup" or "teardown", parameters)
StateHandler = Callable[[str, str, dict[str, Any]], None]


@contextmanager
def state_server(handler: StateHandler) -> Iterator[tuple[str, list[str]]]:
    """The URL to tell the verifier, and the traces of what failed, while the block lasts."""
    failures: list[str] = []

    class Door(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            status = 200
            try:
                handler(asked["state"], asked["action"], asked.get("params", {}))
            except Exception:  # noqa: BLE001 - whatever it is, it belongs to this interaction
                failures.append(f"{asked}\n{traceback.format_exc()}")
                status = 500
            self.send_response(status)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            """Every state is in the verifier's own output."""

    with HTTPServer(("127.0.0.1", 0), Door) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/", failures
        finally:
            server.shutdown()
            thread.join()
